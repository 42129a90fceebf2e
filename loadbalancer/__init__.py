"""A load balancer that owns its replicas: it starts them, spreads requests over them and keeps them alive."""

__version__ = "0.1.0"
