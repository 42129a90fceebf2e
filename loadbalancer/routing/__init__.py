"""Routing chooses the replica of a request. Pure: no I/O, no clock, no asyncio."""
