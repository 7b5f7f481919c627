"""When a node counts as ready."""

from __future__ import annotations

from bgpd.observe.health import Condition, Readiness, readiness

UP = {"tor-a": "", "tor-b": ""}


def test_all_well_is_ready() -> None:
    """Everything seen once, sessions up: ready, with nothing to say."""
    assert readiness(Condition(sessions=UP)) == Readiness()
    assert readiness(Condition(sessions=UP)).text == "ok\n"


def test_waits_for_the_first_complete_list() -> None:
    """A source that has not delivered keeps the node unready and is named."""
    found = readiness(Condition(unsynced=["kubernetes"], sessions=UP))
    assert found.text == "not ready: source: kubernetes: has not delivered its first complete list\n"


def test_waits_for_the_speaker() -> None:
    """Without the speaker nothing can be announced: not ready, with the reason it gave."""
    found = readiness(Condition(speaker="not connected yet", sessions=UP))
    assert (found.ready, found.reasons) == (False, ("bgp: speaker: not connected yet",))


def test_waits_for_each_reconciler_once() -> None:
    """A reconciler that has never been done is named, in an order that does not change."""
    found = readiness(Condition(unsettled={"sessions", "routes"}, sessions=UP))
    assert [reason.split(":")[0] for reason in found.reasons] == ["routes", "sessions"]


def test_one_session_down_only_degrades() -> None:
    """As long as one uplink carries the routes the node is ready, and says what is wrong."""
    found = readiness(Condition(sessions={"tor-a": "hold timer expired", "tor-b": ""}))
    assert found.ready
    assert found.text == "ok\ndegraded: bgp: tor-a: hold timer expired\n"


def test_all_sessions_down_is_not_ready() -> None:
    """Without any session nobody knows the node's routes; each peer is named once."""
    found = readiness(Condition(sessions={"tor-a": "refused", "tor-b": "idle"}))
    assert (found.reasons, found.degraded) == (("bgp: tor-a: refused", "bgp: tor-b: idle"), ())


def test_no_peers_is_ready() -> None:
    """A node that is to have no sessions lacks none."""
    assert readiness(Condition()).ready


def test_a_faulty_file_and_a_drain_only_degrade() -> None:
    """The last good configuration works on, and a drain is meant."""
    found = readiness(Condition(config="bgpd.yaml:3:1: unknown key", draining=True, sessions=UP))
    assert found.ready
    assert [text.split(":")[0] for text in found.degraded] == ["config", "bgp"]
