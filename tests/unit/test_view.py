"""What `bgpd peers`, `bgpd routes` and the log say of sessions and routes, and that it is never a guess."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import yaml

from bgpd.bgp import view
from bgpd.bgp.plan import BgpPlan, Drain, plan
from bgpd.config.bgp import Bgp
from bgpd.config.parse import parse
from bgpd.model.bfd import BfdState, Down, State
from bgpd.model.bfd import Session as BfdSession
from bgpd.model.bgp import (
    Announcement,
    AnnouncementKey,
    EndOfRib,
    EndOfRibKey,
    Family,
    Path,
    RouteKey,
    Session,
    SpeakerState,
)
from bgpd.model.node import Node

NOW = 1000.0
TOR_A = ip_address("11.11.255.1")
UP = Session(up=True, since=NOW - 60, ups=1, families=(Family.IPV4,))
CONNECTED = SpeakerState(connected=True, reason="", sessions={TOR_A: UP})
GONE = SpeakerState(connected=False, reason="speaker.sock: Connection refused", sessions={TOR_A: UP})
OURS, FOREIGN = ip_network("188.188.0.0/24"), ip_network("10.0.0.0/24")
PATH = Path(ip_address("11.8.37.63"))


NAMES = {TOR_A: "tor-a"}


def bgp(**peer: Any) -> Bgp:
    """One peer, one PodCIDR advertisement, a brake."""
    document = {
        "source": {"manifests": "/m"},
        "bgp": {
            "localASN": 64512,
            "peers": [{"name": "tor-a", "peerAddress": str(TOR_A), "peerASN": 64512, **peer}],
            "advertisements": [{"advertisementType": "PodCIDR"}],
            "export": {"allow": ["188.188.0.0/16"]},
        },
    }
    return parse(yaml.safe_dump(document).encode(), "bgpd.yaml").config.bgp


def planned(*prefixes: Any) -> BgpPlan:
    return plan(bgp(), {}, Node("worker1", prefixes, (ip_address("11.8.37.63"),)), Drain.NO)


def carrying(*prefixes: Any) -> dict[AnnouncementKey, Announcement]:
    """What the adj-rib-out was when it was last read."""
    routes: dict[AnnouncementKey, Announcement] = {RouteKey("tor-a", prefix): PATH for prefix in prefixes}
    return routes | {EndOfRibKey("tor-a", Family.IPV4): EndOfRib()}


def test_a_route_that_is_as_wanted_needs_no_reason() -> None:
    """Wanted, announced, and its path."""
    (row,) = view.routes(planned(OURS), CONNECTED, carrying(OURS), {}, "pending")
    assert (row["wanted"], row["announced"], row["why"], row["nextHop"]) == (True, True, "", "11.8.37.63")


def test_nobody_knows_what_a_speaker_that_does_not_answer_announces() -> None:
    """It may have withdrawn everything and stopped: what was last read is no answer."""
    (row,) = view.routes(planned(OURS), GONE, carrying(OURS, FOREIGN), {}, "pending")
    assert (row["prefix"], row["wanted"], row["announced"], row["why"]) == (str(OURS), True, None, GONE.reason)
    (peer,) = view.peers(planned(OURS), GONE, carrying(OURS), {}, NOW)
    assert (peer["state"], peer["wanted"], peer["announced"], peer["endOfRIB"]) == ("unknown", 1, None, [])


def test_what_is_announced_and_not_wanted_says_what_becomes_of_it() -> None:
    """Refused or not, as long as it is there; what is refused and not there has nothing to wait for."""
    before = carrying(OURS, FOREIGN)
    old, refused = view.routes(planned(FOREIGN), CONNECTED, before, {}, "withdrawn in 8 s")[::-1]
    assert (old["wanted"], old["announced"], old["why"]) == (False, True, "withdrawn in 8 s")
    assert (refused["announced"], refused["why"]) == (True, "outside export.allow; withdrawn in 8 s")
    (refused,) = view.routes(planned(FOREIGN), CONNECTED, carrying(), {}, "withdrawn in 8 s")
    assert (refused["announced"], refused["why"]) == (False, "outside export.allow")


def test_a_session_is_named_before_its_node_is_known() -> None:
    """A daemon that starts finds sessions up: it knows their peers from the configuration, and says since when."""
    (row,) = view.transitions(NAMES, SpeakerState(), CONNECTED, NOW)
    assert row == {"peer": "tor-a", "address": str(TOR_A), "state": "up", "for_s": 60.0}


def test_a_session_that_comes_up_before_our_eyes_is_news() -> None:
    """Then there is no "for how long"."""
    (row,) = view.transitions(NAMES, SpeakerState(connected=True), CONNECTED, NOW)
    assert row == {"peer": "tor-a", "address": str(TOR_A), "state": "up"}


WATCHED = plan(bgp(bfd={}), {}, Node("worker1", (OURS,), (ip_address("11.8.37.63"),)), Drain.NO)
BFD_UP = BfdSession(State.UP, 100.0, 300, 900)
BFD_DOWN = BfdSession(State.DOWN, 100.0, 1000, 0)


def test_bfd_that_is_up_has_nothing_to_say() -> None:
    """State, kind and times; a peer without BFD has none of it."""
    state = BfdState(True, "", {TOR_A: BFD_UP})
    (row,) = view.peers(WATCHED, CONNECTED, {}, {}, NOW, state)
    assert row["bfd"] == {"state": "up", "multihop": True, "interval_ms": 300, "timeout_ms": 900}
    assert row["why"] == ""
    (row,) = view.peers(planned(OURS), CONNECTED, {}, {}, NOW, state)
    assert row["bfd"] is None


def test_bfd_that_never_came_up_asks_what_may_be_wrong() -> None:
    """The session is up, and its path is not watched."""
    (row,) = view.peers(WATCHED, CONNECTED, {}, {}, NOW, BfdState(True, "", {TOR_A: BFD_DOWN}))
    assert (row["state"], row["bfd"]["state"]) == ("up", "down")
    assert row["why"] == "BFD is down: has 11.11.255.1 multihop BFD for 11.8.37.63, does UDP port 4784 pass?"


def test_a_session_that_bfd_has_ended_says_so() -> None:
    """In `peers`, and for each route that is gone with it."""
    state = BfdState(True, "", {TOR_A: BFD_DOWN}, {TOR_A: Down(900)})
    session = Session(up=False, since=NOW - 1, reason="notification sent (6,10)", ups=1)
    ended = SpeakerState(True, "", {TOR_A: session})
    why = "BFD went down: nothing from 11.11.255.1 for 900 ms"
    (row,) = view.peers(WATCHED, ended, {}, {}, NOW, state)
    assert row["why"] == f"{why}; notification sent (6,10)"
    (route,) = view.routes(WATCHED, ended, {}, {}, "pending", bfd=state)
    assert route["why"] == f"{why}; session down: notification sent (6,10)"


def test_a_peer_that_shut_bfd_down_itself_keeps_its_session() -> None:
    """And `peers` says that nobody watches over it."""
    state = BfdState(True, "", {TOR_A: BFD_DOWN}, {TOR_A: Down(900, said=True)})
    (row,) = view.peers(WATCHED, CONNECTED, {}, {}, NOW, state)
    why = "BFD went down: 11.11.255.1 says so, it does not hear us or BFD was shut down there"
    assert (row["state"], row["why"]) == ("up", why)


def test_nothing_is_said_of_bfd_while_bird_does_not_answer() -> None:
    """That is one problem of the node, not one of each peer."""
    (row,) = view.peers(WATCHED, CONNECTED, {}, {}, NOW, BfdState(reason="bird.ctl: No such file"))
    assert (row["bfd"]["state"], row["why"]) == ("unknown", "")
