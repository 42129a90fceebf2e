"""Injects faults under load and counts the requests that fail; `make test` runs a short form."""
