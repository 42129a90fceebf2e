"""The placement of virtual servers on the slots of a ring, by probing or in strata.

**By probing**, for the classic rings, as in the coursework. Every virtual server takes the slot that Φ gives,
or the next free slot that probing finds.

**In strata**, for the `default` ring. The ring has 6,000 strata of 251 slots. Every member has one virtual
server in each stratum, with one home slot.

- The members 1 … 251 never share a home slot. Each stratum arranges them in another order. Hashing gives 24
  base orders. Each base order gives 250 strata: the stratum for step s takes every s-th member of the base
  order, modulo 251. Because 251 is prime, two members have each distance exactly once in these 250 strata. So
  the shares of the members are more even than with random slots. All home slots are in one table, which is
  made once. A ring of such members is this table, with the members that are absent masked out.
- A member n ≥ 252 has a random home slot in each stratum, and shares it with other members. It is lucky in
  the fraction 251 / n of the strata. Of two members with the same home slot, the one with the higher number
  holds the slot if it is lucky there; otherwise the other one holds it. So each of the members 1 … n expects
  1 / n of the ring. For each slot, this gives a fixed order of all members that have it as home slot: the
  lucky ones by descending number, then the member up to 251, then the unlucky ones by ascending number. The
  first one in this order that is on the ring holds the slot. So a change moves no key between members that
  stay.

All functions are pure: the placement depends on the members' numbers only.
"""

import functools
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import shake_128
from operator import add

from loadbalancer.routing.hashing import hash_pair

WIDTH = 251
"""Slots of a stratum, and number of members that never share a home slot: a prime that fits into a byte."""

ORDERS = 24
"""Base orders of the members up to `WIDTH`; each gives `WIDTH` - 1 strata."""

STRATA = ORDERS * (WIDTH - 1)
"""Strata of the ring."""

HELD = 1
"""The mark of a slot that a virtual server holds; the mark of a free slot is 0."""

_INVERSES = [pow(step, -1, WIDTH) for step in range(1, WIDTH)]
"""The inverse of each step modulo `WIDTH`."""

_NOWHERE = 0xFF
"""A place that no stratum has."""

Probing = Callable[[int, int], Iterator[int]]
"""The slots that a virtual server tries, in this order: (home slot, number of slots) → slots."""

Placement = tuple[bytearray, "bytearray | array[int]"]
"""For each slot its mark, and for each slot the number of the member that holds it, or 0."""


def linear(home: int, slots: int) -> Iterator[int]:
    """Probe linearly: the home slot, then +1, +2, +3 … from it. Every slot comes once."""
    yield from range(home, slots)
    yield from range(home)


def quadratic(home: int, slots: int) -> Iterator[int]:
    """Probe quadratically: the home slot, then +1, +4, +9 … from it, and then linearly.

    Squares modulo `slots` repeat after half a cycle and reach only some slots: fewer than one in five
    of 512. The linear part finds a free slot whenever there is one.
    """
    for step in range(slots // 2 + 1):
        yield (home + step * step) % slots
    yield from linear(home, slots)


def place_by_probing(
    members: Sequence[int],
    slots: int,
    virtual_servers: int,
    point: Callable[[int, int], int],
    probing: Probing,
) -> Placement:
    """Place the virtual servers of each member in turn, each on the first free slot.

    Args:
        members: The members' ring numbers, ascending. The ring has enough slots for all.
        slots: M, the number of slots.
        virtual_servers: K, the number of virtual servers of each member.
        point: Φ, a function of a member's number and j = 1 … K.
        probing: The order of the slots that a virtual server tries.
    """
    owners = array("H", bytes(2 * slots))
    held = bytearray(slots)
    for number in members:
        for j in range(1, virtual_servers + 1):
            home = point(number, j) % slots
            slot = next(slot for slot in probing(home, slots) if not held[slot])
            owners[slot], held[slot] = number, HELD
    return held, owners


def place_in_strata(members: Sequence[int], former: Sequence[int], placement: Placement) -> Placement:
    """Place the virtual servers of all members, by a change of an earlier placement if that costs less.

    Args:
        members: The members' ring numbers, ascending.
        former: The members of the earlier placement.
        placement: The earlier placement, which stays unchanged.
    """
    lowest = [number for number in members if number <= WIDTH]
    if len(lowest) == len(members):
        return _without_sharing(members)
    staying = set(members).intersection(former)
    joining = [number for number in members if number not in staying]
    leaving = [number for number in former if number not in staying]
    held, owners = placement
    if isinstance(owners, array) and len(joining) + len(leaving) < len(members) - len(lowest):
        ring = _Contest(held[:], owners[:], staying)
        for number in leaving:
            ring.remove(number)
    else:
        held, owners = _without_sharing(lowest)
        ring = _Contest(held, _widened(owners), set(lowest))
        joining = list(members[len(lowest) :])
    for number in joining:
        ring.add(number)
    return ring.held, ring.owners


def slots_of(number: int) -> list[int]:
    """Compute a member's home slots, ascending: Φ of the `default` ring for j = 1 … K."""
    return list(map(add, range(0, STRATA * WIDTH, WIDTH), _places(number)))


@functools.lru_cache(maxsize=1024)
def _places(number: int) -> bytes:
    """Compute the place of a member's home slot in each stratum, from 0."""
    if number > WIDTH:
        return bytes([draw % WIDTH for draw in _draws(number, 0)])
    starts = [order.index(number) for order in _orders()]
    return bytes([start * inverse % WIDTH for start in starts for inverse in _INVERSES])


@functools.lru_cache(maxsize=1024)
def _luck(number: int) -> bytes:
    """Compute for each stratum whether a member above `WIDTH` is lucky there."""
    limit = (WIDTH << 16) // number
    return bytes([draw < limit for draw in _draws(number, 1)])


def _draws(number: int, series: int) -> "array[int]":
    """Draw a pseudo-random number below 2¹⁶ for each stratum, for a member (SHAKE-128, FIPS 202)."""
    draws = array("H", shake_128(b"%d %d" % (number, series)).digest(2 * STRATA))
    if sys.byteorder == "big":
        draws.byteswap()
    return draws


@functools.lru_cache(maxsize=1)
def _orders() -> tuple[bytes, ...]:
    """Compute the base orders of the members 1 … `WIDTH`."""
    hashes = ([hash_pair(number, order) for number in range(WIDTH + 1)] for order in range(ORDERS))
    return tuple(bytes(sorted(range(1, WIDTH + 1), key=each.__getitem__)) for each in hashes)


@functools.lru_cache(maxsize=1)
def _table() -> bytearray:
    """Compute for each slot which of the members 1 … `WIDTH` has it as home slot."""
    rows = []
    for order in _orders():
        repeated = order * WIDTH
        rows += [repeated[: WIDTH * step : step] for step in range(1, WIDTH)]
    return bytearray().join(rows)


def _without_sharing(members: Iterable[int]) -> Placement:
    """Place members up to `WIDTH`, which share no home slot."""
    marks, names = bytearray(256), bytearray(256)
    for number in members:
        marks[number], names[number] = HELD, number
    return _table().translate(marks), _table().translate(names)


def _widened(owners: "bytearray | array[int]") -> "array[int]":
    """Widen the numbers of owners from 8 to 16 bits."""
    wide = bytearray(2 * len(owners))
    wide[0 if sys.byteorder == "little" else 1 :: 2] = owners
    return array("H", bytes(wide))


class _Contest:
    """A placement with members above `WIDTH`, during a change. It modifies its arguments in place.

    Args:
        held: The mark of each slot.
        owners: For each slot the number of the member that holds it, or 0.
        members: The members' numbers.
    """

    def __init__(self, held: bytearray, owners: "array[int]", members: set[int]) -> None:
        self.held = held
        self.owners = owners
        self.members = members

    def add(self, number: int) -> None:
        """Add a member. It takes each home slot that is free, or where it precedes the holder."""
        held, owners = self.held, self.owners
        luck = _luck(number) if number > WIDTH else b""
        for stratum, slot in enumerate(slots_of(number)):
            holder = owners[slot]
            if not holder or (luck[stratum] if number > holder else not _luck(holder)[stratum]):
                owners[slot] = number
                held[slot] = HELD
        self.members.add(number)

    def remove(self, number: int) -> None:
        """Remove a member. Each slot that it held goes to the first of the members with that home slot."""
        held, owners, members = self.held, self.owners, self.members
        members.discard(number)
        slots, table = slots_of(number), _table()
        vacant = bytearray(_places(number))
        for stratum, slot in enumerate(slots):
            if owners[slot] == number:
                owners[slot] = table[slot] if table[slot] in members else 0
                held[slot] = HELD if owners[slot] else 0
            else:
                vacant[stratum] = _NOWHERE
        vacant_places = int.from_bytes(vacant, "big")
        # The luck of the higher number decides, so the members come in ascending order.
        for other in sorted(member for member in members if member > WIDTH):
            luck = _luck(other)
            # A zero byte marks a stratum in which this member has the vacant slot as home slot.
            differing = (vacant_places ^ int.from_bytes(_places(other), "big")).to_bytes(STRATA, "big")
            stratum = differing.find(0)
            while stratum >= 0:
                slot = slots[stratum]
                if not owners[slot] or luck[stratum]:
                    owners[slot] = other
                    held[slot] = HELD
                stratum = differing.find(0, stratum + 1)
