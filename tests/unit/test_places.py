"""Where peers are that are not given by address, by what the kernel shows, and what of that lasts."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
import yaml

from bgpd.bgp.places import HOLD_S, Place, after, places
from bgpd.bgp.plan import Drain, plan
from bgpd.config.bgp import Bgp
from bgpd.config.parse import parse
from bgpd.model.bgp import Family, LocalEnd, RouteKey
from bgpd.model.node import Node
from bgpd.model.uplink import NO_UPLINKS, NOT_READ, Gateway, Link, Route, Uplinks

OURS, A, B = IPv6Address("fe80::63"), IPv6Address("fe80::a"), IPv6Address("fe80::b")
NODE = Node("worker1", (ip_network("188.188.0.0/24"), ip_network("fd00:188::/64")), (ip_address("11.8.37.63"),))
UP = Link(is_up=True, local=OURS)
GATEWAY, LINKED = Gateway(ip_address("192.0.2.1")), Gateway(A, "eth1")


def bgp(peers: Any) -> Bgp:
    document = {
        "source": {"manifests": "/m"},
        "bgp": {"localASN": 64512, "peers": peers, "advertisements": [{"advertisementType": "PodCIDR"}]},
    }
    return parse(yaml.safe_dump(document).encode(), "bgpd.yaml").config.bgp


def found(peers: Any, uplinks: Uplinks) -> tuple[Place, ...]:
    return places(bgp(peers).peers, uplinks)


def on(link: str, **peer: Any) -> dict[str, Any]:
    return {"name": f"tor-{link}", "interface": link, "peerASN": 65001, **peer}


def heard(*routers: IPv6Address, before: Uplinks = NO_UPLINKS, link: Link = UP) -> Uplinks:
    """After a look that showed these routers on eth1."""
    return after(before, Uplinks({"eth1": replace(link, routers=frozenset(routers))}), 0.0)


def test_the_one_router_on_the_link_is_the_peer() -> None:
    """At its link-local address, from ours; with both families, and one next hop for them."""
    result = plan(bgp([on("eth1")]), {}, NODE, Drain.NO, uplinks=heard(A))
    neighbor = result.neighbors["tor-eth1"]
    assert (neighbor.peer_address, neighbor.local_address, neighbor.interface) == (A, OURS, "eth1")
    assert neighbor.families == tuple(Family)
    assert {path.next_hop for path in result.routes.values()} == {OURS}
    assert result.places[0].shown == "fe80::a%eth1"


def test_ipv6_alone_needs_no_other_next_hop() -> None:
    """Nothing is offered that the one family has no use for."""
    result = plan(bgp([on("eth1", families=["ipv6-unicast"])]), {}, NODE, Drain.NO, uplinks=heard(A))
    neighbor = result.neighbors["tor-eth1"]
    assert (neighbor.families, neighbor.extended_next_hop) == ((Family.IPV6,), False)


@pytest.mark.parametrize(
    ("uplinks", "why"),
    [
        (NOT_READ, "the kernel has not been asked yet"),
        (NO_UPLINKS, "there is no interface eth1"),
        (heard(link=Link(is_up=True, local=None)), "eth1 has no link-local IPv6 address"),
        (heard(link=Link(is_up=False, local=None)), "eth1 is down, or has no carrier"),
        (heard(link=Link(is_up=False, local=OURS)), "eth1 is down, or has no carrier"),
        (heard(), "nobody on eth1 says that it is a router"),
        (heard(A, B), "eth1 has several routers (fe80::a, fe80::b)"),
        (replace(heard(), problem="CAP_NET_RAW"), "CAP_NET_RAW"),
    ],
)
def test_what_is_missing_is_named(uplinks: Uplinks, why: str) -> None:
    """A session that should be, as opposed to one that is not meant for this node."""
    result = plan(bgp([on("eth1")]), {}, NODE, Drain.NO, uplinks=uplinks)
    assert why in result.unplaced["tor-eth1"]
    assert not result.neighbors and not result.idle_peers


def test_a_node_selector_goes_before_the_search() -> None:
    """A peer that is not this node's is not missed."""
    peer = on("eth1", nodeSelector={"matchLabels": {"rack": "r2"}})
    result = plan(bgp([peer]), {}, NODE, Drain.NO, uplinks=NO_UPLINKS)
    assert result.idle_peers.keys() == {"tor-eth1"}
    assert not result.unplaced


def test_a_router_stays_until_another_one_is_there_alone() -> None:
    """Silence, an address that the interface lost, and a rival change nothing; a successor does."""
    known = heard(A)
    for routers, link in (((), UP), ((A, B), UP), ((A,), Link(is_up=False, local=None)), ((), UP)):
        known = heard(*routers, before=known, link=link)
        (place,) = found([on("eth1")], known)
        assert (place.address, place.local) == (A, OURS)
    (place,) = found([on("eth1")], heard(B, before=known))
    assert place.address == B
    assert "other routers too (fe80::b)" in found([on("eth1")], heard(A, B, before=known))[0].remark


def test_another_address_of_ours_beside_the_session_s_changes_nothing() -> None:
    """Nor after a restart of the daemon, which knows what ExaBGP has; one that is gone is replaced."""
    lower, first, second = IPv6Address("fe80::1"), ip_address("192.0.2.63"), ip_address("192.0.2.9")
    both = Link(is_up=True, local=lower, ours=frozenset({lower, OURS}))
    (place,) = found([on("eth1")], heard(A, before=heard(A), link=both))
    assert place.local == OURS
    gateways = {GATEWAY: Route(second, ours=frozenset({first, second}))}
    for loaded, expected in ((first, first), (second, second), (ip_address("192.0.2.1"), second)):
        kept = {"auto-192.0.2.1": LocalEnd(loaded, IPv4Address("10.0.0.1"), GATEWAY.address)}
        result = plan(bgp("auto"), {}, NODE, Drain.NO, loaded=kept, uplinks=Uplinks(gateways=gateways))
        assert result.neighbors["auto-192.0.2.1"].local_address == expected


def test_who_of_several_routers_was_there_first_is_known_after_a_restart() -> None:
    """ExaBGP has the session; one that is not among them is not believed."""
    for theirs, expected in ((A, A), (B, B), (IPv6Address("fe80::c"), None)):
        kept = {"tor-eth1": LocalEnd(OURS, IPv4Address("10.0.0.1"), theirs)}
        result = plan(bgp([on("eth1")]), {}, NODE, Drain.NO, loaded=kept, uplinks=heard(A, B))
        neighbor = result.neighbors.get("tor-eth1")
        assert (neighbor and neighbor.peer_address) == expected
        assert ("tor-eth1" in result.unplaced) is (expected is None)


def test_an_interface_that_is_gone_keeps_nothing() -> None:
    """What is there later may be another one."""
    gone = after(heard(A), NO_UPLINKS, 1.0)
    assert found([on("eth1")], gone)[0].address is None
    assert found([on("eth1")], heard(before=gone))[0].address is None


def test_one_address_on_two_links_is_one_session() -> None:
    """ExaBGP and we know a peer by its address."""
    uplinks = Uplinks({name: replace(UP, routers=frozenset({A}), peer=A) for name in ("eth1", "eth2")})
    first, second = found([on("eth1"), on("eth2")], uplinks)
    assert first.address == A
    assert second.address is None
    assert "tor-eth1 on eth1 has the address fe80::a too" in second.why


def test_auto_is_every_gateway_and_internal() -> None:
    """Named by their addresses, each with our address on its link, else the node's."""
    beyond = Gateway(ip_address("198.51.100.1"))
    routes = {LINKED: Route(OURS), GATEWAY: Route(ip_address("192.0.2.63")), beyond: Route(None)}
    result = plan(bgp("auto"), {}, NODE, Drain.NO, uplinks=Uplinks(gateways=routes))
    ends = {name: str(neighbor.local_address) for name, neighbor in result.neighbors.items()}
    assert ends == {
        "auto-192.0.2.1": "192.0.2.63",
        "auto-198.51.100.1": "11.8.37.63",
        "auto-fe80::a%eth1": str(OURS),
    }
    assert all(neighbor.internal for neighbor in result.neighbors.values())
    assert result.routes.keys() == {
        RouteKey("auto-192.0.2.1", NODE.pod_cidrs[0]),
        RouteKey("auto-198.51.100.1", NODE.pod_cidrs[0]),
        RouteKey("auto-fe80::a%eth1", NODE.pod_cidrs[1]),
    }


def test_a_gateway_that_is_a_peer_already_is_not_one_twice() -> None:
    """By its address, or behind the interface of an unnumbered one."""
    auto = {"name": "gw", "peerASN": 64512, "autoDiscovery": {"mode": "DefaultGateway"}}
    tor = {"name": "tor", "peerAddress": "192.0.2.1", "peerASN": 64512}
    uplinks = replace(heard(A), gateways={GATEWAY: Route(None), LINKED: Route(OURS)})
    assert [(place.name, place.address) for place in found([auto, tor, on("eth1")], uplinks)] == [
        ("gw", None),
        ("tor", GATEWAY.address),
        ("tor-eth1", A),
    ]


def test_a_gateway_without_its_default_route_is_kept_for_a_while() -> None:
    """And told; when the route is back nothing has happened."""
    there = Uplinks(gateways={GATEWAY: Route(None)})
    gone = after(there, NO_UPLINKS, 100.0)
    (place,) = found("auto", gone)
    assert place.address == GATEWAY.address
    assert "no default route goes by it any more" in place.remark
    assert after(gone, there, 110.0) == there
    assert after(gone, NO_UPLINKS, 100.0 + HOLD_S - 1) == gone
    (place,) = found("auto", after(gone, NO_UPLINKS, 100.0 + HOLD_S))
    assert (place.name, place.address) == ("auto", None)
    assert "no default route with a gateway" in place.why


def test_a_gateway_that_lost_its_route_while_the_daemon_was_away_is_kept_for_a_while() -> None:
    """The speaker has the session: it stays as it is, until this daemon has looked long enough to know itself."""
    ends = {
        "auto-192.0.2.1": LocalEnd(ip_address("192.0.2.63"), IPv4Address("10.0.0.1"), GATEWAY.address),
        "auto-fe80::a%eth1": LocalEnd(OURS, IPv4Address("10.0.0.1"), A),
        "tor": LocalEnd(ip_address("192.0.2.63"), IPv4Address("10.0.0.1"), ip_address("192.0.2.7")),
    }
    young = Uplinks(new_to=frozenset({"lo", "eth1"}))
    result = plan(bgp("auto"), {}, NODE, Drain.NO, loaded=ends, uplinks=young)
    kept = {name: neighbor.local_address for name, neighbor in result.neighbors.items()}
    assert kept == {name: ends[name].address for name in ("auto-192.0.2.1", "auto-fe80::a%eth1")}
    assert all("no default route goes by it any more" in place.remark for place in result.places)
    back = replace(young, gateways={GATEWAY: Route(ip_address("192.0.2.63"))})
    assert places(bgp("auto").peers, back, ends)[0].remark == ""
    for later in (NO_UPLINKS, after(young, NO_UPLINKS, HOLD_S)):
        assert [place.address for place in places(bgp("auto").peers, later, ends)] == [None]


def test_of_what_the_speaker_has_only_gateways_of_the_entry_are_kept() -> None:
    """Not behind an interface that is gone, not of another family, not one that is a peer by itself."""
    ends = {
        "gw-192.0.2.1": LocalEnd(ip_address("192.0.2.63"), IPv4Address("10.0.0.1"), GATEWAY.address),
        "gw-fe80::a%eth1": LocalEnd(OURS, IPv4Address("10.0.0.1"), A),
        "gw-fe80::b%eth9": LocalEnd(OURS, IPv4Address("10.0.0.1"), B),
        "gw-2-192.0.2.9": LocalEnd(ip_address("192.0.2.63"), IPv4Address("10.0.0.1"), ip_address("192.0.2.9")),
    }
    auto: dict[str, Any] = {"name": "gw", "peerASN": 64512, "autoDiscovery": {"mode": "DefaultGateway"}}
    six = {**auto, "autoDiscovery": {"mode": "DefaultGateway", "defaultGateway": {"addressFamily": "ipv6"}}}
    tor = {"name": "tor", "peerAddress": "192.0.2.1", "peerASN": 64512}
    young = Uplinks(new_to=frozenset({"eth1"}))
    for peers, expected in (
        ([auto], ["gw-192.0.2.1", "gw-fe80::a%eth1"]),
        ([six], ["gw-fe80::a%eth1"]),
        ([auto, tor], ["gw-fe80::a%eth1", "tor"]),
    ):
        assert [place.name for place in places(bgp(peers).peers, young, ends)] == expected


def test_a_gateway_behind_an_interface_that_is_gone_is_gone() -> None:
    """There is nothing to dial from."""
    there = Uplinks({"eth1": UP}, {LINKED: Route(OURS)})
    assert not after(there, NO_UPLINKS, 1.0).gateways
    assert after(there, Uplinks({"eth1": UP}), 1.0).gateways
