"""Who is behind the parents of macvlans or ipvlans, as the programs there are told: the actuator of those maps.

What they are to hold is for `parents` and `ipvlans` to say. An entry that there is no room or no memory for has an
outcome of its own and is in no other's way: what nobody has told of is dropped, so whom it is about is cut off, and
everybody else is judged as ever. Whatever else a map refuses is about the whole of it.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from bgpd.datapath import layout, loader
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.maps import Map
from bgpd.model.outcome import DONE, Outcome, Retry
from bgpd.runtime.diff import Change

OwnT = TypeVar("OwnT")
Entry: TypeAlias = tuple[str, bytes]
"""A map, and a key in it."""

AGAIN_S = 5.0  # how long what there was no room for waits, all of it together: each by itself were a round for each
_NO_ROOM = (errno.E2BIG, errno.ENOSPC, errno.ENOMEM)  # of a hash, of a trie, of the node


def left_out(want: Iterable[Entry]) -> frozenset[Entry]:
    """Of these the last ones, for which the maps have no room."""
    counted: Counter[str] = Counter()
    found = set()
    for entry in want:
        counted[entry[0]] += 1
        if counted[entry[0]] > layout.MAPS[entry[0]].max_entries:
            found.add(entry)
    return frozenset(found)


def full(name: str) -> str:
    return f"the map {name} is full, with {layout.MAPS[name].max_entries:,} entries"


class Behind(Generic[OwnT]):
    """The actuator of the maps `names`. `own` is what the node had when they were last read, by `look`, and `nothing`
    before: read them when it changes.
    """

    def __init__(
        self,
        installed: loader.Installed,
        directory: Path,
        names: Sequence[str],
        nothing: OwnT,
        look: Callable[[], OwnT],
    ) -> None:
        self.installed, self._directory, self._names = installed, directory, names
        self.own, self._look = nothing, look

    async def observe(self) -> Mapping[Entry, bytes]:
        return await asyncio.to_thread(self._observe)

    async def apply(self, changes: Sequence[Change[Entry, bytes]]) -> Sequence[Outcome]:
        """In their order, so that an address is there before the MAC address that has it, and goes after it.
        DatapathError: a map takes nothing.
        """
        return await asyncio.to_thread(self._apply, changes)

    def _observe(self) -> dict[Entry, bytes]:
        loader.restore(self.installed, self._directory)
        self.own = self._look()
        return {
            (name, key): value
            for name in self._names
            for key, value in self.installed.maps[name].entries().items()
        }

    def _apply(self, changes: Sequence[Change[Entry, bytes]]) -> list[Outcome]:
        """What there was no room for has another try after what goes."""
        outcomes = self._written(changes)
        lacking = [at for at, outcome in enumerate(outcomes) if outcome != DONE]
        if lacking and any(change.want is None for change in changes):
            again = self._written([changes[at] for at in lacking])
            for at, outcome in zip(lacking, again, strict=True):
                outcomes[at] = outcome
        return outcomes

    def _written(self, changes: Sequence[Change[Entry, bytes]]) -> list[Outcome]:
        """Many at a time: with kube-proxy in IPVS mode the node has every Service's address."""
        outcomes: list[Outcome] = []
        for (name, _), alike in groupby(changes, key=lambda change: (change.key[0], change.want is None)):
            outcomes += _all_or_each(self.installed.maps[name], list(alike))
        return outcomes


def _all_or_each(to: Map, changes: Sequence[Change[Entry, bytes]]) -> Iterator[Outcome]:
    """At once, or where that is too much each by itself: but for what is there by then, for to write that again takes
    memory, too.
    """
    if _write(to, changes) == DONE:
        return (DONE for _ in changes)
    there = to.entries()
    return (DONE if there.get(change.key[1]) == change.want else _write(to, [change]) for change in changes)


def _write(to: Map, changes: Sequence[Change[Entry, bytes]]) -> Outcome:
    try:
        to.delete([change.key[1] for change in changes if change.want is None])
        to.update({change.key[1]: change.want for change in changes if change.want is not None})
    except DatapathError as error:
        if error.code not in _NO_ROOM:
            raise
        return Retry(str(error), AGAIN_S)
    return DONE
