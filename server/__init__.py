"""The sample replica: a small Quart application, in the place of the service that is replicated."""
