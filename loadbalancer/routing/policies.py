"""Policies: each one small class that picks an upstream for a request.

A policy is built over the upstreams of one snapshot and lives as long as that. It reads their counts
of requests in flight and changes nothing but its own place in the sequence. All of them answer None
when no upstream is left, and none waits or locks: one thread calls them.
"""

import random
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Protocol

from loadbalancer.routing.ring import Ring
from loadbalancer.routing.upstream import Upstream


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
        self._upstreams = tuple(upstreams)
        self._by_number = {upstream.number: upstream for upstream in upstreams}
        self._ring = ring
        # An exact fraction of the factor as it was written: 1.1 × 10 must not round up to 12.
        self._factor, self._divisor = Fraction(str(load_factor)).as_integer_ratio()
        # Then load < ⌈factor × total / spread⌉ is load × spread < factor × total.
        self._spread = self._divisor * len(upstreams)

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the first upstream with room, clockwise from the key."""
        if tried:
            return self._pick_clockwise(key, [u for u in self._upstreams if u not in tried])
        if not self._upstreams:
            return None
        owner = self._by_number[self._ring.owner(key)]
        load = owner.in_flight
        # An owner with nothing in flight is never full: that saves the usual request the sum.
        if load and self._factor:
            total = 1
            for upstream in self._upstreams:
                total += upstream.in_flight
            if load * self._spread >= self._factor * total:
                return self._pick_clockwise(key, self._upstreams)
        return owner

    def _pick_clockwise(self, key: str, candidates: Sequence[Upstream]) -> Upstream | None:
        if not candidates:
            return None
        bound = self._bound(candidates)
        for number in self._ring.walk(key):
            upstream = self._by_number[number]
            if upstream in candidates and (not self._factor or upstream.in_flight < bound):
                return upstream
        return None  # not reached: together the bounds exceed m, so that one of them has room

    def _bound(self, candidates: Sequence[Upstream]) -> int:
        total = 1
        for upstream in candidates:
            total += upstream.in_flight
        return -(-self._factor * total // (self._divisor * len(candidates)))


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


class SmoothWeightedRoundRobin:
    """Each in proportion to its weight, spread out and not in runs: weights 5, 1, 1 give a a b a c a a.

    nginx's algorithm: every upstream's credit grows by its weight, the one with the most credit is
    chosen and pays the sum of all weights.

    Args:
        upstreams: Those in rotation; their weights are read anew at each pick.
    """

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._credit = dict.fromkeys(upstreams, 0)

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the one with the most credit; those tried neither earn nor pay."""
        total, best, most = 0, None, 0
        for upstream, credit in self._credit.items():
            if upstream in tried:
                continue
            total += upstream.weight
            credit += upstream.weight
            self._credit[upstream] = credit
            if best is None or credit > most:
                best, most = upstream, credit
        if best is not None:
            self._credit[best] -= total
        return best


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
        candidates = _untried(self._upstreams, tried)
        return self._rng.choice(candidates) if candidates else None


class LeastConnections:
    """The one with the fewest requests in flight; among equals, any with equal chances.

    Args:
        upstreams: Those in rotation.
        rng: Source of the choices among equals.
    """

    def __init__(self, upstreams: Sequence[Upstream], rng: random.Random) -> None:
        self._upstreams = tuple(upstreams)
        self._rng = rng

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the least busy of those not tried."""
        candidates = _untried(self._upstreams, tried)
        if not candidates:
            return None
        fewest = min([upstream.in_flight for upstream in candidates])
        return self._rng.choice([upstream for upstream in candidates if upstream.in_flight == fewest])


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
        candidates = _untried(self._upstreams, tried)
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        first = self._rng.randrange(len(candidates))
        second = self._rng.randrange(len(candidates) - 1)
        second += second >= first  # each of the others with equal chances
        one, other = candidates[first], candidates[second]
        return one if one.in_flight <= other.in_flight else other


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


def _untried(upstreams: Sequence[Upstream], tried: Collection[Upstream]) -> Sequence[Upstream]:
    return [upstream for upstream in upstreams if upstream not in tried] if tried else upstreams
