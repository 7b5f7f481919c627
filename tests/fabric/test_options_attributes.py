"""What each advertisement option does to a route, as BIRD, FRR and GoBGP report what they received.

`external` cases have an ASN of their own on our side (`localASN`), which makes their sessions eBGP. The
daemon does not listen here: every session is one that it dialled.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.fabric.bgp_wire import BgpMessage, BgpType
from tests.fabric.observe import BgpCapture
from tests.fabric.peer import FAMILIES, IPV6
from tests.fabric.test_options_lab import ASN, V4, V6, Bench, Case, Place, benches

OURS = 65001
OURS_LARGE = 4200000001
NEXT_HOP, NEXT_HOP6 = "10.0.0.99", "fd00::99"
COMMUNITIES = ["64512:100", "no-export", "65535:666"]
LARGE = ["64512:1:2", "4200000001:4294967295:0"]
EVERYTHING = {"communities": COMMUNITIES, "largeCommunities": LARGE, "med": 77, "localPreference": 250}
ALLOW_OWN_AS = {
    "bird": "allow local as 2;",
    "frr": "neighbor ADDRESS allowas-in 2",
    "gobgp": '{"as-path-options": {"config": {"allow-own-as": 2}}}',
}


def external(name: str, asn: int = OURS, **case: Any) -> Case:
    return Case(name=name, ours={"localASN": asn, **case.pop("ours", {})}, **case)


def dual(**ours: Any) -> dict[str, Any]:
    return {"families": list(FAMILIES), **ours}


bench = benches(
    Case(name="plain"),
    Case(name="all", attributes=EVERYTHING),
    Case(name="nothing", attributes=None),
    Case(name="prepend", attributes={"asPathPrepend": 2}),
    Case(name="prepend-allowed", attributes={"asPathPrepend": 2}, extra=ALLOW_OWN_AS),
    Case(name="own-v6", ours=dual()),
    Case(name="given-v6", ours=dual(nextHop={"ipv6": NEXT_HOP6, "ipv4": NEXT_HOP})),
    Case(name="v6-only", place=Place.NEAR6, attributes={"communities": ["64512:6"]}),
    external("ebgp"),
    external("ebgp-all", attributes=EVERYTHING),
    external("ebgp-live", attributes={"localPreference": 250, "med": 4}),
    external("ebgp-prepend", attributes={"asPathPrepend": 3}),
    external("ebgp-large", asn=OURS_LARGE, attributes={"asPathPrepend": 1}),
    external("ebgp-own-v6", ours=dual()),
    external("ebgp-given-v6", ours=dual(nextHop={"ipv6": NEXT_HOP6})),
    external("ebgp-v6-only", place=Place.NEAR6),
    external("ebgp-zero", attributes={"med": 0}),
    listenPort=0,
)


def attribute_types(update: BgpMessage) -> list[int]:
    """The types of an UPDATE's path attributes in order (RFC 4271 section 4.3)."""
    withdrawn = int.from_bytes(update.body[:2], "big")
    at = 4 + withdrawn
    end = at + int.from_bytes(update.body[at - 2 : at], "big")
    found = []
    while at < end:
        found.append(update.body[at + 1])
        wide = update.body[at] & 0x10  # the length has two bytes
        size = int.from_bytes(update.body[at + 2 : at + (4 if wide else 3)], "big")
        at += (4 if wide else 3) + size
    return found


@pytest.mark.parametrize("name", ["all", "ebgp-all"])
def test_standard_communities_arrive(bench: Bench, name: str) -> None:
    """RFC 1997: a number, a well-known name and a well-known number; exactly these three."""
    assert set(bench.route(name).communities) == {"64512:100", "65535:65281", "65535:666"}


@pytest.mark.parametrize("name", ["all", "ebgp-all"])
def test_large_communities_arrive(bench: Bench, name: str) -> None:
    """RFC 8092, all 96 bits; exactly these two."""
    assert set(bench.route(name).large_communities) == set(LARGE)


def test_each_peer_has_its_own_communities(bench: Bench) -> None:
    """One prefix, announced with communities to one peer and with none to another."""
    assert bench.route("all").communities
    assert bench.route("plain").communities == bench.route("plain").large_communities == ()
    assert bench.route("v6-only", V6).communities == ("64512:6",)


def test_a_peer_that_no_advertisement_names_gets_nothing(bench: Bench) -> None:
    """Its session is up and carries End-of-RIB, and not a single route."""
    bench.session("nothing")
    bench.complete("nothing")
    bench.route("plain")
    assert bench.speaker.route_count(bench.ours("nothing")) == 0
    assert bench.node.ask("routes", "--peer", "nothing") == []


def test_local_preference_is_sent_to_an_internal_peer(bench: Bench) -> None:
    """As configured, and 100 where it is not."""
    assert bench.route("all").local_pref == 250
    assert bench.route("plain").local_pref == 100


def test_local_preference_is_not_sent_to_an_external_peer(bench: Bench) -> None:
    """RFC 4271 section 5.1.5: what is shown instead is the speaker's own default. A speaker would hide it if it
    came, so the wire is looked at too, while the route is announced once more with another MED.
    """
    assert bench.route("ebgp-all").local_pref in (None, 100)
    bench.route("ebgp-live")
    with BgpCapture(bench.tor, "eth0") as capture:
        bench.readvertise("ebgp-live", localPreference=250, med=5)
        assert bench.wait_route("ebgp-live", lambda route: route.med == 5).local_pref in (None, 100)
        ours = bench.ours("ebgp-live")  # the session's End-of-RIB may come in too, which has none
        update = capture.wait(lambda it: it.type is BgpType.UPDATE and it.src == ours and attribute_types(it) != [])
    assert attribute_types(update) == [1, 2, 3, 4], "ORIGIN, AS_PATH, NEXT_HOP, MULTI_EXIT_DISC and no other"


@pytest.mark.parametrize(("name", "med"), [("all", 77), ("ebgp-all", 77), ("ebgp-zero", 0)])
def test_the_med_arrives(bench: Bench, name: str, med: int) -> None:
    """On internal and external sessions; 0 is a value like any other."""
    assert bench.route(name).med == med


@pytest.mark.parametrize("name", ["plain", "ebgp"])
def test_no_med_is_sent_unless_configured(bench: Bench, name: str) -> None:
    """Absent, which FRR shows as 0 for what is internal."""
    assert not bench.route(name).med
    assert bench.shown(name)["med"] is None


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("plain", ()),
        ("all", ()),
        ("ebgp", (OURS,)),
        ("ebgp-prepend", (OURS,) * 4),
        ("ebgp-large", (OURS_LARGE,) * 2),
    ],
)
def test_the_as_path_is_exact(bench: Bench, name: str, path: tuple[int, ...]) -> None:
    """Empty inside the AS; outside our ASN once and as often again as asPathPrepend says, 32 bits wide."""
    assert bench.route(name).as_path == path


def test_a_prepended_path_looks_like_a_loop_to_an_internal_peer(bench: Bench) -> None:
    """Inside an AS its own number in the path is a loop (RFC 4271 section 9.1.2): every speaker drops the route,
    unless it is told to accept its own AS.
    """
    bench.complete("prepend")
    bench.route("plain")
    assert bench.speaker.route(V4, bench.ours("prepend")) is None
    assert bench.route("prepend-allowed").as_path == (ASN,) * 2


@pytest.mark.parametrize("name", ["plain", "ebgp", "own-v6", "ebgp-own-v6"])
def test_the_next_hop_is_the_address_of_the_session(bench: Bench, name: str) -> None:
    """Unless something else is configured, and its origin is IGP."""
    route = bench.route(name)
    assert (route.next_hops, route.origin, route.usable) == ((bench.ours(name),), "igp", True)


def test_a_configured_ipv4_next_hop_arrives(bench: Bench) -> None:
    """On an internal session, where a next hop of a third party is legitimate."""
    route = bench.route("given-v6")
    assert (route.next_hops, route.usable) == ((NEXT_HOP,), True)


@pytest.mark.parametrize("name", ["own-v6", "ebgp-own-v6"])
def test_ipv6_over_an_ipv4_session_has_the_address_of_the_node(bench: Bench, name: str) -> None:
    """RFC 4760: the v6 pod CIDR comes over the v4 session with the node's own v6 address as its next hop."""
    route = bench.route(name, V6)
    assert (route.next_hop, route.usable) == (bench.place.address6, True)
    assert bench.route(name, V4).next_hop == bench.ours(name)


@pytest.mark.parametrize("name", ["given-v6", "ebgp-given-v6"])
def test_ipv6_over_an_ipv4_session_has_the_configured_next_hop(bench: Bench, name: str) -> None:
    """`nextHop.ipv6` wins over the node's own address."""
    route = bench.route(name, V6)
    assert (route.next_hop, route.usable) == (NEXT_HOP6, True)


@pytest.mark.parametrize("name", ["v6-only", "ebgp-v6-only"])
def test_a_session_between_ipv6_addresses_carries_ipv6(bench: Bench, name: str) -> None:
    """The v6 pod CIDR with the session's address as its next hop, no v4; the router id is still v4's."""
    session, route = bench.session(name), bench.route(name, V6)
    assert session.remote_id == bench.place.address
    assert session.capabilities.families == {IPV6}
    assert (route.next_hop, route.usable) == (bench.ours(name), True)
    assert bench.speaker.route(V4, bench.ours(name)) is None
    assert bench.shown(name, V4)["why"] == f"{name} has no ipv4-unicast in families"


def test_nothing_listens_when_the_port_is_0(bench: Bench) -> None:
    """`listenPort: 0`: the sessions are up, and no program in the namespace has a listening BGP socket."""
    bench.session("plain")
    listening = bench.place.namespace.run(["ss", "-H", "-l", "-t", "-n"]).stdout
    assert ":179 " not in listening, listening
