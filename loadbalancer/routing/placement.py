"""Which virtual server holds which slot of a ring: by probing, or in strata.

**By probing**, as the coursework has it: every virtual server takes the slot that Φ gives, or the next
free one that probing finds. This is for the classic rings, which are small.

**In strata**, for the `default` ring. Its slots are 6,000 strata of 251, and every member has one virtual
server in each.

- Members 1 … 251 never want the same slot. In each stratum they stand in an order of its own. 24 orders
  are drawn by hashing; each makes 250 strata, in which it is read with steps of 1, 2 … 250 places,
  modulo 251. As 251 is prime, any two members meet at every distance exactly once in these 250 strata,
  so that the shares are more even than those of as many random slots. Who wants which slot is one
  table, made once; a ring of such members is that table with the absent ones masked out.
- Members 252 and above want a random slot of each stratum, and contend for it. Of two members that want one
  slot, the one with the higher number holds it if it is lucky there, otherwise the other holds it. Member
  n is lucky in 251 / n of its slots, so that each of the members 1 … n then expects 1 / n of the ring.
  So all that could ever want a slot stand in one order there: the lucky ones from the highest number down,
  then the one up to 251, then the unlucky ones from the lowest number up. The first that is a member holds
  the slot, so that a change moves no key between members that stay.

Everything here is a pure function of the members' numbers.
"""

import functools
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import shake_128
from operator import add

from loadbalancer.routing.hashing import hash_pair

WIDTH = 251
"""Slots of a stratum, and members that never contend: a prime, below 256 so that each fits into a byte."""

ORDERS = 24
"""Orders of the members that never contend; each makes `WIDTH` - 1 strata."""

STRATA = ORDERS * (WIDTH - 1)

HELD = 1
"""Mark of a slot where a virtual server is."""

_INVERSES = [pow(step, -1, WIDTH) for step in range(1, WIDTH)]

_NOWHERE = 0xFF
"""No place in a stratum."""

Probing = Callable[[int, int], Iterator[int]]
"""Slots in the order in which a virtual server tries them: (its own slot, number of slots) → slots."""

Placement = tuple[bytearray, "bytearray | array[int]"]
"""For each slot `HELD` or 0, and for each slot the number of the member that holds it or 0."""


def linear(home: int, slots: int) -> Iterator[int]:
    """Linear probing: the own slot, then +1, +2, +3 … from it: every slot once."""
    yield from range(home, slots)
    yield from range(home)


def quadratic(home: int, slots: int) -> Iterator[int]:
    """Quadratic probing: the own slot, then +1, +4, +9 … from it; if none of them is free, linear.

    Squares modulo `slots` repeat after half a cycle and do not reach every slot: not one in five of
    512. The linear end makes sure that a free slot is found whenever there is one.
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
    """Place the virtual servers of one member after the other, each on the first free slot.

    Args:
        members: Ring numbers, ascending; there are slots enough for all.
        slots: M.
        virtual_servers: K, of each member.
        point: Φ of a member's number and j = 1 … K.
        probing: The order in which slots are tried.
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
    """Place the virtual servers of all members, by changing a placement of others if that costs less.

    Args:
        members: Ring numbers, ascending.
        former: The members of the placement to begin with.
        placement: That placement; it is left as it is.
    """
    lowest = [number for number in members if number <= WIDTH]
    if len(lowest) == len(members):
        return _alone(members)
    staying = set(members).intersection(former)
    joining = [number for number in members if number not in staying]
    leaving = [number for number in former if number not in staying]
    held, owners = placement
    if isinstance(owners, array) and len(joining) + len(leaving) < len(members) - len(lowest):
        ring = _Contest(held[:], owners[:], staying)
        for number in leaving:
            ring.remove(number)
    else:
        held, owners = _alone(lowest)
        ring = _Contest(held, _widened(owners), set(lowest))
        joining = list(members[len(lowest) :])
    for number in joining:
        ring.add(number)
    return ring.held, ring.owners


def slots_of(number: int) -> list[int]:
    """The slots that a member's virtual servers want, ascending: Φ of the `default` ring for j = 1 … K."""
    return list(map(add, range(0, STRATA * WIDTH, WIDTH), _places(number)))


@functools.lru_cache(maxsize=1024)
def _places(number: int) -> bytes:
    """The place in each stratum, from 0, that a member wants."""
    if number > WIDTH:
        return bytes([draw % WIDTH for draw in _draws(number, 0)])
    starts = [order.index(number) for order in _orders()]
    return bytes([start * inverse % WIDTH for start in starts for inverse in _INVERSES])


@functools.lru_cache(maxsize=1024)
def _luck(number: int) -> bytes:
    """Whether a member above `WIDTH` is lucky in each stratum."""
    limit = (WIDTH << 16) // number
    return bytes([draw < limit for draw in _draws(number, 1)])


def _draws(number: int, which: int) -> "array[int]":
    """Numbers below 2¹⁶, one for each stratum, drawn for a member (SHAKE-128, FIPS 202)."""
    draws = array("H", shake_128(b"%d %d" % (number, which)).digest(2 * STRATA))
    if sys.byteorder == "big":
        draws.byteswap()
    return draws


@functools.lru_cache(maxsize=1)
def _orders() -> tuple[bytes, ...]:
    """The orders of the members 1 … `WIDTH`."""
    hashes = ([hash_pair(number, order) for number in range(WIDTH + 1)] for order in range(ORDERS))
    return tuple(bytes(sorted(range(1, WIDTH + 1), key=each.__getitem__)) for each in hashes)


@functools.lru_cache(maxsize=1)
def _table() -> bytearray:
    """For each slot, which of the members 1 … `WIDTH` wants it."""
    rows = []
    for order in _orders():
        repeated = order * WIDTH
        rows += [repeated[: WIDTH * step : step] for step in range(1, WIDTH)]
    return bytearray().join(rows)


def _alone(members: Iterable[int]) -> Placement:
    """The placement of members up to `WIDTH`: nobody contends for a slot."""
    marks, names = bytearray(256), bytearray(256)
    for number in members:
        marks[number], names[number] = HELD, number
    return _table().translate(marks), _table().translate(names)


def _widened(owners: "bytearray | array[int]") -> "array[int]":
    """Owners of one byte each as 16-bit numbers."""
    wide = bytearray(2 * len(owners))
    wide[0 if sys.byteorder == "little" else 1 :: 2] = owners
    return array("H", bytes(wide))


class _Contest:
    """A ring with members above `WIDTH`, while it is being changed.

    Args:
        held: For each slot `HELD` or 0; changed.
        owners: For each slot the member that holds it, or 0; changed.
        members: Their numbers; changed.
    """

    def __init__(self, held: bytearray, owners: "array[int]", members: set[int]) -> None:
        self.held = held
        self.owners = owners
        self.members = members

    def add(self, number: int) -> None:
        """Give a member those of its slots that are free or where it comes before the holder."""
        held, owners = self.held, self.owners
        luck = _luck(number) if number > WIDTH else b""
        for stratum, slot in enumerate(slots_of(number)):
            holder = owners[slot]
            if not holder or (luck[stratum] if number > holder else not _luck(holder)[stratum]):
                owners[slot] = number
                held[slot] = HELD
        self.members.add(number)

    def remove(self, number: int) -> None:
        """Take a member off; each slot that it held goes to whoever comes first among those that want it."""
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
        wanted = int.from_bytes(vacant, "big")
        # In ascending order, as the higher number decides.
        for other in sorted(member for member in members if member > WIDTH):
            luck = _luck(other)
            differing = (wanted ^ int.from_bytes(_places(other), "big")).to_bytes(STRATA, "big")
            stratum = differing.find(0)
            while stratum >= 0:
                slot = slots[stratum]
                if not owners[slot] or luck[stratum]:
                    owners[slot] = other
                    held[slot] = HELD
                stratum = differing.find(0, stratum + 1)
