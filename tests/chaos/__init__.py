"""Breaks real things under load and counts what clients notice; a shorter form is in `make test`."""
