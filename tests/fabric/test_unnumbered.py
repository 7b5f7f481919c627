"""Peers given by interface: found by router advertisements, spoken to by link-local addresses, RFC 8950 next hops."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from datetime import datetime
from typing import Any

import pytest

from bgpd.bgp.discovery import ADVERTISE_S
from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.netns import Lab, Namespace
from tests.fabric.peer import Speaker
from tests.fabric.process import poll
from tests.fabric.unnumbered_site import NODE_ASN, POD_CIDRS, PORT, UnnumberedSite, link_local

ROUTER_ADVERTISEMENT = 134  # RFC 4861 section 4.2
SILENCE = "add table inet silence; " + "; ".join(
    f"add chain inet silence {hook} {{ type filter hook {hook} priority 0; }}; "
    f"add rule inet silence {hook} meta l4proto {{ tcp, udp }} {way} eth1 drop"
    for hook, way in (("input", "iifname"), ("output", "oifname"))
)
each_tor = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Frr, marks=pytest.mark.needs(*Frr.programs), id="frr"),
        pytest.param(Bird, marks=pytest.mark.needs("bird"), id="bird"),
    ],
)


def started(lab: Lab, *kinds: type[Speaker], **options: Any) -> UnnumberedSite:
    site = UnnumberedSite(lab, *kinds, **options).start()
    site.node.wait_healthy()
    return site


@each_tor
@pytest.mark.parametrize("asn", [65001, NODE_ASN], ids=["external", "internal"])
def test_a_peer_given_by_interface_gets_both_families_and_packets_arrive(
    lab: Lab, kind: type[Speaker], asn: int
) -> None:
    """Nothing on the link has an address that somebody configured; IPv4 goes by the IPv6 next hop."""
    site = started(lab, kind, asn=asn)
    ours, theirs = link_local(site.place, "eth1"), link_local(site.tors[0].namespace, PORT)
    assert site.node.peer("tor-a")["address"] == f"{theirs}%eth1"
    assert site.wait_routes(site.tors[0]) == dict.fromkeys(POD_CIDRS, ours)
    site.open_the_way_back()
    poll(lambda: site.reaches() == [True, True], 10, lambda: f"pings: {site.reaches()}")


@each_tor
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"passive": True}, {}),
        ({"ttlSecurity": True}, {"ttl_security": True}),
        ({"authPasswordFile": "md5"}, {"password": "s3cret"}),
    ],
    ids=["passive", "ttl-security", "md5"],
)
def test_what_a_session_can_have_works_unnumbered_too(
    lab: Lab, kind: type[Speaker], ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """Each with the same at the other end; the peer dials, or we do."""
    site = UnnumberedSite(lab, kind, peer=ours, **theirs)
    if "authPasswordFile" in ours:
        file = site.node.directory / "md5"
        file.write_text("s3cret\n")
        file.chmod(0o600)
        site.node.config["bgp"]["peers"][0]["authPasswordFile"] = str(file)
        site.node.write_config()
    site.start()
    site.node.wait_healthy()
    site.wait_routes(site.tors[0])


@each_tor
def test_bfd_watches_over_an_unnumbered_peer(lab: Lab, kind: type[Speaker]) -> None:
    """Single hop, between the link-local addresses; a path that carries nothing ends BGP's session at our end."""
    timers = {"transmitIntervalMilliseconds": 100, "receiveIntervalMilliseconds": 100}
    site = started(lab, kind, peer={"bfd": timers, "timers": {"holdTimeSeconds": 90}}, bfd_ms=100, hold_time_s=90)
    site.node.wait_status("BFD is not up", lambda it: it["peers"][0]["bfd"]["state"] == "up")
    assert site.node.peer("tor-a")["bfd"]["multihop"] is False
    site.place.run(["nft", SILENCE])
    row = site.node.wait_status("the session stays", lambda it: it["peers"][0]["state"] == "down", 5)["peers"][0]
    assert "BFD went down" in row["why"]


@each_tor
def test_a_speaker_that_is_killed_keeps_its_routes_by_graceful_restart(lab: Lab, kind: type[Speaker]) -> None:
    """Both families, over the link-local session: the ToR holds stale routes until they are refreshed."""
    site = started(lab, kind, hold_time_s=90)
    site.wait_routes(site.tors[0])
    assert site.node.speaker is not None
    site.node.speaker.kill()
    poll(lambda: stale(site) == [True, True], 10, lambda: str(site.tors[0].paths()))
    site.node.start_speaker()
    site.node.wait_healthy()
    poll(lambda: stale(site) == [False, False], 10, lambda: str(site.tors[0].paths()))


def mac_of(namespace: Namespace) -> str:
    shown = namespace.run(["ip", "-j", "link", "show", PORT]).stdout
    return str(json.loads(shown)[0]["address"])


def stale(site: UnnumberedSite) -> list[bool]:
    return [path.stale for path in site.tors[0].paths() if path.prefix in POD_CIDRS]


@pytest.mark.needs(*Frr.programs, "bird")
def test_a_switch_that_is_replaced_is_found_by_its_advertisements(lab: Lab) -> None:
    """Another MAC address, another link-local address; the other uplink keeps its session all the while."""
    site = started(lab, Frr, Bird)
    before = site.node.peer("tor-b")["since_s"]
    tor = site.tors[0]
    tor.stop()
    tor.namespace.ip(f"link set {PORT} down", f"link set {PORT} address 02:00:00:00:00:aa", f"link set {PORT} up")
    site.node.wait_status("the session stays", lambda it: it["peers"][0]["state"] == "down")
    tor.start()
    theirs = link_local(tor.namespace, PORT)
    site.node.wait_status("not found", lambda it: it["peers"][0]["address"] == f"{theirs}%eth1", 30)
    site.node.wait_healthy()
    site.wait_routes(tor)
    assert site.node.peer("tor-b")["flaps"] == 0
    assert site.node.peer("tor-b")["since_s"] > before


@pytest.mark.needs(*Frr.programs)
def test_an_interface_that_goes_and_comes_back_is_told(lab: Lab) -> None:
    """Deleted, not only down: ExaBGP is not left with an address that nobody can dial from."""
    site = started(lab, Frr)
    site.place.ip("link del eth1")
    row = site.node.wait_status("it is there", lambda it: "no interface" in it["peers"][0]["why"], 10)["peers"][0]
    assert (row["state"], row["address"], row["why"]) == ("down", None, "there is no interface eth1")
    lab.link(site.place, "eth1", site.tors[0].namespace, PORT)
    site.node.wait_healthy()
    site.wait_routes(site.tors[0])


@pytest.mark.needs("bird")
def test_a_silent_link_and_one_with_several_routers_are_told(lab: Lab) -> None:
    """Which question to ask at the other end, or what to configure instead."""
    site = UnnumberedSite(lab, Bird)
    site.node.start()
    site.node.wait_problem("peer tor-a is down: nobody on eth1 says that it is a router")
    checked = site.node.try_bgpd("check")
    assert "nobody on eth1 says that it is a router" in checked.stdout
    assert "nobody on eth1 says that it is a router" in site.node.try_bgpd("doctor").stdout
    assert site.node.daemon is not None
    site.node.daemon.stop()
    for tail in ("2", "3"):
        site.place.ip(f"neigh add fe80::{tail} lladdr 02:00:00:00:00:0{tail} dev eth1 router nud permanent")
    site.node.start_daemon()
    assert "several routers (fe80::2, fe80::3)" in site.node.wait_problem("peer tor-a is down: eth1 has several")
    site.place.ip("neigh del fe80::3 dev eth1")
    site.node.wait_status("not found", lambda it: it["peers"][0]["address"] == "fe80::2%eth1")
    site.place.ip("neigh add fe80::3 lladdr 02:00:00:00:00:03 dev eth1 router nud permanent")
    site.node.wait_problem("eth1 has other routers too (fe80::3)")
    assert site.node.peer("tor-a")["address"] == "fe80::2%eth1"


@pytest.mark.needs("nft", *Frr.programs)
def test_a_link_that_takes_no_advertisements_is_nothing_to_the_others(lab: Lab) -> None:
    """A firewall of the node answers EPERM: named where it is, and the switch at the other link finds the node."""
    site = UnnumberedSite(lab, Frr, Frr)
    rule = "oifname eth1 icmpv6 type { nd-router-advert, nd-router-solicit } drop"
    output = "{ type filter hook output priority 0; }"
    script = f"add table inet silence; add chain inet silence out {output}; add rule inet silence out {rule}"
    site.place.run(["nft", script])
    site.tors[1].start()
    site.node.start()
    site.wait_routes(site.tors[1])
    site.node.wait_problem("router advertisements cannot be sent on eth1: a firewall of this node drops them")


@pytest.mark.needs("bird")
def test_a_restart_beside_a_second_router_ends_no_session(lab: Lab) -> None:
    """Anybody on the link may say that it is a router: who was there first is who ExaBGP has the session with."""
    site = started(lab, Bird)
    site.place.ip("neigh add fe80::3 lladdr 02:00:00:00:00:03 dev eth1 router nud permanent")
    assert site.node.daemon is not None
    site.node.daemon.stop()
    site.node.start_daemon()
    why = site.node.wait_status("not told", lambda it: "has other routers too" in it["peers"][0]["why"])
    assert why["peers"][0]["state"] == "up"
    assert len(site.wait_routes(site.tors[0])) == len(POD_CIDRS)


@pytest.mark.needs("bird")
@pytest.mark.parametrize("state", ["stale", "reachable"])
def test_of_several_routers_those_that_do_not_answer_are_left_out(lab: Lab, state: str) -> None:
    """The remains of a switch that was replaced while nobody looked: the kernel is made to ask."""
    site = UnnumberedSite(lab, Bird)
    theirs = link_local(site.tors[0].namespace, PORT)
    for address, mac in (("fe80::2", "02:00:00:00:00:02"), (theirs, mac_of(site.tors[0].namespace))):
        site.place.ip(f"neigh replace {address} lladdr {mac} dev eth1 router nud {state}")
    site.start()
    site.node.wait_status("not found", lambda it: it["peers"][0]["address"] == f"{theirs}%eth1", 20)
    site.wait_routes(site.tors[0])


@pytest.mark.needs("bird")
def test_a_link_is_told_of_the_node_at_once(lab: Lab) -> None:
    """Not only when a second advertisement would be due: a switch that is found by it waits for that."""
    site = UnnumberedSite(lab, Bird)
    tor = site.tors[0].namespace
    with contextlib.closing(tor.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)) as raw:
        site.node.start()
        raw.settimeout(2 * ADVERTISE_S[1])
        while raw.recv(1500)[0] != ROUTER_ADVERTISEMENT:
            pass
        assert time.time() - event_at(site, "started") < ADVERTISE_S[0]


def event_at(site: UnnumberedSite, event: str) -> float:
    """The first such line of the daemon's log."""
    assert site.node.daemon is not None
    lines = map(json.loads, filter(None, site.node.daemon.log().splitlines()))
    return next(datetime.fromisoformat(line["ts"]).timestamp() for line in lines if line["event"] == event)


@pytest.mark.needs("bird")
def test_a_peer_that_takes_no_ipv6_next_hops_is_not_sent_any(lab: Lab) -> None:
    """RFC 8950 section 4: the route waits, with the remedy for either side; IPv6 routes are announced."""
    site = UnnumberedSite(lab, Bird)
    site.tors[0].reconfigure_neighbor(site.tors[0].options.neighbors[0].address, extended_next_hop=False)
    site.start()
    site.tors[0].wait_route(POD_CIDRS[1])
    (row,) = [row for row in site.node.ask("routes") if row["prefix"] == POD_CIDRS[0]]
    assert row["announced"] is False
    assert "takes no IPv6 next hops for IPv4 prefixes (RFC 8950)" in row["why"]
    assert site.tors[0].paths(POD_CIDRS[0]) == []
