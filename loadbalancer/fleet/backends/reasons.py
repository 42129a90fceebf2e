"""Why an instance has ended, in words: the same for processes and containers."""

import signal
from collections.abc import Iterable

OUTPUT_LINES = 5
"""Last lines of output that a reason quotes."""


def exited(code: int) -> str:
    """The end of a program by itself.

    Args:
        code: Its exit code.
    """
    return f"exited with code {code}"


def killed(number: int) -> str:
    """The end of a program by a signal.

    Args:
        number: The signal's number.
    """
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def with_last_words(how: str, output: Iterable[str]) -> str:
    """Add the last lines of output, if there were any.

    Args:
        how: What `exited` or `killed` says.
        output: The last lines.
    """
    lines = [line.strip() for line in output]
    said = " | ".join([line for line in lines if line][-OUTPUT_LINES:])
    return f"{how}; last output: {said}" if said else how
