"""`peers: auto`: a session with each gateway of a default route, multipath and link-local ones included."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bgpd.bgp.discovery import SETTLE_S
from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.netns import Lab
from tests.fabric.node import node_manifest
from tests.fabric.peer import FAMILIES, IPV4, IPV6, Neighbor, Speaker
from tests.fabric.process import poll
from tests.fabric.unnumbered_site import NODE_ASN, POD_CIDRS, PORT, UnnumberedSite, link_local

BOTH = "default nexthop via 10.0.1.1 nexthop via 10.0.2.1"
SECOND = "default via 10.0.2.1"


def site_of(lab: Lab, *kinds: type[Speaker], peers: Any = "auto") -> UnnumberedSite:
    """Each cable has a /24, the node .2 on it; the first ToR is spoken to by its link-local address too."""
    site = UnnumberedSite(lab, *kinds, asn=NODE_ASN)
    for index, (uplink, tor) in enumerate(zip(site.uplinks, site.tors, strict=True), start=1):
        site.place.add_address(uplink, f"10.0.{index}.2/24")
        tor.namespace.add_address(PORT, f"10.0.{index}.1/24")
        numbered = Neighbor(address=f"10.0.{index}.2", asn=NODE_ASN, families=(IPV4,), direct=True)
        unnumbered = (
            Neighbor(
                address=link_local(site.place, uplink),
                interface=PORT,
                asn=NODE_ASN,
                families=(IPV6,),
                direct=True,
            ),
        )
        tor.reconfigure(neighbors=(numbered, *(unnumbered if index == 1 else ())))
    site.node.config["bgp"]["peers"] = peers
    site.node.write_config()
    return site


def states(site: UnnumberedSite) -> dict[str, str]:
    return {row["peer"]: row["state"] for row in site.node.status()["peers"]}


def wait_kept(site: UnnumberedSite, names: set[str]) -> None:
    """Until these peers are told to be gateways no more."""

    def kept() -> set[str]:
        return {row["peer"] for row in site.node.status()["peers"] if "kept for now" in row["why"]}

    poll(lambda: kept() == names, 20, lambda: f"{kept()} are kept, not {names}")


@pytest.mark.needs("bird", *Frr.programs)
def test_every_gateway_of_every_default_route_is_a_peer(lab: Lab) -> None:
    """ECMP over two ToRs, and an IPv6 gateway by its link-local address; each session has its link's addresses."""
    site = site_of(lab, Bird, Frr)
    theirs = link_local(site.tors[0].namespace, PORT)
    site.place.ip(f"route add {BOTH}", f"route add ::/0 via {theirs} dev eth1")
    site.start()
    site.node.wait_healthy()
    linked = f"auto-{theirs}%eth1"
    assert states(site) == dict.fromkeys(["auto-10.0.1.1", "auto-10.0.2.1", linked], "up")
    assert site.tors[0].wait_route(POD_CIDRS[0]).next_hop == "10.0.1.2"
    assert site.tors[1].wait_route(POD_CIDRS[0]).next_hop == "10.0.2.2"
    assert site.tors[0].wait_route(POD_CIDRS[1]).next_hops[-1] == link_local(site.place, "eth1")
    rows = site.node.ask("routes", "--peer", linked)
    assert [row["prefix"] for row in rows if row["announced"]] == [POD_CIDRS[1]]


@pytest.mark.needs("bird")
def test_a_default_route_that_goes_for_a_moment_ends_no_session(lab: Lab) -> None:
    """Both gateways, then one alone, then none: the sessions stay, told to be kept; a new gateway joins at once."""
    site = site_of(lab, Bird, Bird)
    (site.node.manifests / "node.yaml").write_text(node_manifest("worker1", [POD_CIDRS[0]]))
    site.start()
    site.node.wait_problem("peer auto is down: this node has no default route with a gateway")
    site.place.ip(f"route add {SECOND}")
    site.node.wait_status("not up", lambda it: [row["state"] for row in it["peers"]] == ["up"])
    site.place.ip(f"route replace {BOTH}")
    site.node.wait_status("not both", lambda it: [row["state"] for row in it["peers"]] == ["up", "up"])
    before = {row["peer"]: row["flaps"] for row in site.node.status()["peers"]}
    assert before == {"auto-10.0.1.1": 0, "auto-10.0.2.1": 0}
    site.place.ip("route del default")
    site.node.wait_problem("peer auto-10.0.1.1 is up: no default route goes by it any more")
    site.place.ip(f"route add {SECOND}")
    site.node.wait_status("told", lambda it: not it["peers"][1]["why"] and it["peers"][0]["why"])
    site.place.ip(f"route replace {BOTH}")
    site.node.wait_healthy()
    assert {row["peer"]: row["flaps"] for row in site.node.status()["peers"]} == before


@pytest.mark.needs("bird")
def test_a_daemon_that_starts_while_a_default_route_is_away_ends_no_session(lab: Lab) -> None:
    """One gateway of two is gone, then both, v4 and link-local: the sessions stay, and `peers` tells why."""
    site = site_of(lab, Bird, Bird)
    theirs = link_local(site.tors[0].namespace, PORT)
    site.place.ip(f"route add {BOTH}", f"route add ::/0 via {theirs} dev eth1")
    site.start()
    site.node.wait_healthy()
    names = {"auto-10.0.1.1", "auto-10.0.2.1", f"auto-{theirs}%eth1"}
    before = {row["peer"]: row["flaps"] for row in site.node.status()["peers"]}
    assert before == dict.fromkeys(names, 0)
    for lost, gone in (
        ([f"route replace {SECOND}", "route del ::/0"], names - {"auto-10.0.2.1"}),
        (["route del default"], names),
    ):
        assert site.node.daemon is not None
        site.node.daemon.stop()
        site.place.ip(*lost)
        site.node.start_daemon()
        wait_kept(site, gone)
        time.sleep(SETTLE_S + 2)  # what is not found by then is not waited for
        assert states(site) == dict.fromkeys(names, "up")
    site.place.ip(f"route add {BOTH}", f"route add ::/0 via {theirs} dev eth1")
    site.node.wait_healthy()
    assert {row["peer"]: row["flaps"] for row in site.node.status()["peers"]} == before


@pytest.mark.needs("bird")
def test_another_address_of_ours_beside_the_session_s_ends_no_session(lab: Lab) -> None:
    """As temporary ones (RFC 8981) and VIPs come; the kernel lists the newest first. A restart does not mind it."""
    site = site_of(lab, Bird)
    tor, ours = site.tors[0], "fd00:10::2"
    site.place.ip(f"addr add {ours}/64 dev eth1 nodad", "route add ::/0 via fd00:10::1 dev eth1")
    tor.namespace.ip(f"addr add fd00:10::1/64 dev {PORT} nodad")
    (site.node.manifests / "node.yaml").write_text(node_manifest("worker1", [POD_CIDRS[1]]))
    tor.reconfigure(neighbors=(Neighbor(address=ours, asn=NODE_ASN, families=(IPV6,), direct=True),))
    site.start()
    site.node.wait_healthy()
    site.place.ip("addr add fd00:10::99/64 dev eth1 nodad", "addr add fd00:10::98/64 dev eth1")
    assert site.node.daemon is not None
    site.node.daemon.stop()
    site.node.start_daemon()
    site.node.wait_healthy()
    (row,) = site.node.status()["peers"]
    assert (row["state"], row["localAddress"], row["flaps"]) == ("up", ours, 0)


@pytest.mark.needs("bird")
def test_one_family_an_entry_of_its_own_and_what_is_configured_for_all(lab: Lab) -> None:
    """A gateway that is a peer by its address already is left to that; the others have what the entry gives."""
    peers = [
        {"name": "tor-b", "peerAddress": "10.0.2.1", "peerASN": NODE_ASN, "localAddress": "10.0.2.2"},
        {
            "name": "gw",
            "peerASN": NODE_ASN,
            "timers": {"holdTimeSeconds": 6},
            "autoDiscovery": {"mode": "DefaultGateway", "defaultGateway": {"addressFamily": "ipv4"}},
        },
    ]
    site = site_of(lab, Bird, Bird, peers=peers)
    theirs = link_local(site.tors[0].namespace, PORT)
    site.place.ip(f"route add {BOTH}", f"route add ::/0 via {theirs} dev eth1")
    site.start()
    site.node.wait_status("not up", lambda it: [row["state"] for row in it["peers"]] == ["up", "up"])
    assert {row["peer"]: row["holdTime_s"] for row in site.node.status()["peers"]} == {"tor-b": 9, "gw-10.0.1.1": 6}
    assert "gw-10.0.1.1" in site.node.bgpd("check")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Frr, marks=pytest.mark.needs(*Frr.programs), id="frr"),
        pytest.param(Bird, marks=pytest.mark.needs("bird"), id="bird"),
    ],
)
def test_a_numbered_ipv6_session_carries_ipv4_with_ipv6_next_hops(lab: Lab, kind: type[Speaker]) -> None:
    """RFC 8950 between global addresses, asked for on both sides; packets of both families arrive."""
    ours, theirs = "fd00:8::2", "fd00:8::1"
    site = UnnumberedSite(lab, kind)
    tor = site.tors[0]
    site.place.add_address("eth1", f"{ours}/64")
    tor.namespace.add_address(PORT, f"{theirs}/64")
    tor.reconfigure(neighbors=(Neighbor(address=ours, asn=NODE_ASN, families=FAMILIES, extended_next_hop=True),))
    peer = {"name": "tor-a", "peerAddress": theirs, "peerASN": 65001, "localAddress": ours}
    site.node.config["bgp"]["peers"] = [{**peer, "families": list(FAMILIES), "extendedNextHop": True}]
    site.node.write_config()
    site.start()
    site.node.wait_healthy()
    assert {tor.wait_route(prefix).next_hop for prefix in POD_CIDRS} == {ours}
    site.open_the_way_back()
    assert site.reaches() == [True, True]
