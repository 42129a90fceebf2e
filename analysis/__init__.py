"""Experiments that measure the load balancer by running it (`python -m analysis`)."""
