"""Policies: each one is a small class that picks the upstream of a request.

A policy is made for the upstreams of one snapshot and lives as long as the snapshot. It reads the requests in
flight of the upstreams, and changes its own state only. One thread calls it, so it needs no lock. A pick
costs the same for any number of upstreams, because no policy looks at all upstreams for one request.
"""

import random
from collections.abc import Collection, Sequence
from fractions import Fraction
from heapq import heappop, heappush, heapreplace
from typing import Protocol

from loadbalancer.routing.ring import Ring
from loadbalancer.routing.upstream import Load, Upstream

DRAWS = 16
"""Maximum number of random draws for an untried upstream, before all upstreams are filtered."""


class Policy(Protocol):
    """Picks one of the upstreams that it was made for."""

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Pick the upstream of a request, or None if no upstream is left.

        Args:
            key: The key of the request. Policies that do not hash ignore it.
            tried: Upstreams on which this request has failed. The policy does not pick them.
        """


class ConsistentHash:
    """Consistent hashing with bounded loads.

    The owner of the key gets the request. If the owner is full, the next upstream on the ring that is not
    full gets it. An upstream is full when ⌈c (m + 1) / n⌉ of the m requests in flight on all n upstreams are
    on it (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016). After a failure,
    only the untried upstreams count for m and n, so one of them is not full.

    Args:
        upstreams: The upstreams in rotation.
        ring: The ring whose members are the upstreams' numbers.
        load_factor: c, at least 1; 0: unlimited.

    Raises:
        ValueError: The load factor is negative, or between 0 and 1.
    """

    def __init__(self, upstreams: Sequence[Upstream], ring: Ring, load_factor: float) -> None:
        if load_factor and load_factor < 1:
            raise ValueError(f"the load factor must be 0 or at least 1, not {load_factor}")
        self._by_number = {upstream.number: upstream for upstream in upstreams}
        self._ring = ring
        self._load = Load(upstreams)
        # The load factor as an exact fraction, because 1.1 × 10 as floating-point numbers rounds up to 12.
        factor, divisor = Fraction(str(load_factor)).as_integer_ratio()
        # load < ⌈factor × total / (divisor × n)⌉ is the same as load × divisor × n < factor × total.
        # Without a bound, the condition is load × 0 < total, which is always true.
        self._factor, self._divisor = (factor, divisor) if load_factor else (1, 0)
        self._spread = self._divisor * len(upstreams)

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Pick the first upstream that is not full, clockwise from the key."""
        if tried or not self._by_number:
            return self._pick_untried(key, tried)
        owner = self._by_number[self._ring.owner(key)]
        if owner.in_flight * self._spread < self._factor * (self._load.in_flight + 1):
            return owner
        return self._pick_untried(key, ())

    def _pick_untried(self, key: str, tried: Collection[Upstream]) -> Upstream | None:
        excluded = {upstream for upstream in tried if self._by_number.get(upstream.number) is upstream}
        spread = self._divisor * (len(self._by_number) - len(excluded))
        total = self._load.in_flight + 1 - sum([upstream.in_flight for upstream in excluded])
        for number in self._ring.walk(key):
            upstream = self._by_number[number]
            if upstream not in excluded and upstream.in_flight * spread < self._factor * total:
                return upstream
        return None


class RoundRobin:
    """Each upstream in turn.

    Args:
        upstreams: The upstreams in rotation.
    """

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._upstreams = tuple(upstreams)
        self._next = 0

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Pick the next untried upstream."""
        for _ in self._upstreams:
            upstream = self._upstreams[self._next]
            self._next = (self._next + 1) % len(self._upstreams)
            if upstream not in tried:
                return upstream
        return None


_Debt = tuple[int, int, Upstream]
"""The sum that an upstream has paid, its place in the order of the upstreams, and the upstream."""


class SmoothWeightedRoundRobin:
    """Each upstream in proportion to its weight, evenly spread: weights 5, 1, 1 give a a b a c a a.

    This is nginx's algorithm ("smooth weighted round robin", 2012). In each pick, every upstream earns its
    weight as credit. The upstream with the most credit is picked, and pays the sum of all weights; of several
    with the most credit, the first one. Upstreams of the same weight earn the same, so the one that has paid
    least has the most credit of them. A heap for each weight finds it, so the cost of a pick grows with the
    number of different weights only.

    Args:
        upstreams: The upstreams in rotation.
    """

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._weights = {upstream: upstream.weight for upstream in upstreams}
        self._total = sum(self._weights.values())
        self._picks = 0
        heaps: dict[int, list[_Debt]] = {}
        for place, upstream in enumerate(upstreams):
            heaps.setdefault(upstream.weight, []).append((0, place, upstream))
        self._heaps = tuple(heaps.items())
        self._unearned: dict[Upstream, int] = {}
        """Credit that tried upstreams have not earned; `_settle` adds it to the sums that they have paid."""

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Pick the upstream with the most credit. Tried upstreams neither earn nor pay."""
        self._picks += 1
        total = self._total
        for upstream in self._weights.keys() & tried if tried else ():
            total -= self._weights[upstream]
            self._unearned[upstream] = self._unearned.get(upstream, 0) + self._weights[upstream]
        passed_over = self._settle(tried) if self._unearned else []
        best, most, first = None, 0, 0
        for weight, heap in self._heaps:
            if heap:
                debt, place, _ = heap[0]
                credit = weight * self._picks - debt
                if best is None or credit > most or (credit == most and place < first):
                    best, most, first = heap, credit, place
        picked = None
        if best is not None:
            debt, place, picked = best[0]
            heapreplace(best, (debt + total, place, picked))
        for heap, entry in passed_over:
            heappush(heap, entry)
        return picked

    def _settle(self, tried: Collection[Upstream]) -> "list[tuple[list[_Debt], _Debt]]":
        """Bring an untried upstream to the top of each heap.

        Returns:
            The tried upstreams that were above it, and their heaps. The caller puts them back.
        """
        passed_over = []
        for _, heap in self._heaps:
            while heap:
                debt, place, upstream = heap[0]
                unearned = self._unearned.pop(upstream, 0)
                if unearned:
                    heapreplace(heap, (debt + unearned, place, upstream))
                elif upstream in tried:
                    passed_over.append((heap, heappop(heap)))
                else:
                    break
        return passed_over


class Random:
    """A random upstream, with equal probability.

    Args:
        upstreams: The upstreams in rotation.
        rng: The source of random choices.
    """

    def __init__(self, upstreams: Sequence[Upstream], rng: random.Random) -> None:
        self._upstreams = tuple(upstreams)
        self._rng = rng

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Pick a random untried upstream."""
        return _draw(self._upstreams, tried, self._rng)


class LeastConnections:
    """The upstream with the fewest requests in flight; of several, a random one.

    Each upstream is on a level: a number of requests in flight. If its number grows, the upstream moves when
    a pick finds it on its old level. If its number falls, it moves before the next pick, because `Load.eased`
    lists it.

    Args:
        upstreams: The upstreams in rotation.
        rng: The source of random choices.
    """

    def __init__(self, upstreams: Sequence[Upstream], rng: random.Random) -> None:
        self._rng = rng
        self._eased: dict[Upstream, None] = {}
        Load(upstreams).eased = self._eased
        self._levels: list[list[Upstream]] = []
        self._positions: dict[Upstream, tuple[int, int]] = {}
        """The level of each upstream, and its index on the level."""
        self._lowest = 0
        """All levels below this one are empty."""
        for upstream in upstreams:
            self._put(upstream)

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Pick the untried upstream with the fewest requests in flight."""
        while self._eased:
            upstream, _ = self._eased.popitem()
            self._take(upstream)
            self._put(upstream)
        passed_over: list[Upstream] = []
        picked = None
        while picked is None and self._lowest < len(self._levels):
            level = self._levels[self._lowest]
            if not level:
                self._lowest += 1
                continue
            upstream = level[int(self._rng.random() * len(level))]
            if upstream.in_flight != self._lowest:
                self._take(upstream)
                self._put(upstream)
            elif upstream in tried:
                self._take(upstream)
                passed_over.append(upstream)
            else:
                picked = upstream
        for upstream in passed_over:
            self._put(upstream)
        return picked

    def _put(self, upstream: Upstream) -> None:
        """Put an upstream on the level of its requests in flight."""
        number = upstream.in_flight
        while len(self._levels) <= number:
            self._levels.append([])
        level = self._levels[number]
        self._positions[upstream] = number, len(level)
        level.append(upstream)
        self._lowest = min(self._lowest, number)

    def _take(self, upstream: Upstream) -> None:
        """Take an upstream off its level. The last upstream of the level gets its index."""
        number, index = self._positions.pop(upstream)
        last = self._levels[number].pop()
        if last is not upstream:
            self._levels[number][index] = last
            self._positions[last] = number, index


class PowerOfTwoChoices:
    """The one of two random upstreams with fewer requests in flight.

    The load is nearly as even as with the least busy of all upstreams, and a change of the loads does not
    send all requests to one upstream (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing",
    2001).

    Args:
        upstreams: The upstreams in rotation.
        rng: The source of random choices.
    """

    def __init__(self, upstreams: Sequence[Upstream], rng: random.Random) -> None:
        self._upstreams = tuple(upstreams)
        self._rng = rng

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Pick one of two different untried upstreams; with equal loads, the one that is drawn first."""
        upstreams, rng = self._upstreams, self._rng
        one: Upstream | None
        other: Upstream | None
        if tried or len(upstreams) < 2:
            one = _draw(upstreams, tried, rng)
            other = _draw(upstreams, (*tried, one), rng) if one else None
        else:
            first = int(rng.random() * len(upstreams))
            second = int(rng.random() * (len(upstreams) - 1))
            second += second >= first  # every upstream except the first has equal probability
            one, other = upstreams[first], upstreams[second]
        return one if one is None or other is None or one.in_flight <= other.in_flight else other


def make_policy(
    name: str, upstreams: Sequence[Upstream], *, ring: Ring, load_factor: float, rng: random.Random
) -> Policy:
    """Make a policy by its name.

    Args:
        name: A value of the option `--policy`.
        upstreams: The upstreams in rotation; may be empty.
        ring: The ring whose members are the upstreams' numbers, for `consistent-hash`.
        load_factor: The maximum load relative to the mean load, for `consistent-hash`; 0: unlimited.
        rng: The source of random choices.

    Raises:
        ValueError: There is no such policy, or the load factor is negative or between 0 and 1.
    """
    match name:
        case "consistent-hash":
            return ConsistentHash(upstreams, ring, load_factor)
        case "round-robin":
            return RoundRobin(upstreams)
        case "weighted-round-robin":
            return SmoothWeightedRoundRobin(upstreams)
        case "random":
            return Random(upstreams, rng)
        case "least-connections":
            return LeastConnections(upstreams, rng)
        case "power-of-two":
            return PowerOfTwoChoices(upstreams, rng)
    raise ValueError(f"there is no policy {name!r}")


def _draw(upstreams: Sequence[Upstream], tried: Collection[Upstream], rng: random.Random) -> Upstream | None:
    """Draw a random untried upstream, or None if there is none.

    Usually few upstreams have been tried, so one of the first draws gives an untried one.
    """
    for _ in range(DRAWS if upstreams else 0):
        upstream = upstreams[int(rng.random() * len(upstreams))]
        if upstream not in tried:
            return upstream
    untried = [upstream for upstream in upstreams if upstream not in tried]
    return rng.choice(untried) if untried else None
