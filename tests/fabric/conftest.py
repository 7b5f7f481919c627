"""Fixtures of the fabric tests: a lab for each test, or the reason why this machine cannot have one.

This decides what a test finds when it starts. It does not decide what is in the lab. A test that needs a
program names it with `@pytest.mark.needs("bird", ...)`; without it, and without being root, the test is
skipped by the name of what lacks.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fabric.masq_site import MasqSite
from tests.fabric.netns import Lab, missing
from tests.fabric.topology import TwoTorFabric


@pytest.fixture(scope="session")
def lacking() -> dict[tuple[str, ...], str | None]:
    """What was found out about the machine so far, by the programs asked for."""
    return {}


@pytest.fixture
def lab(request: pytest.FixtureRequest, lacking: dict[tuple[str, ...], str | None]) -> Iterator[Lab]:
    """An empty lab; everything in it is gone after the test, whatever its outcome."""
    programs = tuple(sorted({str(it) for mark in request.node.iter_markers("needs") for it in mark.args}))
    if programs not in lacking:
        lacking[programs] = missing(*programs)
    reason = lacking[programs]
    if reason is not None:
        pytest.skip(reason)
    with Lab() as made:
        yield made


@pytest.fixture
def fabric(lab: Lab) -> TwoTorFabric:
    """The two-ToR fabric, both ToRs running BIRD; mark the test with `needs("bird")`."""
    return TwoTorFabric(lab).start()


@pytest.fixture
def bpffs(lab: Lab) -> Iterator[Path]:
    """A bpffs of the test's own, away from the machine's; what is pinned there goes with it."""
    with mounted_bpffs(lab) as place:
        yield place


@contextlib.contextmanager
def mounted_bpffs(lab: Lab) -> Iterator[Path]:
    """In the directory of the lab."""
    place = lab.directory / "bpf"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "bpf", "bpf", place], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no bpffs: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def masq_site(lab: Lab, bpffs: Path) -> MasqSite:
    """A node that is to masquerade, its daemon not started; mark the test with `needs("nft", "mount")`."""
    return MasqSite(lab, bpffs)


@pytest.fixture
def masquerading(masq_site: MasqSite) -> MasqSite:
    """The same, with one destination of each family listed, and in force."""
    return masq_site.start()
