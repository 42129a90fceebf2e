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


def with_last_words(how: str, words: str) -> str:
    """Say both.

    Args:
        how: What `exited` or `killed` says.
        words: What `last_words` says.
    """
    return f"{how}; last output: {words}" if words else how


def last_words(output: Iterable[str]) -> str:
    """The last lines of output in one, or nothing if there were none.

    Args:
        output: The output, or its end.
    """
    lines = [line.strip() for line in output]
    return " | ".join([line for line in lines if line][-OUTPUT_LINES:])
