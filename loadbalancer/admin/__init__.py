"""The load balancer's own endpoints: HTTP in, fleet calls out."""
