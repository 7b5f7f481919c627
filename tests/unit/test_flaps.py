"""Which lines the log gets of a session's ups and downs."""

from __future__ import annotations

from typing import Any

import pytest

from bgpd.bgp.flaps import FLAPS, PERIOD_S, Line, SessionLog

BROKEN = "notification sent (1,2)"


def transition(state: str, address: str = "192.0.2.1", **more: Any) -> dict[str, Any]:
    return {"peer": "tor-a", "address": address, "state": state, **more}


UP, DOWN = transition("up"), transition("down", reason=BROKEN, after_s=0.1)


def flap(log: SessionLog, now: float, address: str = "192.0.2.1") -> list[Line]:
    """Up and down again."""
    return log.lines([transition("up", address)], now) + log.lines([transition("down", address, reason=BROKEN)], now)


def told(lines: list[Line]) -> list[tuple[str, str]]:
    """What is there at the usual level."""
    return [(line.level, line.event) for line in lines if line.level != "debug"]


@pytest.fixture
def flapping() -> SessionLog:
    """A log that has just said, at 2, that the peer flaps."""
    log = SessionLog()
    for now in range(FLAPS):
        flap(log, now)
    return log


def test_transitions_are_told_one_by_one_at_first() -> None:
    """With all that is known of each."""
    assert SessionLog().lines([UP, DOWN], 0) == [Line("info", "session", UP), Line("warning", "session", DOWN)]


def test_that_a_peer_flaps_is_told_once() -> None:
    """With how often it went down, in what time and why; after that only at level debug."""
    log = SessionLog()
    assert {line.event for now in (0, 1) for line in flap(log, now)} == {"session"}
    *_, line = flap(log, 3)
    assert line == Line(
        "warning",
        "session flaps",
        {"peer": "tor-a", "address": "192.0.2.1", "state": "down", "downs": 3, "in_s": 3, "reason": BROKEN},
    )
    assert flap(log, 4) == [Line("debug", "session", UP), Line("debug", "session", transition("down", reason=BROKEN))]


def test_slow_changes_are_told_one_by_one_for_ever() -> None:
    """Two in a period are no flapping."""
    log = SessionLog()
    lines = [line for now in range(0, 3600, 31) for line in flap(log, now)]
    assert {line.event for line in lines} == {"session"}
    assert "debug" not in {line.level for line in lines}


def test_while_it_flaps_there_is_one_line_a_period(flapping: SessionLog) -> None:
    """It counts what happened since the line before."""
    lines = []
    for tenth in range(30, 6030):
        lines += flap(flapping, tenth / 10)
    still = [line for line in lines if line.level != "debug"]
    assert told(still) == [("warning", "session still flaps")] * int(600 // PERIOD_S)
    assert all(abs(line.fields["downs"] - 10 * PERIOD_S) <= 10 for line in still)
    assert sum(line.fields["downs"] for line in still) <= 6000


@pytest.mark.parametrize(("end", "level"), [(UP, "info"), (DOWN, "warning")])
def test_the_end_is_told_when_nothing_happens_any_more(flapping: SessionLog, end: dict[str, Any], level: str) -> None:
    """Once, with how it came out; what happens then is told one by one again."""
    flapping.lines([end], 10)
    still = [("warning", "session still flaps")] if end is DOWN else []
    assert told(flapping.lines([], 10 + PERIOD_S - 1)) == still
    (line,) = flapping.lines([], 10 + PERIOD_S)
    assert (line.level, line.event, line.fields["state"]) == (level, "session no longer flaps", end["state"])
    assert line.fields["downs"] == FLAPS + (end is DOWN)
    assert flapping.lines([], 10 + 2 * PERIOD_S) == []
    assert told(flapping.lines([DOWN], 500)) == [("warning", "session")]


def test_each_peer_has_its_own_count(flapping: SessionLog) -> None:
    """One that flaps hides nothing of another."""
    assert told(flap(flapping, 3, "192.0.2.2")) == [("info", "session"), ("warning", "session")]
    assert told(flap(flapping, 3)) == []
