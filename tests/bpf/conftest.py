"""Fixtures of the BPF tests: a bpffs, and our object in it.

A bpffs is mounted once per run, away from the machine's own; with its unmounting everything pinned is gone. A test
that needs it is skipped, by the name of what lacks, where it cannot be had.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpd.datapath import libbpf, loader
from bgpd.datapath.layout import MapType
from bgpd.datapath.loader import Installed
from tests.bpf.fill import clear, overwrite

MOUNTS = Path("/tmp")
PROGRAM_S = 300  # for what takes a second; in a guest of tests/kernel, on a busy machine, two minutes
_OURS = re.compile(rf"^\S+ ({MOUNTS}/bgpdt-(\d+)-bpffs) bpf ", re.MULTILINE)


@pytest.fixture(scope="session")
def bpffs() -> Iterator[Path]:
    """The mount point. What a run left that was killed is taken away."""
    if not libbpf.capable() or os.geteuid():
        pytest.skip("not root with CAP_BPF or CAP_SYS_ADMIN")
    for place, pid in _OURS.findall(Path("/proc/mounts").read_text()):
        if not Path(f"/proc/{pid}").exists():
            unmount(Path(place))
    place = MOUNTS / f"bgpdt-{os.getpid()}-bpffs"
    place.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    try:
        yield place
    finally:
        unmount(place)


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=True)
    place.rmdir()


@pytest.fixture
def directory(bpffs: Path, request: pytest.FixtureRequest) -> Path:
    """Where a test may pin; not made yet, as on a node that starts."""
    return bpffs / re.sub(r"\W", "_", request.node.name)


@pytest.fixture
def masq(directory: Path) -> Installed:
    return loader.install(loader.shipped("masq"), directory)


@pytest.fixture
def policy(directory: Path) -> Installed:
    return loader.install(loader.shipped("policy"), directory)


@pytest.fixture(scope="module")
def shared(bpffs: Path, request: pytest.FixtureRequest) -> Path:
    """Where the tests of a module may pin what they load only once: the verifier takes long where it is emulated."""
    return bpffs / re.sub(r"\W", "_", request.node.name)


@pytest.fixture(scope="module")
def shared_policy(shared: Path) -> Installed:
    return loader.install(loader.shipped("policy"), shared)


def emptied(installed: Installed) -> Installed:
    """As just loaded, but for events that wait."""
    for each in installed.maps.values():
        if each.spec.type in (MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE):
            clear(each)
        elif each.spec.type == MapType.ARRAY:
            each.update({key: bytes(len(value)) for key, value in each.entries().items()})
        elif each.spec.type == MapType.PERCPU_ARRAY:
            overwrite(each, range(each.spec.max_entries), b"")
    return installed
