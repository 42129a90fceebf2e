"""Names and numbers of new replicas: `Server-XXX-YYY`, and the lowest free ring number."""

import random
from collections.abc import Callable, Collection
from itertools import count


class NameMaker:
    """Generates hostnames of the form `Server-XXX-YYY`, each of them once.

    XXX are three random digits and YYY is the current time in milliseconds modulo 1000.

    Args:
        rng: Source of the random digits.
        clock_ms: Returns the current time in milliseconds.
    """

    def __init__(self, rng: random.Random, clock_ms: Callable[[], int]) -> None:
        self._rng = rng
        self._clock_ms = clock_ms
        self._given: set[str] = set()

    def make(self, taken: Collection[str]) -> str:
        """Generate a name.

        Args:
            taken: Names in use, in lower case, because hostnames are case-insensitive.

        Raises:
            RuntimeError: All of the million names have been used.
        """
        begun = self._clock_ms()
        for attempt in range(1_000_000):
            # When all names of a millisecond are used, the names of the next one follow.
            millisecond = (begun + attempt // 1000) % 1000
            name = f"Server-{self._rng.randrange(1000):03}-{millisecond:03}"
            if name not in self._given and name.lower() not in taken:
                self._given.add(name)
                return name
        raise RuntimeError("every name of the form Server-XXX-YYY has been used")


def lowest_free(taken: Collection[int]) -> int:
    """The lowest ring number, from 1, that is free. The number of a removed replica is used again."""
    return next(number for number in count(1) if number not in taken)
