"""Waits for the first of several events, and leaves nothing behind."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from loadbalancer.tasks import result_of, start


async def first_of(
    *signals: "asyncio.Future[Any]",
    work: Coroutine[Any, Any, object] | None = None,
    timeout: float | None = None,
) -> bool:
    """Wait for any signal, the end of the work, or the time-out.

    Args:
        signals: Futures that belong to others. They are not cancelled.
        work: Is cancelled when a signal or the time-out comes first.
        timeout: Seconds; None: no limit.

    Returns:
        Whether the work was done.
    """
    if work is None:
        await asyncio.wait(signals, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return False
    task = start(work)
    try:
        await asyncio.wait({*signals, task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            result_of(task)
            return True
        return False
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
