"""Policies: each one small class that picks an upstream for a request.

A policy is built over the upstreams of one snapshot and lives as long as that. It reads their counts
of requests in flight and changes nothing but what it remembers itself. All of them answer None
when no upstream is left, and none waits or locks: one thread calls them. A pick costs the same however
many upstreams there are, so none of them looks at all upstreams for one request.
"""

import random
from collections.abc import Collection, Sequence
from fractions import Fraction
from heapq import heappop, heappush, heapreplace
from typing import Protocol

from loadbalancer.routing.ring import Ring
from loadbalancer.routing.upstream import Load, Upstream

DRAWS = 16
"""How often one that has not been tried is drawn for before all are looked at."""


class Policy(Protocol):
    """Chooses among the upstreams that it was built over."""

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the upstream of a request, or None when none is left.

        Args:
            key: What the request is hashed on; policies that do not hash ignore it.
            tried: Upstreams not to choose, because this request has failed on them.
        """


class ConsistentHash:
    """Consistent hashing with bounded loads.

    A request goes to the owner of its key, or, if that one is full, to the next on the ring that is not.
    Full means to hold ⌈c (m + 1) / n⌉ requests of the m in flight on n upstreams. (Mirrokni, Thorup,
    Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016.) After a failure the bound is taken
    over the upstreams not yet tried, so that there is always one with room.

    Args:
        upstreams: Those in rotation.
        ring: The ring whose members are the upstreams' numbers.
        load_factor: c, at least 1; 0 turns the bound off.

    Raises:
        ValueError: The load factor is neither.
    """

    def __init__(self, upstreams: Sequence[Upstream], ring: Ring, load_factor: float = 0.0) -> None:
        if load_factor and load_factor < 1:
            raise ValueError(f"the load factor must be 0 or at least 1, not {load_factor}")
        self._by_number = {upstream.number: upstream for upstream in upstreams}
        self._ring = ring
        self._load = Load(upstreams)
        # An exact fraction of the factor as it was written: 1.1 × 10 must not round up to 12.
        factor, divisor = Fraction(str(load_factor)).as_integer_ratio()
        # Then load < ⌈factor × total / (divisor × n)⌉ is load × divisor × n < factor × total. Without a
        # bound, load × 0 < total.
        self._factor, self._divisor = (factor, divisor) if load_factor else (1, 0)
        self._spread = self._divisor * len(upstreams)

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the first upstream with room, clockwise from the key."""
        if tried or not self._by_number:
            return self._pick_untried(key, tried)
        owner = self._by_number[self._ring.owner(key)]
        if owner.in_flight * self._spread < self._factor * (self._load.in_flight + 1):
            return owner
        return self._pick_untried(key, ())

    def _pick_untried(self, key: str, tried: Collection[Upstream]) -> Upstream | None:
        away = {upstream for upstream in tried if self._by_number.get(upstream.number) is upstream}
        spread = self._divisor * (len(self._by_number) - len(away))
        total = self._load.in_flight + 1 - sum([upstream.in_flight for upstream in away])
        for number in self._ring.walk(key):
            upstream = self._by_number[number]
            if upstream not in away and upstream.in_flight * spread < self._factor * total:
                return upstream
        return None


class RoundRobin:
    """One after the other, in the order of the upstreams.

    Args:
        upstreams: Those in rotation.
    """

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._upstreams = tuple(upstreams)
        self._next = 0

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the next one that has not been tried."""
        for _ in self._upstreams:
            upstream = self._upstreams[self._next]
            self._next = (self._next + 1) % len(self._upstreams)
            if upstream not in tried:
                return upstream
        return None


_Debt = tuple[int, int, Upstream]
"""What an upstream has paid in all, its place in the order, and the upstream."""


class SmoothWeightedRoundRobin:
    """Each in proportion to its weight, spread out and not in runs: weights 5, 1, 1 give a a b a c a a.

    nginx's algorithm: every upstream's credit grows by its weight, the one with the most credit is
    chosen and pays the sum of all weights; among equals, the first. The credits of upstreams of the same
    weight grow alike, so that the one with the least debt has the most credit among them: a heap for each
    weight finds it. A pick costs as much as there are different weights.

    Args:
        upstreams: Those in rotation.
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
        """What those tried have not earned, until it is added to their debts."""

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the one with the most credit; those tried neither earn nor pay."""
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
        """Have one that may be picked first on each heap; return those tried that were in the way."""
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
    """Any of them, with equal chances.

    Args:
        upstreams: Those in rotation.
        rng: Source of the choices.
    """

    def __init__(self, upstreams: Sequence[Upstream], rng: random.Random) -> None:
        self._upstreams = tuple(upstreams)
        self._rng = rng

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose at random among those not tried."""
        return _draw(self._upstreams, tried, self._rng)


class LeastConnections:
    """The one with the fewest requests in flight; among equals, any with equal chances.

    The upstreams lie on levels, by their requests in flight. One that has got more since is moved when it is
    met on its old level; one that has got fewer is moved before the next pick, as its load tells.

    Args:
        upstreams: Those in rotation.
        rng: Source of the choices among equals.
    """

    def __init__(self, upstreams: Sequence[Upstream], rng: random.Random) -> None:
        self._rng = rng
        self._eased: dict[Upstream, None] = {}
        Load(upstreams).eased = self._eased
        self._levels: list[list[Upstream]] = []
        self._positions: dict[Upstream, tuple[int, int]] = {}
        """The level of each, and the index there."""
        self._lowest = 0
        """No level below this has anybody on it."""
        for upstream in upstreams:
            self._put(upstream)

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the least busy of those not tried."""
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
        """Lay an upstream on the level of its requests in flight."""
        number = upstream.in_flight
        while len(self._levels) <= number:
            self._levels.append([])
        level = self._levels[number]
        self._positions[upstream] = number, len(level)
        level.append(upstream)
        self._lowest = min(self._lowest, number)

    def _take(self, upstream: Upstream) -> None:
        """Take an upstream off its level; the last one there gets its index."""
        number, index = self._positions.pop(upstream)
        last = self._levels[number].pop()
        if last is not upstream:
            self._levels[number][index] = last
            self._positions[last] = number, index


class PowerOfTwoChoices:
    """The less busy of two chosen at random: nearly as even as asking all, and no herd forms.

    (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.)

    Args:
        upstreams: Those in rotation.
        rng: Source of the choices.
    """

    def __init__(self, upstreams: Sequence[Upstream], rng: random.Random) -> None:
        self._upstreams = tuple(upstreams)
        self._rng = rng

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose between two different ones, not tried; among equals, the one drawn first."""
        upstreams, rng = self._upstreams, self._rng
        one: Upstream | None
        other: Upstream | None
        if tried or len(upstreams) < 2:
            one = _draw(upstreams, tried, rng)
            other = _draw(upstreams, (*tried, one), rng) if one else None
        else:
            first = int(rng.random() * len(upstreams))
            second = int(rng.random() * (len(upstreams) - 1))
            second += second >= first  # each of the others with equal chances
            one, other = upstreams[first], upstreams[second]
        return one if one is None or other is None or one.in_flight <= other.in_flight else other


def make_policy(
    name: str, upstreams: Sequence[Upstream], *, ring: Ring, load_factor: float, rng: random.Random
) -> Policy:
    """Build the policy that an option names.

    Args:
        name: As in the option `--policy`.
        upstreams: Those in rotation; there may be none.
        ring: The ring whose members are the upstreams' numbers; for `consistent-hash`.
        load_factor: Bound of a replica's load relative to the mean, 0 for none; for `consistent-hash`.
        rng: Source of random choices.

    Raises:
        ValueError: There is no such policy, or the load factor is impossible.
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
    """One that has not been tried, with equal chances; None if there is none.

    Few have been tried as a rule, so that one of the first draws finds one that has not.
    """
    for _ in range(DRAWS if upstreams else 0):
        upstream = upstreams[int(rng.random() * len(upstreams))]
        if upstream not in tried:
            return upstream
    untried = [upstream for upstream in upstreams if upstream not in tried]
    return rng.choice(untried) if untried else None
