"""Requests in flight: the lanes that carry them to upstreams, and the rules that the lanes share."""
