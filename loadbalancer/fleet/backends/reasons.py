"""Why an instance has ended, in words. Processes and containers share them."""

import signal
from collections.abc import Iterable

OUTPUT_LINES = 5
"""The number of lines of the last output that a reason quotes."""


def exited(code: int) -> str:
    """Describe a program that ended by itself.

    Args:
        code: Its exit code.
    """
    return f"exited with code {code}"


def killed(number: int) -> str:
    """Describe a program that a signal ended.

    Args:
        number: The signal's number.
    """
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def with_last_words(how: str, words: str) -> str:
    """Join the description of the end and the last output.

    Args:
        how: A description by `exited` or `killed`.
        words: The last output, from `last_words`; may be empty.
    """
    return f"{how}; last output: {words}" if words else how


def last_words(output: Iterable[str]) -> str:
    """Join the last lines of output that are not empty.

    Args:
        output: The lines of the output, or the last of them.
    """
    lines = [line.strip() for line in output]
    return " | ".join([line for line in lines if line][-OUTPUT_LINES:])
