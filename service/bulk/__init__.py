"""Embedding a lake of images without a service: `python -m service.bulk SOURCE --out FOLDER`, a job of Ray Data.

It embeds with the service's own rooms, in the worker processes of one machine or of a cluster.
"""
