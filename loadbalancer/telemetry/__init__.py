"""What the load balancer tells of itself: metrics, logs, events."""
