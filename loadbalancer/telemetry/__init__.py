"""Telemetry: metrics, logs and events of the load balancer."""
