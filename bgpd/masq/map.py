"""The list in the kernel: which destinations see the pod's own address. One actuator for each family.

The list is a longest-prefix-match map that a datapath asks once per flow: ours, which also counts hits in a second
map with the same keys, or Cilium's, which we then only feed. The map holds nothing but the list. What should be in
it is decided by `masq.plan`; what order changes come in, by `runtime.reconcile`.

At every moment the list in the kernel is the old one, the new one, or between the two and both together, never less:
entries are added before any is removed. Only where both together exceed the map, as many of those that go, go first
as it takes, the most specific ones; what both lists have stays in any case. A list that exceeds it alone changes
nothing. A counter is there before its entry and goes after it, or hits would be put down to a shorter prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from bgpd.datapath import layout, loader, pins
from bgpd.datapath.maps import Map
from bgpd.model.lpm import LpmKey
from bgpd.model.outcome import DONE, Outcome
from bgpd.runtime.diff import Change, Uniform
from bgpd.runtime.reconcile import TargetError

CILIUM = Path("/sys/fs/bpf/tc/globals")  # where Cilium pins its maps


class Held(NamedTuple):
    """What there is of an entry: itself, its counter."""

    listed: bool
    counted: bool


_NOTHING = Held(listed=False, counted=False)
_LISTED = Held(listed=True, counted=False)
_COUNTED = Held(listed=True, counted=True)

EntryChange: TypeAlias = Change[LpmKey, Held]


@dataclass(frozen=True, slots=True)
class ListMaps:
    """The maps of one family. `hits` None: the datapath is not ours, and does not count."""

    listed: Map
    hits: Map | None


def own_maps(installed: loader.Installed, directory: Path, version: int) -> ListMaps:
    """Those of our own datapath. Pins that somebody took away are put back."""
    loader.restore(installed, directory)
    return ListMaps(installed.maps[f"ipmasq_v{version}"], installed.maps[f"ipmasq_hits_v{version}"])


def cilium_maps(directory: Path, version: int) -> ListMaps:
    """Cilium's, made as Cilium would if it has not made them yet. DatapathError: they have other sizes."""
    spec = replace(layout.MAPS[f"ipmasq_v{version}"], name=f"cilium_ipmasq_v{version}")
    return ListMaps(pins.open_or_create(directory / spec.name, spec, exact=False), None)


def wanted(keys: frozenset[LpmKey], *, counted: bool) -> Uniform[LpmKey, Held]:
    """What should be there for a list, with hits or without."""
    return Uniform(keys, _COUNTED if counted else _LISTED)


class MasqList:
    """The list of one family. `maps` opens it; it is asked at each look, so that a map that was replaced is seen."""

    def __init__(self, maps: Callable[[], ListMaps]) -> None:
        self._open = maps
        self._maps: ListMaps | None = None
        self._listed = self._counted = 0  # entries in each map, as far as known

    async def observe(self) -> Mapping[LpmKey, Held]:
        self._maps = self._open()
        listed = list(map(LpmKey.read, self._maps.listed.entries()))
        counted = list(map(LpmKey.read, self._maps.hits.entries())) if self._maps.hits else []
        self._listed, self._counted = len(listed), len(counted)
        have = dict.fromkeys(listed, _LISTED)
        have.update({key: _COUNTED if key in have else Held(listed=False, counted=True) for key in counted})
        return have

    async def apply(self, changes: Sequence[EntryChange]) -> Sequence[Outcome]:
        """Everything or nothing: TargetError, if it does not fit. DatapathError: the list is between old and new."""
        assert self._maps is not None, "the loop observes first"
        moves = [(each.key, each.have or _NOTHING, each.want or _NOTHING) for each in changes]
        entries = _Edit(
            self._maps.listed,
            self._listed,
            [key for key, have, want in moves if want.listed and not have.listed],
            [key for key, have, want in moves if have.listed and not want.listed],
        )
        counters = _Edit(
            self._maps.hits,
            self._counted,
            [key for key, have, want in moves if want.counted and not have.counted],
            [key for key, have, want in moves if have.counted and not want.counted],
        )
        entries.check_room()
        entries.make_room()
        counters.make_room()
        counters.add(layout.COUNTER.pack(0))
        entries.add(layout.PRESENT)
        entries.remove()
        counters.remove()
        self._listed, self._counted = entries.size_after, counters.size_after
        return [DONE] * len(changes)


@dataclass(frozen=True, slots=True)
class _Edit:
    """What comes to and goes from a map of `size` entries. `goes` has the most specific last."""

    target: Map | None
    size: int
    comes: Sequence[LpmKey]
    goes: Sequence[LpmKey]

    @property
    def size_after(self) -> int:
        return self.size + len(self.comes) - len(self.goes)

    def check_room(self) -> None:
        """TargetError: what is wanted does not fit at all."""
        if self.target and self.comes and self.size_after > self.target.spec.max_entries:
            name, room = self.target.spec.name, self.target.spec.max_entries
            text = f"the list comes to {self.size_after:,} entries and the map {name} holds {room:,}"
            raise TargetError(f"{text}; shorten it, the old list stays in use")

    def make_room(self) -> None:
        """Removes what cannot wait until all the new ones are there."""
        if self.target and self._first:
            self.target.delete(self.goes[-self._first :])

    def add(self, value: bytes) -> None:
        if self.target:
            self.target.update(dict.fromkeys(self.comes, value))

    def remove(self) -> None:
        """Removes the rest."""
        if self.target:
            self.target.delete(self.goes[: len(self.goes) - self._first])

    @property
    def _first(self) -> int:
        """How many go before the new ones come."""
        room = self.target.spec.max_entries if self.target else 0
        return min(max(0, self.size + len(self.comes) - room), len(self.goes))
