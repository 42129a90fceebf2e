"""The ring of consistent hashing: M slots, K virtual servers for each member, one owner for each slot.

A key belongs to the owner of the first occupied slot at or after its own, clockwise. The answer is
worked out beforehand for every slot, so that a look-up is one hash and one index. A ring never
changes, and it is a pure function of its preset and the set of its members' numbers (Karger et al.,
"Consistent Hashing and Random Trees", 1997).

What moves when a member joins or leaves:

- `default`: the keys of the one that joins or leaves, and no others. Its virtual servers do not probe.
  Where several fall on one slot, the one with the smallest point holds it and the others are shadowed;
  a shadowed one appears only in the place of a holder that has left.
- The classic presets probe for a free slot, in the order of the members' numbers, as the coursework
  has it. So the member with the highest number takes and leaves behind its own keys alone. When
  another one leaves, a virtual server of a later member that it had displaced moves nearer to its own
  slot, and may make room for a third in turn; the keys in front of the old place or the new one of
  such a virtual server can then move between two members that stay. When it returns, all is undone.

The `default` preset, measured exactly over all its slots: peak-to-mean is at most 1.0383 for members
1 … N at every N from 2 to 100 (the worst is N = 35), and was at most 1.0393 over 400 random sets of 2
to 100 members. Half as many virtual servers do for members 1 … N (1.0393), but a fleet that has lost
some has gaps in its numbers, and one in eighty of the random sets then exceeded 1.05.
"""

import functools
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

from loadbalancer.routing import hashing

Probing = Callable[[int, int], Iterator[int]]
"""Slots in the order in which a virtual server tries them: (its own slot, number of slots) → slots."""

POINT_BITS = 30
"""Bits of Φ that a virtual server without probing is placed by (more make Python's integers slower)."""


MAX_NUMBER = (1 << 32) - 1
"""Largest ring number: Φ of the `default` preset takes 32 bits of it."""

_HELD = 0xFF


class RingFullError(ValueError):
    """There are no slots left for so many members."""


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


@dataclass(frozen=True)
class RingPreset:
    """The arithmetic of a ring.

    Args:
        name: As in the option `--ring`.
        slots: M.
        virtual_servers: K, of each member.
        hash_key: H, still to be taken modulo M.
        hash_point: Φ of a member's number and j = 1 … K.
        probes: True: the own slot is Φ mod M, and when it is taken, the next free one. False: the own
            slot is given by the highest bits of a 64-bit Φ, and the smallest Φ holds it.
    """

    name: str
    slots: int
    virtual_servers: int
    hash_key: Callable[[str], int]
    hash_point: Callable[[int, int], int]
    probes: bool

    @property
    def capacity(self) -> int:
        """How many members fit: so many that their virtual servers do not outnumber the slots."""
        return self.slots // self.virtual_servers


PRESETS: Mapping[str, RingPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            RingPreset("classic", 512, 9, hashing.classic_key, hashing.classic_point, probes=True),
            RingPreset("classic-modified", 512, 9, hashing.modified_key, hashing.modified_point, probes=True),
            RingPreset("classic-sha256", 512, 9, hashing.sha256_key, hashing.sha256_point, probes=True),
            RingPreset("default", 1 << 20, 8192, hashing.hash_text, hashing.hash_point, probes=False),
        )
    }
)


def capacity(preset_name: str) -> int:
    """How many members a preset has slots for.

    Raises:
        ValueError: There is no such preset.
    """
    return _preset(preset_name).capacity


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring with its members: made by `Ring.build`."""

    preset: RingPreset
    probing: Probing
    numbers: tuple[int, ...]
    """The members' numbers, ascending."""
    _owners: bytes = field(repr=False)
    """For each slot, who owns the keys that fall on it: a place in `numbers`, counted from 1."""
    _heads: bytes = field(repr=False)
    """For each slot, `_HELD` if a virtual server holds it, else 0."""

    @classmethod
    def build(cls, preset_name: str, numbers: Iterable[int], probing: Probing = linear) -> "Ring":
        """Build the ring of a set of members.

        Args:
            preset_name: A key of `PRESETS`.
            numbers: The members' ring numbers, from 1, in any order; there may be none.
            probing: `linear` or `quadratic`; of no effect on the `default` preset.

        Raises:
            RingFullError: There are no slots left for so many members.
            ValueError: There is no such preset, or a number is out of range.
        """
        preset = _preset(preset_name)
        return cls(preset, probing, (), bytes(preset.slots), bytes(preset.slots)).changed_to(numbers)

    def changed_to(self, numbers: Iterable[int]) -> "Ring":
        """The ring of other members: the one that `build` makes, for less when most members stay.

        Args:
            numbers: The ring numbers of all its members, from 1, in any order.

        Raises:
            RingFullError: There are no slots left for so many members.
            ValueError: A number is out of range.
        """
        preset, members = self.preset, tuple(sorted(set(numbers)))
        if len(members) > preset.capacity:
            raise RingFullError(
                f"no slots left for {len(members)} replicas: ring {preset.name!r} holds {preset.capacity}"
            )
        if members and not 1 <= members[0] <= members[-1] <= MAX_NUMBER:
            raise ValueError(f"ring numbers are from 1 to {MAX_NUMBER}, not {members[0]} to {members[-1]}")
        if members == self.numbers:
            return self
        holders = _probe(preset, members, self.probing) if preset.probes else self._contend(members)
        heads = holders.translate(bytes([0, *[_HELD] * 255]))
        return Ring(
            preset, self.probing, members, _paint(holders) if members else bytes(holders), bytes(heads)
        )

    def _contend(self, members: tuple[int, ...]) -> bytearray:
        """Who of `members` holds each slot: whoever did, where that one stays and no joiner beats it."""
        excess = POINT_BITS - (self.slots.bit_length() - 1)
        points = {place: _points(self.preset, number) for place, number in enumerate(members, 1)}
        places = {number: place for place, number in enumerate(members, 1)}
        stays = bytes([0, *(places.get(number, 0) for number in self.numbers)]).ljust(256, b"\0")
        holders = bytearray(_and(self._owners.translate(stays), self._heads))
        leavers = set(self.numbers).difference(members)
        freed = {point >> excess for number in leavers for point in _points(self.preset, number)}
        for place, number in enumerate(members, 1):
            entries: Iterable[int] = points[place]
            if number in self.numbers:
                entries = [point for point in entries if point >> excess in freed] if freed else ()
            _enter(holders, place, entries, points, excess)
        return holders

    @property
    def slots(self) -> int:
        """M, the number of slots."""
        return self.preset.slots

    @property
    def virtual_servers(self) -> int:
        """K, the number of virtual servers of each member."""
        return self.preset.virtual_servers

    def owner(self, key: str) -> int:
        """The number of the member that a key belongs to.

        Raises:
            IndexError: The ring has no members.
        """
        preset = self.preset
        return self.numbers[self._owners[preset.hash_key(key) % preset.slots] - 1]

    def walk(self, key: str) -> Iterator[int]:
        """The members' numbers in the order in which they are met clockwise, the key's owner first."""
        start = self.preset.hash_key(key) % self.slots
        seen: set[int] = set()
        for begin, end in ((start, self.slots), (0, start)):
            head = self._heads.find(_HELD, begin, end)
            while head >= 0 and len(seen) < len(self.numbers):
                number = self.numbers[self._owners[head] - 1]
                if number not in seen:
                    seen.add(number)
                    yield number
                head = self._heads.find(_HELD, head + 1, end)

    def slot_owner(self, slot: int) -> int:
        """The number of the member that owns the keys which fall on a slot.

        Raises:
            IndexError: The ring has no members, or no such slot.
        """
        return self.numbers[self._owners[slot] - 1]

    def slot_share(self) -> dict[int, Fraction]:
        """The exact share of all slots that each member owns, by number."""
        count = self._owners.count
        return {number: Fraction(count(place), self.slots) for place, number in enumerate(self.numbers, 1)}

    @property
    def peak_to_mean(self) -> float:
        """The largest slot share over the mean one: 1 is perfect. 0 when there are no members."""
        return float(max(self.slot_share().values(), default=Fraction(0)) * len(self.numbers))


def _preset(name: str) -> RingPreset:
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"there is no ring {name!r}, only {', '.join(PRESETS)}") from None


def _probe(preset: RingPreset, members: tuple[int, ...], probing: Probing) -> bytearray:
    """Place every virtual server on its own slot or on the next free one that probing finds."""
    holders = bytearray(preset.slots)
    for place, number in enumerate(members, 1):
        for j in range(1, preset.virtual_servers + 1):
            home = preset.hash_point(number, j) % preset.slots
            holders[next(slot for slot in probing(home, preset.slots) if not holders[slot])] = place
    return holders


def _enter(
    holders: bytearray, place: int, entries: Iterable[int], points: Mapping[int, "array[int]"], excess: int
) -> None:
    """Give a member the slots that it does not hold yet and where none has a smaller point.

    Of equal points that of the smaller number counts as smaller, so that the order of entry is of no account.

    Args:
        holders: For each slot the place of the member that holds it, 0 for none; changed.
        place: The place of the member that enters.
        entries: Which of its points enter.
        points: All points of each member, sorted, by place.
        excess: How many of a point's low bits are not those of its slot.
    """
    for point in entries:
        slot = point >> excess
        rival = holders[slot]
        if rival:
            theirs = points[rival]
            held = theirs[bisect_left(theirs, slot << excess)]
            if held < point or (held == point and rival <= place):
                continue
        holders[slot] = place


@functools.lru_cache(maxsize=256)
def _points(preset: RingPreset, number: int) -> "array[int]":
    """The highest bits of Φ of a member's virtual servers, sorted: in the order of memory, for speed."""
    excess = 64 - POINT_BITS
    indexes = range(1, preset.virtual_servers + 1)
    return array("I", sorted([preset.hash_point(number, j) >> excess for j in indexes]))


def _paint(holders: bytearray) -> bytes:
    """Give every free slot the owner of the next occupied one clockwise. At least one is occupied.

    All slots together are one long integer, a byte each. Whatever is known is copied 1 slot back, then
    2, 4, 8 …, on to slots still unknown, until none is: ten steps for a million slots, however many
    members. (A loop over the occupied slots takes thirty times as long with a hundred members.)
    """
    slots = len(holders)
    first, last = slots - len(holders.lstrip(b"\0")), len(holders.rstrip(b"\0"))
    holders[last:] = holders[first : first + 1] * (slots - last)  # around the end, to the first
    owners = int.from_bytes(holders, "little")
    unknown = int.from_bytes(holders.translate(bytes([0xFF, *[0] * 255])), "little")
    bits = 8
    while unknown:
        owners |= (owners >> bits) & unknown
        unknown &= unknown >> bits
        bits *= 2
    return owners.to_bytes(slots, "little")


def _and(one: bytes, other: bytes) -> bytes:
    """The bitwise and of two strings of bytes of the same length."""
    both = int.from_bytes(one, "little") & int.from_bytes(other, "little")
    return both.to_bytes(len(one), "little")
