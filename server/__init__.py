"""The sample replica: a small Quart application that stands for the service being replicated."""
