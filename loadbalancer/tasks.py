"""Background tasks that cannot end unnoticed.

asyncio says nothing when a background task fails or is cancelled while nobody waits for it. Each background
task of the load balancer therefore belongs to an owner, which is one of three:

- `Service`: work that must go on. It is resumed after a fault.
- `Jobs`: work that is done once. A fault is logged.
- `with_helpers`: work that is done beside other work. A fault of either ends both.

A fault is an exception that the work does not handle, or a cancellation that the owner did not order.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a service is resumed; doubled for each fault that follows soon after the one before."""

STEADY = 10.0
"""Seconds without a fault after which the pause is short again."""

T = TypeVar("T")

log = structlog.get_logger("loadbalancer")


class TaskCancelledError(Exception):
    """A task was cancelled, and its owner did not order it."""


def result_of(task: "asyncio.Future[T]") -> T:
    """Return the result of a task that has ended.

    Raises:
        TaskCancelledError: The task was cancelled. `CancelledError` would end the caller as well.
    """
    if task.cancelled():
        name = task.get_name() if isinstance(task, asyncio.Task) else "a future"
        raise TaskCancelledError(f"the task '{name}' was cancelled")
    return task.result()


def start(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Start a task that bears the name of its coroutine. The caller is its owner and waits for its end."""
    return asyncio.create_task(work, name=getattr(work, "__name__", None))


def _log_fault(task: "asyncio.Task[Any]", **fields: Any) -> None:
    if task.cancelled():
        log.error("background task was cancelled", task=task.get_name(), **fields)
    elif (error := task.exception()) is not None:
        log.error("background task failed", task=task.get_name(), reason=str(error), exc_info=error, **fields)


class Service:
    """Work that goes on in the background until it returns, and is resumed after each fault.

    Args:
        work: Is called at the start and after each fault. It has to continue from any state that a fault
            leaves behind.
        name: Name of the task, for the log.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Resolved when the work has returned, or after `stop`."""
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._pause = PAUSE

    def start(self) -> None:
        """Begin the work, or resume it."""
        self._timer = None
        self._began = self._loop.time()
        self._task = self._loop.create_task(self._work(), name=self._name)
        self._task.add_done_callback(self._task_ended)

    async def stop(self, patience: float | None = None) -> None:
        """Cancel the work, unless it has ended.

        Args:
            patience: Seconds to wait for the end of the cancelled task; None: no limit.
        """
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
        if not self.ended.done():
            self.ended.set_result(None)
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=patience)

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        if task is not self._task:  # `stop` has cancelled it
            if not task.cancelled():
                _log_fault(task)
            return
        self._task = None
        if not task.cancelled() and task.exception() is None:
            self.ended.set_result(None)
            return
        pause = PAUSE if self._loop.time() - self._began >= STEADY else self._pause
        self._pause = min(2 * pause, LONGEST_PAUSE)
        self._timer = self._loop.call_later(pause, self.start)
        _log_fault(task, resumes_in=pause)


class Jobs:
    """Work of one owner that is done once, each piece in a task of its own.

    Args:
        expected: Errors that are no faults: whoever waits for the task handles them.
    """

    def __init__(self, *expected: type[Exception]) -> None:
        self._expected = expected
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]":
        """Begin a piece of work.

        Args:
            work: The work.
            name: Name of the task, for the log.
        """
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    async def finish(self) -> None:
        """Return when all work is done, also work that begins meanwhile."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def cancel(self) -> None:
        """Cancel all work, and return when it has ended."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _task_ended(self, task: "asyncio.Task[Any]") -> None:
        ordered = task not in self._tasks
        self._tasks.discard(task)
        if task.cancelled():
            if not ordered:
                _log_fault(task)
        elif not isinstance(task.exception(), self._expected):
            _log_fault(task)


async def with_helpers(main: Coroutine[Any, Any, T], *helpers: Coroutine[Any, Any, None]) -> T:
    """Await work while helpers run beside it; they are cancelled when the work has ended.

    Args:
        main: The work.
        helpers: May return before the work does.

    Returns:
        The result of the work.

    Raises:
        Exception: The error of the work, or that of a helper, whose fault ends the work.
    """
    working = start(main)
    running: set[asyncio.Task[Any]] = {working, *map(start, helpers)}
    try:
        while not working.done():
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                result_of(task)
        return result_of(working)
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
