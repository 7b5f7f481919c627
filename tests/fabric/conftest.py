"""Fixtures of the fabric tests: a lab for each test, or the reason why this machine cannot have one.

This decides what a test finds when it starts. It does not decide what is in the lab. A test that needs a
program names it with `@pytest.mark.needs("bird", ...)`; without it, and without being root, the test is
skipped by the name of what lacks.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fabric.netns import Lab, missing
from tests.fabric.topology import Seed3Fabric


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
def seed3(lab: Lab) -> Seed3Fabric:
    """The network of seed 3, its two ToRs running BIRD; mark the test with `needs("bird")`."""
    return Seed3Fabric(lab).start()
