"""What `bgpd peers`, `bgpd routes` and the log say of sessions and routes, and that it is never a guess."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import yaml

from bgpd.bgp import view
from bgpd.bgp.plan import BgpPlan, Drain, plan
from bgpd.config.parse import parse
from bgpd.config.schema import Bgp
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


def bgp() -> Bgp:
    """One peer, one PodCIDR advertisement, a brake."""
    document = {
        "source": {"manifests": "/m"},
        "bgp": {
            "localASN": 64512,
            "peers": [{"name": "tor-a", "peerAddress": str(TOR_A), "peerASN": 64512}],
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
    (peer,) = view.peers(bgp(), planned(OURS), GONE, carrying(OURS), {}, NOW)
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
    (row,) = view.transitions(bgp(), SpeakerState(), CONNECTED, NOW)
    assert row == {"peer": "tor-a", "address": str(TOR_A), "state": "up", "for_s": 60.0}


def test_a_session_that_comes_up_before_our_eyes_is_news() -> None:
    """Then there is no "for how long"."""
    (row,) = view.transitions(bgp(), SpeakerState(connected=True), CONNECTED, NOW)
    assert row == {"peer": "tor-a", "address": str(TOR_A), "state": "up"}
