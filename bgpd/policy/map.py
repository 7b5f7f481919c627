"""What the programs that judge packets read: the actuator of the policy maps, and the order in which it writes.

One reconciler has all of them, for the order goes across maps: what is looked up last is written first, then pods
and addresses flip, each by one atomic write, then what nobody can be sent to any more goes. `policy.transition` has
that order, `policy.compile` the stages in which one contents becomes another. Here every stage is written in
batches. What nothing leads to any more stays until the packets that were being judged then have been: one of them may
have read the old set of a pod and not yet its rules. That takes the kernel some 10 ms and nobody waits for it: what
is wanted is in force before, and what is left over goes later, unless it is wanted again.

Programs remember what they have found here, for as long as there is one number of all that these maps say, its
revision. So there is none from the first write on until no program runs any more that may have read what was before:
whoever waits for a write does not wait for that. There is a new one after each look as well, so that what is
remembered is no older than that, whoever else may have written.

Contents that do not fit change nothing. What fails halfway leaves the maps between two stages; the loop reads them
again and goes on from there.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from bgpd.datapath import layout, loader
from bgpd.datapath.grace import GracePeriod
from bgpd.datapath.layout import Peer, Port, Rule
from bgpd.model.lpm import LpmKey
from bgpd.model.outcome import DONE, Outcome
from bgpd.policy.entries import (
    PLACES,
    Contents,
    PortKey,
    RangeKey,
    RuleKey,
    entries_in,
    largest,
    needed_in,
    place_of,
)
from bgpd.policy.transition import FOUND, Write, changes
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import TargetError

KEY = "policy maps"


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """The way to the last of `steps`, from whatever is there. Equal to another if both come to the same contents."""

    steps: tuple[Contents, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stages) and all(
            (mine := getattr(self.steps[-1], name)) is (theirs := getattr(other.steps[-1], name)) or mine == theirs
            for name in _KINDS
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the entries of one part of `Contents` are written as bytes, and read."""

    key: Callable[[Any], bytes]
    value: Callable[[Any], bytes]
    read_key: Callable[[bytes], Any]
    read_value: Callable[[bytes], Any]


_KINDS: Mapping[str, _Kind] = {
    "peers": _Kind(
        bytes,
        lambda peer: layout.PEER.pack(*peer),
        bytes,
        lambda value: Peer._make(layout.PEER.unpack(value)),
    ),
    "cidrs": _Kind(
        LpmKey.of,
        layout.CLASS.pack,
        lambda key: LpmKey.read(key).prefix,
        lambda value: layout.CLASS.unpack(value)[0],
    ),
    "rules": _Kind(
        lambda key: layout.rule_key(*key),
        lambda rule: layout.RULE.pack(*rule),
        lambda key: RuleKey._make(layout.RULE_KEY.unpack(key)),
        lambda value: Rule._make(layout.RULE.unpack(value)),
    ),
    "ports": _Kind(
        lambda key: layout.port_key(*key),
        lambda port: layout.PORT.pack(*port),
        lambda key: PortKey._make(layout.read_port_key(key)),
        lambda value: Port._make(layout.PORT.unpack(value)),
    ),
    "ranges": _Kind(
        lambda key: layout.range_key(*key),
        lambda port: layout.PORT.pack(*port),
        lambda key: RangeKey._make(layout.read_range_key(key)),
        lambda value: Port._make(layout.PORT.unpack(value)),
    ),
}
"""The parts of `Contents` that the kernel has; what numbers stand for is not among them."""


class PolicyMaps:
    """The actuator; its one object is `KEY`. `directory` has the pins of `installed`: what vanishes is put back."""

    def __init__(self, installed: loader.Installed, directory: Path) -> None:
        self._installed, self._directory = installed, directory
        self._grace = GracePeriod()
        self._have = Contents()
        self._left: dict[tuple[str, Any], int] = {}  # what is to go, by part and key: since which stage
        self._stage = 0  # counts up where a stage begins to be written and where it is: odd in between
        self._has_revision = False
        self._writing = asyncio.Lock()
        self._sweep: asyncio.Task[None] | None = None
        self._meddled = False  # somebody else has written: what is to go may be what packets find

    async def observe(self) -> Mapping[str, Stages]:
        await self.settled()
        self._left.clear()
        found = await asyncio.to_thread(self._read)
        self._meddled, self._have = Stages((found,)) != Stages((self._have,)), found
        self._withdraw_revision()
        self._sweep = asyncio.create_task(self._settle(), name="policy maps settle")
        return {KEY: Stages((found,))}

    async def apply(self, wanted: Sequence[Change[str, Stages]]) -> Sequence[Outcome]:
        """DatapathError: the maps are between two stages. TargetError: it does not fit, nothing is changed."""
        for change in wanted:
            stages = (Contents(),) if change.want is None else change.want.steps
            if self._shortage(stages):
                await self.settled()
            if self._shortage(stages):
                stages = stages[-1:]  # the way there may begin at contents that did not fit either
            if shortage := self._shortage(stages):
                raise TargetError(shortage)
            async with self._writing:
                self._withdraw_revision()
                for stage in stages:
                    await asyncio.to_thread(self._write, stage)
        if self._sweep is None or self._sweep.done():
            await self.settled()  # or nobody would hear of one that failed
            self._sweep = asyncio.create_task(self._settle(), name="policy maps settle")
        if self._meddled:
            await self.settled()
            self._meddled = False
        return [DONE] * len(wanted)

    async def settled(self) -> None:
        """Returns when nothing is left over, and programs may remember. DatapathError: neither is so."""
        sweep, self._sweep = self._sweep, None
        if sweep is not None:
            await sweep

    async def _settle(self) -> None:
        """When nobody reads what was before any more: removes what is left over, and gives what there is a number."""
        while self._left or not self._has_revision:
            async with self._writing:
                stage = self._stage // 2 * 2
            await asyncio.to_thread(self._grace.wait)
            async with self._writing:
                if self._stage % 2:  # by a thread whose `apply` was cancelled
                    continue
                due = [each for each, since in self._left.items() if since <= stage]
                await asyncio.to_thread(self._delete, due)
                for each in due:
                    del self._left[each]
                if stage == self._stage:
                    self._set_revision(secrets.randbits(64) or 1)  # a byte of one and a byte of another is none

    def _withdraw_revision(self) -> None:
        self._set_revision(0)

    def _set_revision(self, revision: int) -> None:
        self._installed.maps["policy_revision"].update({bytes(4): layout.REVISION.pack(revision)})
        self._has_revision = revision != 0

    def _read(self) -> Contents:
        loader.restore(self._installed, self._directory)
        parts: dict[str, dict[Any, Any]] = {}
        for place, name in PLACES.items():
            kind, raw = _KINDS[name], self._installed.maps[place].entries()
            found = {kind.read_key(key): kind.read_value(value) for key, value in raw.items()}
            parts[name] = {**parts.get(name, {}), **found}
        return Contents(**parts)

    def _shortage(self, stages: Sequence[Contents]) -> str:
        """What does not fit; empty: all does. A stage is written before what it replaces goes, and what is found by
        number goes after them all."""
        way = (self._have, *stages)
        for place, part in PLACES.items():
            left = {key for name, key in self._left if name == part}
            for at_once in (way,) if part in FOUND else pairwise(way):
                room = self._installed.maps[place].spec.max_entries
                needed = needed_in(place, at_once, room, left)
                if needed > room:
                    return (
                        f"the {part} of all policies come to {needed:,} entries and the map {place} holds {room:,}. "
                        f"Most are of NetworkPolicy {largest(at_once[-1], place)}: let it tell less apart for this "
                        "node's pods. The old rules stay in force"
                    )
        return ""

    def _write(self, want: Contents) -> None:
        """One stage: additions and flips. What nothing leads to any more then is left over."""
        self._stage += 1
        try:
            for (removes, place), group in groupby(changes(self._have, want), _place):
                writes = list(group)
                if not removes:
                    self._installed.maps[place].update(dict(map(_packed, writes)))
                    for each in writes:
                        self._left.pop((each.map, each.key), None)
                elif writes[0].map in FOUND:
                    self._left.update(((each.map, each.key), self._stage) for each in writes)
                else:
                    self._delete((each.map, each.key) for each in writes)
            self._have = want
        finally:
            self._stage += 1

    def _delete(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Of any parts; those of one lie in one map, or one after the other in each of its maps."""
        for place, group in groupby(entries, lambda each: place_of(*each)):
            self._installed.maps[place].delete([_KINDS[part].key(key) for part, key in group])


class PodLinks:
    """The actuator of `policy_links`: by the ifindex of a bridge's port, the pod's IPv4 and IPv6 address.

    As struct policy_address has them; zero where it has none. What is astray is dropped at the port of a pod that is
    not here: so write these before the table.
    """

    def __init__(self, installed: loader.Installed) -> None:
        self._map = installed.maps["policy_links"]

    async def observe(self) -> Mapping[int, tuple[bytes, bytes]]:
        found = self._map.entries().items()
        return {layout.IFINDEX.unpack(key)[0]: layout.LINK.unpack(value) for key, value in found}

    async def apply(self, wanted: Sequence[Change[int, tuple[bytes, bytes]]]) -> Sequence[Outcome]:
        self._map.update(
            {layout.IFINDEX.pack(each.key): layout.LINK.pack(*each.want) for each in wanted if each.want is not None}
        )
        self._map.delete([layout.IFINDEX.pack(each.key) for each in wanted if each.want is None])
        return [DONE] * len(wanted)


def sizes(contents: Contents) -> Mapping[str, int]:
    """How many entries of it each of the kernel's maps has."""
    return {place: len(entries_in(contents, place)) for place in PLACES}


def _place(write: Write) -> tuple[bool, str]:
    return write.value is None, place_of(write.map, write.key)


def _packed(write: Write) -> tuple[bytes, bytes]:
    kind = _KINDS[write.map]
    return kind.key(write.key), kind.value(write.value)
