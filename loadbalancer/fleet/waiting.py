"""Waiting for whichever comes first, without leaving anything behind."""

import asyncio
from collections.abc import Awaitable
from typing import Any


async def first_of(
    *signals: "asyncio.Future[Any]",
    work: Awaitable[object] | None = None,
    timeout: float | None = None,
) -> bool:
    """Wait for any signal, or the end of the work, or the time-out.

    Args:
        signals: Belong to others and are left alone.
        work: Is cancelled when it is overtaken.
        timeout: Seconds.

    Returns:
        Whether the work was done.
    """
    if work is None:
        await asyncio.wait(signals, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return False
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({*signals, task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
