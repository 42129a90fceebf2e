"""The ASGI lane: readable, and slow beside the fast one. Only it knows ASGI, Hypercorn and aiohttp."""
