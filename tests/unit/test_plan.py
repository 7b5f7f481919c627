"""What a configuration and a node come to: sessions, routes, refusals."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bgpd.bgp.offers import Offers
from bgpd.bgp.plan import BgpPlan, Drain, plan
from bgpd.config.bgp import Bgp
from bgpd.config.parse import parse
from bgpd.model.bfd import Timers, Wanted
from bgpd.model.bgp import ASN, AdvertisementType, Family, LocalEnd, Path, RouteKey
from bgpd.model.candidate import Candidate
from bgpd.model.node import Node

NODE = Node(
    "worker1",
    (ip_network("188.188.0.0/24"), ip_network("fd00:188::/64")),
    (ip_address("11.8.37.63"), ip_address("fd00::63")),
    {"rack": "r1"},
)
DUAL = ["ipv4-unicast", "ipv6-unicast"]


def bgp(peer: dict[str, Any] | None = None, attributes: dict[str, Any] | None = None, **section: Any) -> Bgp:
    """One iBGP peer and one PodCIDR advertisement, changed as said."""
    document = {
        "source": {"manifests": "/m"},
        "bgp": {
            "localASN": 64512,
            "peers": [{"name": "tor-a", "peerAddress": "11.11.255.1", "peerASN": 64512, **(peer or {})}],
            "advertisements": [{"advertisementType": "PodCIDR", "attributes": attributes or {}}],
            **section,
        },
    }
    return parse(yaml.safe_dump(document).encode(), "bgpd.yaml").config.bgp


def planned(config: Bgp, node: Node | None = NODE, drain: Drain = Drain.NO) -> BgpPlan:
    return plan(config, {}, node, drain)


def path_of(result: BgpPlan, prefix: str) -> Path:
    return result.routes[RouteKey("tor-a", ip_network(prefix))]


def why(result: BgpPlan, prefix: str) -> str:
    return result.refused[RouteKey("tor-a", ip_network(prefix))]


def test_all_pod_cidrs_go_to_every_peer_that_has_the_family() -> None:
    """Dual stack over an IPv4 session: the IPv6 next hop is the node's IPv6 address."""
    result = planned(bgp({"families": DUAL}))
    assert path_of(result, "188.188.0.0/24") == Path(ip_address("11.8.37.63"))
    assert path_of(result, "fd00:188::/64") == Path(ip_address("fd00::63"))
    assert not result.refused


def test_a_family_the_peer_does_not_have_is_named() -> None:
    """The default families are those of the session's own address; not a fault, so not among the refused."""
    result = planned(bgp())
    assert result.unsuited[RouteKey("tor-a", ip_network("fd00:188::/64"))] == "tor-a has no ipv6-unicast in families"
    assert not result.refused


def test_a_missing_next_hop_is_refused_with_the_remedy() -> None:
    """IPv6 routes over an IPv4 session need one from somewhere."""
    node = Node("worker1", NODE.pod_cidrs, (ip_address("11.8.37.63"),))
    assert "set nextHop.ipv6" in why(planned(bgp({"families": DUAL}), node), "fd00:188::/64")


def test_a_configured_next_hop_wins() -> None:
    """Over the node's and the session's address."""
    result = planned(bgp({"families": DUAL, "nextHop": {"ipv6": "fd00::1", "ipv4": "10.9.9.9"}}))
    assert path_of(result, "fd00:188::/64").next_hop == ip_address("fd00::1")
    assert path_of(result, "188.188.0.0/24").next_hop == ip_address("10.9.9.9")


def test_session_defaults_come_from_the_node() -> None:
    """Local address by the peer's family, router id from the IPv4 InternalIP."""
    neighbor = planned(bgp()).neighbors["tor-a"]
    assert (neighbor.local_address, neighbor.router_id) == (ip_address("11.8.37.63"), ip_address("11.8.37.63"))
    v6 = planned(bgp({"peerAddress": "fd00::ffff"})).neighbors["tor-a"]
    assert (v6.local_address, v6.families) == (ip_address("fd00::63"), (Family.IPV6,))


def test_without_a_node_a_session_that_needs_its_address_waits() -> None:
    """And one that has everything in the configuration does not."""
    assert "set localAddress" in planned(bgp(), None).idle_peers["tor-a"]
    assert "tor-a" in planned(bgp({"localAddress": "11.8.37.63"}), None).neighbors


@pytest.mark.parametrize(("label", "configured"), [("r1", True), ("r2", False)])
def test_a_node_selector_decides_whether_a_session_exists(label: str, configured: bool) -> None:
    """By the labels of the Node object."""
    result = planned(bgp({"nodeSelector": {"matchLabels": {"rack": label}}}))
    assert ("tor-a" in result.neighbors) is configured
    assert ("tor-a" in result.idle_peers) is not configured


def test_attributes_are_attached_and_normalised() -> None:
    """Sorted communities, well-known names as numbers, prepend in front of nothing on iBGP."""
    attributes = {
        "communities": ["no-export", "64512:100"],
        "largeCommunities": ["64512:9:9", "64512:1:2"],
        "localPreference": 50,
        "med": 7,
        "asPathPrepend": 2,
    }
    assert path_of(planned(bgp(attributes=attributes)), "188.188.0.0/24") == Path(
        next_hop=ip_address("11.8.37.63"),
        as_path=(ASN(64512), ASN(64512)),
        local_preference=50,
        med=7,
        communities=("64512:100", "65535:65281"),
        large_communities=("64512:1:2", "64512:9:9"),
    )


def test_an_external_peer_gets_our_asn_once_more_and_no_local_preference() -> None:
    """A path given to ExaBGP is sent verbatim; LOCAL_PREF stays inside (RFC 4271 section 5.1.5)."""
    config = bgp({"peerASN": 65001, "localASN": 65002}, {"asPathPrepend": 1, "localPreference": 50})
    assert path_of(planned(config), "188.188.0.0/24") == Path(ip_address("11.8.37.63"), (ASN(65002), ASN(65002)))


def test_draining_announces_graceful_shutdown_then_nothing() -> None:
    """RFC 8326, with LOCAL_PREF 0 on iBGP; withdrawn routes say how to get them back."""
    shutdown = path_of(planned(bgp(), drain=Drain.SHUTDOWN), "188.188.0.0/24")
    assert shutdown == Path(ip_address("11.8.37.63"), None, 0, None, ("65535:0",))
    withdrawn = planned(bgp(), drain=Drain.WITHDRAWN)
    assert not withdrawn.routes
    assert "bgpd undrain" in why(withdrawn, "188.188.0.0/24")


@pytest.mark.parametrize(
    ("export", "cidr", "reason"),
    [
        ({}, "0.0.0.0/0", "a default route is never announced"),
        ({"allow": ["10.0.0.0/8"]}, "188.188.0.0/24", "outside export.allow"),
        ({"allow": ["188.188.0.0/25"]}, "188.188.0.0/24", "outside export.allow"),
        ({}, "11.11.255.0/24", "it covers the address of peer tor-a"),
    ],
)
def test_the_brake_refuses_and_says_why(export: dict[str, Any], cidr: str, reason: str) -> None:
    """Whatever the cluster claims to have allocated."""
    node = Node("worker1", (ip_network(cidr),), NODE.internal_ips)
    result = planned(bgp(export=export), node)
    assert not result.routes
    assert why(result, cidr) == reason


def test_above_max_prefixes_the_rest_is_refused() -> None:
    """The most specific first, and each refusal named."""
    node = Node("worker1", tuple(ip_network(f"10.{i}.0.0/24") for i in range(3)), NODE.internal_ips)
    result = planned(bgp(export={"maxPrefixes": 2}), node)
    assert [str(key.prefix) for key in result.routes] == ["10.0.0.0/24", "10.1.0.0/24"]
    assert why(result, "10.2.0.0/24") == "export.maxPrefixes is 2"


def test_an_advertisement_reaches_only_the_peers_it_names() -> None:
    """The other peer keeps its session, without routes."""
    config = bgp()
    two = yaml.safe_dump(
        {
            "source": {"manifests": "/m"},
            "bgp": {
                "localASN": 64512,
                "peers": [
                    {"name": "a", "peerAddress": "11.11.255.1", "peerASN": 64512},
                    {"name": "b", "peerAddress": "11.11.255.2", "peerASN": 64512},
                ],
                "advertisements": [{"advertisementType": "PodCIDR", "peers": ["b"]}],
            },
        }
    )
    assert config.advertisements[0].peers is None
    result = planned(parse(two.encode(), "bgpd.yaml").config.bgp)
    assert set(result.neighbors) == {"a", "b"}
    assert {key.peer for key in result.routes} == {"b"}


@given(st.lists(st.sampled_from(["10.0.0.0/24", "10.0.0.0/25", "0.0.0.0/0", "fd00:1::/64", "11.11.0.0/16"])))
def test_every_prefix_is_either_announced_or_refused_with_a_reason(cidrs: list[str]) -> None:
    """Nothing is lost between the node and the peers, in whatever order it comes."""
    node = Node("worker1", tuple(map(ip_network, cidrs)), NODE.internal_ips)
    result = planned(bgp({"families": DUAL}), node)
    assert {key.prefix for key in result.routes.keys() | result.refused.keys()} == set(map(ip_network, cidrs))
    assert not result.routes.keys() & result.refused.keys()
    assert all(result.refused.values())
    shuffled = planned(bgp({"families": DUAL}), Node("worker1", node.pod_cidrs[::-1], NODE.internal_ips))
    assert shuffled == result


def test_prepending_towards_an_internal_peer_is_warned_about() -> None:
    """It is legal, and the route is dropped as a loop by a peer that was not told to accept it."""
    text = b"""
source: {manifests: /m}
bgp:
  localASN: 64512
  peers: [{name: tor-a, peerAddress: 11.11.255.1, peerASN: 64512}]
  advertisements: [{advertisementType: PodCIDR, attributes: {asPathPrepend: 1}}]
  export: {allow: [10.0.0.0/8]}
"""
    (warning,) = parse(text, "bgpd.yaml").warnings
    assert "allowas-in" in str(warning)


# --- before the node is known ---------------------------------------------------------------------------------


LOADED = {"tor-a": LocalEnd(ip_address("11.8.37.63"), ip_address("10.0.0.1"), ip_address("11.8.37.252"))}


def test_sessions_of_a_former_life_stay_while_the_node_is_unknown() -> None:
    """Exactly as they are loaded, also those for certain nodes only; nothing is announced on them."""
    result = plan(bgp({"nodeSelector": {"matchLabels": {"rack": "r1"}}}), {}, None, Drain.NO, loaded=LOADED)
    neighbor = result.neighbors["tor-a"]
    assert (neighbor.local_address, neighbor.router_id) == (ip_address("11.8.37.63"), ip_address("10.0.0.1"))
    assert (result.idle_peers, result.routes) == ({}, {})


@pytest.mark.parametrize("shown", [(), (ip_address("fd00::63"),)], ids=["no address", "the other family's"])
def test_a_session_outlives_the_address_of_its_node(shown: tuple[Any, ...]) -> None:
    """A Node whose addresses go keeps the sessions that are loaded, and their routes; one that is new waits."""
    bare = Node("worker1", NODE.pod_cidrs, shown)
    result = plan(bgp(), {}, bare, Drain.NO, loaded=LOADED)
    neighbor = result.neighbors["tor-a"]
    assert (neighbor.local_address, neighbor.router_id) == (ip_address("11.8.37.63"), ip_address("10.0.0.1"))
    assert path_of(result, "188.188.0.0/24") == Path(ip_address("11.8.37.63"))
    assert "the node shows no IPv4 InternalIP" in planned(bgp(), bare).idle_peers["tor-a"]


def test_what_is_loaded_counts_less_than_a_node_that_is_known() -> None:
    """Its address and its labels decide."""
    moved = Node("worker1", NODE.pod_cidrs, (ip_address("11.8.37.64"),))
    neighbor = plan(bgp(), {}, moved, Drain.NO, loaded=LOADED).neighbors["tor-a"]
    assert (neighbor.local_address, neighbor.router_id) == (ip_address("11.8.37.64"),) * 2
    other = plan(bgp({"nodeSelector": {"matchLabels": {"rack": "r2"}}}), {}, NODE, Drain.NO, loaded=LOADED)
    assert "nodeSelector does not match" in other.idle_peers["tor-a"]


def test_a_peer_that_has_moved_to_the_other_family_is_not_kept() -> None:
    """The session that is loaded is from an IPv4 address and cannot be to an IPv6 one."""
    result = plan(bgp({"peerAddress": "fd00::1"}), {}, None, Drain.NO, loaded=LOADED)
    assert "Kubernetes has not shown this node" in result.idle_peers["tor-a"]


@pytest.mark.parametrize(
    ("peer", "multihop"),
    [
        ({}, True),
        ({"ttlSecurity": True}, False),
        ({"peerASN": 65001}, False),
        ({"peerASN": 65001, "ebgpMultihop": 4}, True),
        ({"localASN": 65001, "peerASN": 65001}, True),
        ({"bfd": {"multihop": False}}, False),
        ({"peerASN": 65001, "bfd": {"multihop": True}}, True),
    ],
)
def test_bfd_is_of_the_kind_that_the_session_is(peer: dict[str, Any], multihop: bool) -> None:
    """RFC 5883 where routers may lie between, RFC 5881 elsewhere, or as said; from the session's own address."""
    (neighbor,) = planned(bgp({"bfd": {}, **peer})).neighbors.values()
    ours, theirs = ip_address("11.8.37.63"), ip_address("11.11.255.1")
    assert neighbor.bfd == Wanted(theirs, ours, multihop, Timers(300, 300, 3))


def test_bfd_is_off_unless_it_is_asked_for() -> None:
    """The key alone asks for it."""
    assert [it.bfd for it in planned(bgp()).neighbors.values()] == [None]
    assert [it.bfd is not None for it in planned(bgp({"bfd": None})).neighbors.values()] == [True]


# --- candidates besides pod CIDRs -----------------------------------------------------------------------------


def candidate(prefix: str, **more: Any) -> Candidate:
    return Candidate(AdvertisementType.POD_CIDR, ip_network(prefix), "somebody", **more)


def with_candidates(config: Bgp, *candidates: Candidate) -> BgpPlan:
    return plan(config, {}, NODE, Drain.NO, candidates=candidates)


def test_a_candidate_is_announced_with_what_it_adds_to_the_attributes() -> None:
    config = bgp(attributes={"med": 5, "communities": ["64512:1"]})
    result = with_candidates(config, candidate("10.1.1.1/32", med=9, communities=("64512:2",)))
    path = path_of(result, "10.1.1.1/32")
    assert (path.med, path.communities) == (9, ("64512:1", "64512:2"))
    assert path_of(result, "188.188.0.0/24").med == 5


def test_what_is_withheld_is_neither_announced_nor_refused() -> None:
    result = with_candidates(bgp(), candidate("10.1.1.1/32", withheld="no endpoint here"))
    key = RouteKey("tor-a", ip_network("10.1.1.1/32"))
    assert result.withheld == {key: "no endpoint here"}
    assert key not in result.routes and key not in result.refused


def test_of_two_with_one_address_the_one_that_may_be_announced_is() -> None:
    resting, fit = candidate("10.1.1.1/32", withheld="no endpoint here"), candidate("10.1.1.1/32", med=7)
    for order in ((resting, fit), (fit, resting)):
        result = with_candidates(bgp(), *order)
        assert path_of(result, "10.1.1.1/32").med == 7
        assert not result.withheld


def test_what_is_withheld_does_not_count_for_the_brake() -> None:
    config = bgp(export={"maxPrefixes": 1})
    result = with_candidates(config, candidate("10.1.1.1/32", withheld="no endpoint here"))
    assert path_of(result, "188.188.0.0/24")
    result = with_candidates(config, candidate("10.1.1.1/32"))
    assert "maxPrefixes" in why(result, "188.188.0.0/24") or "maxPrefixes" in why(result, "10.1.1.1/32")


def test_what_is_remarked_is_announced_all_the_same() -> None:
    result = with_candidates(bgp(), candidate("10.1.1.1/32", remark="kept: too many are gone"))
    assert path_of(result, "10.1.1.1/32")
    assert result.remarks == {RouteKey("tor-a", ip_network("10.1.1.1/32")): "kept: too many are gone"}


def test_what_is_remembered_of_offers_makes_no_difference() -> None:
    """Across other candidates and another configuration, the plan is that of somebody without a memory."""
    offers = Offers()
    one, other = candidate("10.1.1.1/32"), candidate("10.1.1.2/32", withheld="no endpoint here")
    for config in (bgp(), bgp(export={"allow": ["10.1.1.0/24"]}), bgp(export={"maxPrefixes": 1})):
        for found in ((one,), (one, other), (other, candidate("10.1.1.1/32", med=3)), ()):
            remembered = plan(config, {}, NODE, Drain.NO, candidates=found, offers=offers)
            assert remembered == with_candidates(config, *found)


def test_a_path_that_stays_is_the_same_object() -> None:
    """What is compared with every change is then compared by identity, however many addresses there are."""
    offers, one, other = Offers(), candidate("10.1.1.1/32"), candidate("10.1.1.2/32")
    config = bgp()
    before = plan(config, {}, NODE, Drain.NO, candidates=(one,), offers=offers).routes
    after = plan(config, {}, NODE, Drain.NO, candidates=(one, other), offers=offers).routes
    assert before.keys() < after.keys()
    assert all(after[key] is path for key, path in before.items())
    drained = plan(config, {}, NODE, Drain.SHUTDOWN, candidates=(one,), offers=offers).routes
    assert all(drained[key] != path for key, path in before.items())


def test_too_many_addresses_cost_no_pod_cidr() -> None:
    """However specific they are: the node's own prefixes count first."""
    kinds = [{"advertisementType": "PodCIDR"}, {"advertisementType": "PodIP"}]
    config = bgp(advertisements=kinds, export={"maxPrefixes": len(NODE.pod_cidrs)})
    address = Candidate(AdvertisementType.POD_IP, ip_network("10.1.1.1/32"), "Pod a/b")
    result = with_candidates(config, address)
    assert path_of(result, "188.188.0.0/24")
    assert "maxPrefixes" in why(result, "10.1.1.1/32")
