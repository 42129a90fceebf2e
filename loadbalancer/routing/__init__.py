"""Which replica gets a request: pure functions and small values; no I/O, no clock, no asyncio."""
