"""The ring of consistent hashing: M slots, K virtual servers for each member, one owner for each slot.

A virtual server holds one slot. A key belongs to the owner of the first held slot at or after the key's slot,
clockwise (Karger et al., "Consistent Hashing and Random Trees", 1997). A look-up costs one hash and one index
if the slot is held or was looked up before. Otherwise it searches the next held slot, and writes its owner
into the slots up to it for later look-ups. So a change of members writes held slots only. The answers of a
ring never change: they depend on its preset and the set of its members' numbers only.

Keys that move when a member joins or leaves:

- `default`: the keys of this member, and no others. Its virtual servers do not probe (see `placement`).
- The classic presets probe for a free slot in the order of the members' numbers, as in the coursework. If the
  member with the highest number joins or leaves, its own keys move, and no others. If another member leaves,
  virtual servers that it had displaced move towards their home slots, which may free slots for others. So
  keys can move between two members that stay. If it returns, the ring is as before.

The `default` preset, measured exactly over all slots: the peak-to-mean ratio is at most 1.027 for members
1 … N at every N from 2 to 100 (the worst is N = 36), and at most 1.039 over 400 random sets of 2 to 100
members out of 128 or 251. For members 1 … N it is 1.010 at N = 200, 1.032 at 500 and 1.068 at 1,000.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, compress
from operator import sub
from types import MappingProxyType

from loadbalancer.routing import hashing
from loadbalancer.routing.placement import (
    HELD,
    STRATA,
    WIDTH,
    Placement,
    Probing,
    linear,
    place_by_probing,
    place_in_strata,
)

MAX_NUMBER = (1 << 16) - 1
"""Largest ring number."""


class RingFullError(ValueError):
    """The ring has too few slots for so many members."""


@dataclass(frozen=True)
class RingPreset:
    """The arithmetic of a ring.

    Args:
        name: A value of the option `--ring`.
        slots: M, the number of slots.
        virtual_servers: K, the number of virtual servers of each member.
        capacity: The maximum number of members.
        hash_key: H. The slot of a key is H mod M.
        hash_point: Φ, a function of a member's number and j = 1 … K. The home slot of a virtual server is
            Φ mod M. None if the virtual servers are placed in strata.
    """

    name: str
    slots: int
    virtual_servers: int
    capacity: int
    hash_key: Callable[[str], int]
    hash_point: Callable[[int, int], int] | None

    def place(
        self, members: Sequence[int], probing: Probing, former: Sequence[int], placement: Placement
    ) -> Placement:
        """Place the virtual servers of `members`, starting from the placement of the `former` members."""
        if self.hash_point is None:
            return place_in_strata(members, former, placement)
        return place_by_probing(members, self.slots, self.virtual_servers, self.hash_point, probing)


PRESETS: Mapping[str, RingPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            RingPreset("classic", 512, 9, 56, hashing.classic_key, hashing.classic_point),
            RingPreset("classic-modified", 512, 9, 56, hashing.modified_key, hashing.modified_point),
            RingPreset("classic-sha256", 512, 9, 56, hashing.sha256_key, hashing.sha256_point),
            RingPreset("default", STRATA * WIDTH, STRATA, 1000, hashing.hash_text, None),
        )
    }
)


def capacity(preset_name: str) -> int:
    """Return the maximum number of members of a preset.

    Raises:
        ValueError: There is no such preset.
    """
    return _preset(preset_name).capacity


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring with its members. `Ring.build` makes one."""

    preset: RingPreset
    probing: Probing
    numbers: tuple[int, ...]
    """The members' numbers, ascending."""
    _held: bytearray = field(repr=False)
    """For each slot, `HELD` if a virtual server holds it, else 0."""
    _owners: "bytearray | array[int]" = field(repr=False, compare=False)
    """For each held slot, the number of its member. For each other slot, its owner if known, else 0."""

    @classmethod
    def build(cls, preset_name: str, numbers: Iterable[int], probing: Probing = linear) -> "Ring":
        """Build the ring of a set of members.

        Args:
            preset_name: A key of `PRESETS`.
            numbers: The members' ring numbers, from 1, in any order; may be empty.
            probing: `linear` or `quadratic`. The `default` preset does not use it.

        Raises:
            RingFullError: The ring has too few slots for so many members.
            ValueError: There is no such preset, or a number is out of range.
        """
        preset = _preset(preset_name)
        return cls._empty(preset, probing).changed_to(numbers)

    @classmethod
    def _empty(cls, preset: RingPreset, probing: Probing) -> "Ring":
        return cls(preset, probing, (), bytearray(preset.slots), bytearray())

    def changed_to(self, numbers: Iterable[int]) -> "Ring":
        """Return the ring of other members, as `build` makes it. This costs less if most members stay.

        Args:
            numbers: The ring numbers of all members of the new ring, from 1, in any order.

        Raises:
            RingFullError: The ring has too few slots for so many members.
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
        if not members:
            return self._empty(preset, self.probing)
        held, owners = preset.place(members, self.probing, self.numbers, (self._held, self._owners))
        return Ring(preset, self.probing, members, held, owners)

    @property
    def slots(self) -> int:
        """M, the number of slots."""
        return self.preset.slots

    @property
    def virtual_servers(self) -> int:
        """K, the number of virtual servers of each member."""
        return self.preset.virtual_servers

    def owner(self, key: str) -> int:
        """Return the number of the member that owns a key.

        Raises:
            IndexError: The ring has no members.
        """
        preset = self.preset
        slot = preset.hash_key(key) % preset.slots
        return self._owners[slot] or self._search(slot)

    def walk(self, key: str) -> Iterator[int]:
        """Yield the members' numbers clockwise from the key, its owner first, each once."""
        start = self.preset.hash_key(key) % self.slots
        seen: set[int] = set()
        for begin, end in ((start, self.slots), (0, start)):
            slot = self._held.find(HELD, begin, end)
            while slot >= 0 and len(seen) < len(self.numbers):
                number = self._owners[slot]
                if number not in seen:
                    seen.add(number)
                    yield number
                slot = self._held.find(HELD, slot + 1, end)

    def slot_owner(self, slot: int) -> int:
        """Return the number of the member that owns the keys of a slot.

        Raises:
            IndexError: The ring has no members.
        """
        return self._owners[slot] or self._search(slot)

    def _search(self, slot: int) -> int:
        """Find the owner of a slot: the member of the next held slot."""
        owners, held = self._owners, self._held.find(HELD, slot)
        if held < 0:  # After the last held slot, the first one follows.
            return owners[self._held.find(HELD)]
        # An array is not written: `changed_to` copies it, and its slots that are not held must be 0.
        if isinstance(owners, bytearray):
            owners[slot:held] = owners[held : held + 1] * (held - slot)
        return owners[held]

    def slot_share(self) -> dict[int, Fraction]:
        """Compute the exact share of the slots that each member owns, by number."""
        count = dict.fromkeys(self.numbers, 0)
        held = list(compress(range(self.slots), self._held))
        if held:
            lengths = map(sub, held, chain([held[-1] - self.slots], held))
            for number, length in zip(compress(self._owners, self._held), lengths, strict=True):
                count[number] += length
        return {number: Fraction(slots, self.slots) for number, slots in count.items()}

    @property
    def peak_to_mean(self) -> float:
        """The largest slot share divided by the mean slot share: 1 is ideal. 0 if there are no members."""
        return float(max(self.slot_share().values(), default=Fraction(0)) * len(self.numbers))


def _preset(name: str) -> RingPreset:
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"there is no ring {name!r}, only {', '.join(PRESETS)}") from None
