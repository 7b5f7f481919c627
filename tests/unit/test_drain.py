"""When a plan may withdraw, and how a drain's wait is told."""

from __future__ import annotations

import pytest

from bgpd.bgp.drain import CONFIRM_S, REPORT_S, slices
from bgpd.bgp.health import Health
from bgpd.bgp.plan import Drain
from bgpd.bgp.routing import undecided
from bgpd.cli.client import SILENCE_S

FAILING = {"disk": "full"}


@pytest.mark.parametrize("health", [Health(), Health(known=False), Health(known=False, failing=FAILING)])
@pytest.mark.parametrize("synced", [True, False])
def test_a_drained_node_needs_no_source_to_announce_nothing(health: Health, synced: bool) -> None:
    """Nothing is what is meant, whatever the source and the checks may say yet."""
    assert undecided(synced, Drain.WITHDRAWN, health) == ""


@pytest.mark.parametrize("drain", [Drain.NO, Drain.SHUTDOWN])
def test_what_is_announced_otherwise_waits_for_source_and_checks(drain: Drain) -> None:
    """Either may still say that it is wanted. One failing check is enough to know that it is not."""
    assert undecided(True, drain, Health()) == ""
    assert undecided(False, drain, Health()) == "the source is not complete yet"
    assert undecided(True, drain, Health(known=False)) == "a health check has no result yet"
    assert undecided(False, drain, Health(failing=FAILING)) == ""
    assert undecided(True, drain, Health(known=False, failing=FAILING)) == ""


def test_a_long_wait_is_cut_into_pieces_that_a_client_sits_out() -> None:
    """Together they are the wait; none is longer than a client listens to silence."""
    assert list(slices(25)) == [(10, 15), (10, 5), (5, 0)]
    assert list(slices(10)) == [(10, 0)]
    assert list(slices(0)) == []
    assert max(CONFIRM_S, REPORT_S) < SILENCE_S
