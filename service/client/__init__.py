"""The command that embeds many images with a running service: `python -m service.client embed FOLDER --out FILE`.

It speaks to the service as any client does, and imports nothing of it.
"""
