"""Names and numbers for newcomers: `Server-XXX-YYY`, and the lowest free place on the ring."""

import random
from collections.abc import Callable, Collection
from itertools import count


class NameMaker:
    """Makes up hostnames `Server-XXX-YYY` of which no two are ever the same.

    XXX are three random digits and YYY is the current time in milliseconds modulo 1000.

    Args:
        rng: Source of the random digits.
        clock_ms: The current time in milliseconds.
    """

    def __init__(self, rng: random.Random, clock_ms: Callable[[], int]) -> None:
        self._rng = rng
        self._clock_ms = clock_ms
        self._given: set[str] = set()

    def make(self, taken: Collection[str]) -> str:
        """Make a name up.

        Args:
            taken: Names in use, in lower case, for hostnames do not differ by case alone.

        Raises:
            RuntimeError: All of the million names have been given out.
        """
        begun = self._clock_ms()
        for attempt in range(1_000_000):
            # A millisecond whose names are used up lends one from the next.
            millisecond = (begun + attempt // 1000) % 1000
            name = f"Server-{self._rng.randrange(1000):03}-{millisecond:03}"
            if name not in self._given and name.lower() not in taken:
                self._given.add(name)
                return name
        raise RuntimeError("every name of the form Server-XXX-YYY has been given out")


def lowest_free(taken: Collection[int]) -> int:
    """The lowest ring number, from 1, that nobody has: a leaver's number goes to the next newcomer."""
    return next(number for number in count(1) if number not in taken)
