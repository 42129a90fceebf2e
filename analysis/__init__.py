"""The experiments: what one asks of a load balancer, answered by runs of it (`python -m analysis`)."""
