"""Replicas of the service behind a proxy, each on a host of its own, while clients embed and replicas come and go."""
