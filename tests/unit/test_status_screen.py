"""What `bgpd status` makes of the daemon's answer."""

from __future__ import annotations

from typing import Any

from bgpd.cli import peers
from bgpd.cli.status import render


def answer(**config: Any) -> dict[str, Any]:
    """Of a daemon that has nothing to tell but its configuration."""
    return {
        "node": "worker1",
        "version": "1",
        "uptime_s": 1.0,
        "config": {"file": "bgpd.yaml", "state": "in use", **config},
        "source": {"kind": "manifests", "state": "synced", "lastError": ""},
        "podCIDRs": [],
        "speaker": {"connected": True},
        "drain": "no",
        "peers": [],
        "problems": [],
    }


def test_what_waits_for_a_restart_is_shown() -> None:
    """`in use` alone would be half of the truth."""
    screen = render(answer(needsRestart=["cni", "log"], needsSpeakerRestart=["bgp.endOfRIBTimeoutSeconds"]))
    assert screen.splitlines()[1:4] == [
        "config    bgpd.yaml: in use",
        "          not in use before bgpd.service is restarted: cni, log",
        "          not in use before bgpd-speaker.service is restarted: bgp.endOfRIBTimeoutSeconds",
    ]


def test_a_daemon_of_an_earlier_release_is_shown_too() -> None:
    assert "restarted" not in render(answer())


def test_a_session_that_bfd_does_not_watch_over_says_so() -> None:
    """Without BIRD the session is up and looks guarded."""
    bfd = {"state": "unknown", "multihop": False, "interval_ms": None, "timeout_ms": None}
    row = {"peer": "tor-a", "address": "192.0.2.1", "asn": 64512, "state": "up", "why": "", "bfd": bfd}
    assert "BFD does not answer" in peers.render([row])
    assert "BFD does not answer" not in peers.render([row | {"bfd": bfd | {"state": "up"}}])
