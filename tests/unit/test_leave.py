"""When a peer that is taken leave of has been sent everything, from ExaBGP's counters."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from bgpd.bgp.leave import LOOKS, Leave, updates_sent
from bgpd.model.prefix import Address, parse_address

A, B = parse_address("11.11.255.1"), parse_address("fd00::1")


def looks(leave: Leave, *counts: Mapping[Address, int]) -> list[bool]:
    return [leave.complete(sent) for sent in counts]


def test_a_count_that_has_moved_and_stands_is_the_end() -> None:
    """Not while it moves, and not at the first looks at which it stands."""
    leave = Leave({A}, {A: 4})
    assert looks(leave, {A: 5}, {A: 6}, *[{A: 6}] * LOOKS) == [False, False, *[False] * (LOOKS - 1), True]


def test_a_count_that_has_not_moved_is_no_end() -> None:
    """However long it stands: End-of-RIB is still to come."""
    assert not any(looks(Leave({A}, {A: 4}), *[{A: 4}] * 2 * LOOKS))


def test_the_slowest_peer_decides() -> None:
    """One that still sends begins the looks anew for all."""
    leave = Leave({A, B}, {A: 4, B: 4})
    assert not any(looks(leave, *[{A: 5, B: count} for count in range(5, 5 + 2 * LOOKS)]))
    last = {A: 5, B: 4 + 2 * LOOKS}
    assert looks(leave, *[last] * LOOKS)[-1]


def test_a_peer_whose_session_falls_is_not_waited_for() -> None:
    """It is named instead; nor is one that was down from the start."""
    leave = Leave({A, B, parse_address("10.0.0.9")}, {A: 4, B: 4})
    assert looks(leave, *[{A: 5}] * (LOOKS + 1))[-1]
    assert (leave.present({A: 5}), leave.fallen({A: 5})) == ({A}, {B})


def test_what_is_held_further_on_counts_as_not_sent() -> None:
    """The looks begin anew when nothing is held any more."""
    leave = Leave({A}, {A: 4})
    assert not any(leave.complete({A: 5}, held=True) for _ in range(2 * LOOKS))
    assert looks(leave, *[{A: 5}] * LOOKS)[-1]


def test_other_peers_do_not_matter() -> None:
    """They may send as much as they like."""
    leave = Leave({A}, {A: 4, B: 4})
    assert looks(leave, *[{A: 5, B: count} for count in range(LOOKS + 1)])[-1]


@pytest.mark.parametrize(("fsm", "found"), [("ESTABLISHED", {B: 7}), ("ACTIVE", {}), ("OPENCONFIRM", {})])
def test_only_sessions_that_are_up_have_a_count(fsm: str, found: dict[Address, int]) -> None:
    """As `show neighbor json` prints them, on however many lines."""
    shown = json.dumps([{"peer": {"address": "fd00::1"}, "fsm": fsm, "messages": {"sent": {"update": 7}}}])
    assert updates_sent([shown[:20], shown[20:]]) == found
