"""The actuator of the maps that tell who is behind a parent: what a map does not take is in nobody else's way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from bgpd.datapath import pins
from bgpd.datapath.layout import NO_PREALLOC, MapSpec, MapType
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.loader import Installed
from bgpd.datapath.maps import Map
from bgpd.model.outcome import DONE, Outcome, Retry
from bgpd.policy.behind import AGAIN_S, Behind, Entry
from bgpd.runtime.diff import Change, diff

CGROUPS = Path("/sys/fs/cgroup")
PAGE = 4096
READ_ONLY = 1 << 3  # BPF_F_RDONLY
VALUE = b"\1"
MANY = 4096  # more than the kernel sets aside when a map is made


class Group:
    """A control group of memory, while in context. What it has counts to it as long as that lasts."""

    def __init__(self) -> None:
        older = CGROUPS / "memory"
        self._names = ("limit_in_bytes", "usage_in_bytes") if older.is_mount() else ("max", "current")
        self._path = (older if older.is_mount() else CGROUPS) / f"bgpdt-{os.getpid()}-memory"

    def __enter__(self) -> Group:
        with contextlib.suppress(OSError):  # version 1
            (CGROUPS / "cgroup.subtree_control").write_text("+memory")
        with contextlib.suppress(OSError):
            self._path.mkdir()
        if not os.access(self._file(0), os.W_OK):
            pytest.skip(f"no control groups of memory at {CGROUPS} that can be written")
        return self

    def __exit__(self, *_: object) -> None:
        self._path.rmdir()

    def _file(self, number: int) -> Path:
        return self._path / f"memory.{self._names[number]}"

    @property
    def usage(self) -> int:
        return int(self._file(1).read_text())

    def limit(self, size: int) -> None:
        self._file(0).write_text(str(size))

    def made(self, wanted: MapSpec, directory: Path) -> Map:
        """A map whose memory counts to it."""
        pins.prepare(directory)
        pin = directory / wanted.name
        words = f"type hash key {wanted.key_size} value {wanted.value_size} entries {wanted.max_entries}"
        made = f"bpftool map create {pin} {words} name {wanted.name[:15]} flags {wanted.flags}"
        subprocess.run(["sh", "-c", f"echo $$ > {self._path}/cgroup.procs && exec {made}"], check=True)
        found = pins.open_map(pin, wanted)
        assert found is not None
        return found


def spec(name: str, room: int) -> MapSpec:
    return MapSpec(name, MapType.HASH, 4, len(VALUE), room, NO_PREALLOC)


def entry(name: str, number: int) -> Entry:
    return name, struct.pack(">I", number)


def behind(directory: Path, *maps: Map) -> Behind[None]:
    by_name = {each.spec.name: each for each in maps}
    return Behind(Installed(by_name, {}), directory, list(by_name), None, lambda: None)


def applied(to: Behind[None], want: Iterable[Entry]) -> dict[Entry, Outcome]:
    """What becomes of each that is not as wanted."""

    async def bring() -> tuple[Sequence[Change[Entry, bytes]], Sequence[Outcome]]:
        changes = diff(dict.fromkeys(want, VALUE), await to.observe(), str, prune=True)
        return changes, await to.apply(changes)

    changes, outcomes = asyncio.run(bring())
    return {change.key: outcome for change, outcome in zip(changes, outcomes, strict=True)}


def test_what_there_is_no_room_for_has_an_outcome_of_its_own(directory: Path) -> None:
    """What goes makes room. Other entries, of this map and of others, are written."""
    to = behind(directory, Map.create(spec("first", 2)), Map.create(spec("second", 2)))
    assert set(applied(to, [entry("first", 1), entry("first", 2)]).values()) == {DONE}
    want = [entry("first", number) for number in (2, 3, 4)] + [entry("second", 1)]
    found = applied(to, want)
    full = Retry("writing the map first: it is full, with 2 entries", AGAIN_S)
    assert found == {want[1]: DONE, want[2]: full, want[3]: DONE, entry("first", 1): DONE}
    assert asyncio.run(to.observe()).keys() == {want[0], want[1], want[3]}
    assert applied(to, want) == {want[2]: full}


def test_what_there_is_no_memory_for_has_an_outcome_of_its_own(directory: Path) -> None:
    """The rest is written, also of that map, and all of it once there is some."""
    with Group() as group:
        to = behind(directory, group.made(spec("confined_by_group", MANY), directory), Map.create(spec("other", 2)))
        group.limit(group.usage + PAGE)
        want = [entry("confined_by_group", number) for number in range(MANY)] + [entry("other", 1)]
        found = applied(to, want)
        reasons = {each.reason for each in found.values() if isinstance(each, Retry)}
        assert len(reasons) == 1
        assert reasons.pop().startswith("writing the map confined_by_group: Cannot allocate memory")
        assert found[want[-1]] == DONE
        done = {key for key, outcome in found.items() if outcome == DONE}
        assert asyncio.run(to.observe()).keys() == done
        group.limit(1 << 30)
        assert set(applied(to, want).values()) == {DONE}


def test_a_map_that_takes_nothing_fails_as_a_whole(directory: Path) -> None:
    """None of its entries is to blame."""
    frozen = Map.create(MapSpec("short", MapType.HASH, 4, len(VALUE), 2, NO_PREALLOC | READ_ONLY))
    to = behind(directory, frozen)
    with pytest.raises(DatapathError, match="writing the map short"):
        applied(to, [entry("short", 1)])
