"""Who serves a virtual server, who gets which slot, what is announced of it, and the table as messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.config.bgp import Bgp, Export
from bgpd.config.virtualservers import VirtualServers
from bgpd.model.node import Node
from bgpd.model.policy import Protocol
from bgpd.model.service import EndpointSlice, Service, ServiceEndpoint, ServicePort
from bgpd.model.uplink import Gateway, Route, Uplinks
from bgpd.model.virtualserver import Frontend, Member, Monitor, MonitorProtocol, VirtualServer
from bgpd.virtualservers.claim import Claims, claims
from bgpd.virtualservers.deal import by_connections, in_turn
from bgpd.virtualservers.members import Endpoints
from bgpd.virtualservers.monitor import Check
from bgpd.virtualservers.plan import Served, candidates, pools, served
from bgpd.virtualservers.table import SLOTS, Table, update

MONITOR = Monitor(MonitorProtocol.TCP, 5, 16)
FRONTEND = Frontend(ip_address("192.0.2.1"), Protocol.TCP, 80)
SERVER = VirtualServer("shop/vs", FRONTEND, "shop/web", 80, (MONITOR,))
PORT = ServicePort("http", Protocol.TCP, 8080)
MEMBERS = tuple(Member(ip_address(f"10.0.0.{last}"), 8080) for last in (1, 2, 3))
PODS = Node("here", (ip_network("10.0.0.0/24"), ip_network("fd00::/64")), (ip_address("192.168.1.5"),))
HERE = claims("here", Bgp.model_construct(peers=(), export=Export()), [PODS], [])
FAILED = VirtualServers.model_validate({"whenDown": "med", "med": 900})


def _endpoints(*endpoints: ServiceEndpoint) -> Endpoints:
    service = Service("shop", "web", ports=(ServicePort("http", Protocol.TCP, 80),))
    slices = [EndpointSlice("shop", "x", "shop/web", endpoints, (PORT,))]
    return Endpoints({"shop/web": service}, {"shop/web": slices})


def _local(*members: Member) -> Endpoints:
    return _endpoints(*(ServiceEndpoint(member.address, "here") for member in members))


def _checks(up: Mapping[Member, bool | None]) -> dict[Member, Mapping[Monitor, Check]]:
    return {member: {MONITOR: Check(state, 0.0, 0.0)} for member, state in up.items()}


def _served(states: Sequence[bool | None], settings: VirtualServers | None = None) -> Served:
    pool = pools([SERVER], _local(*MEMBERS[: len(states)]), HERE)[SERVER.name]
    checks = _checks(dict(zip(MEMBERS, states, strict=False)))
    return served(pool, lambda server, member: checks[member], settings or VirtualServers())


def test_members_are_ready_pods_of_this_node_and_family() -> None:
    """Of the port that the Service's leads to."""
    here, far, unready, six = (ip_address(each) for each in ("10.0.0.1", "10.0.1.1", "10.0.0.2", "fd00::1"))
    endpoints = _endpoints(
        ServiceEndpoint(here, "here"),
        ServiceEndpoint(far, "elsewhere"),
        ServiceEndpoint(unready, "here", ready=False),
        ServiceEndpoint(six, "here"),
    )
    assert pools([SERVER], endpoints, HERE)[SERVER.name].members == (Member(here, 8080),)
    lacks = pools([SERVER], endpoints, Claims("nowhere"))[SERVER.name].lacks
    assert lacks.startswith("Service shop/web has no ready IPv4 pod")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.96.0.1", "10.96.0.1 is a cluster IP of Service default/kubernetes; give"),
        ("192.168.1.5", "192.168.1.5 is an address of node here; give"),
        ("192.168.2.5", "192.168.2.5 is an address of node here; give"),
        ("10.244.1.7", "10.244.1.7 is in the pod CIDR 10.244.1.0/24 of node here; give"),
        ("192.168.1.1", "192.168.1.1 is the address of peer tor; give"),
        ("192.168.1.254", "192.168.1.254 is the gateway of a default route; give"),
        ("192.168.1.9", "192.168.1.9 is an address of the API server; give"),
        ("192.0.2.7", "192.0.2.7 is an external IP of Service shop/old; give"),
        ("192.0.2.8", "192.0.2.8 is a load balancer IP of Service shop/old; give"),
        ("192.0.2.9", ""),  # of a younger Service
        ("192.0.2.10", ""),  # of the Service that it leads to
        ("198.51.100.1", "198.51.100.1 is outside export.allow"),
        ("192.0.2.1", ""),
    ],
)
def test_nobody_takes_the_address_of_somebody_else(address: str, why: str) -> None:
    """Whoever may write a ConfigMap must not lead other people's traffic to pods of theirs."""
    bgp = Bgp.model_validate(
        {
            "localASN": 64512,
            "peers": [{"name": "tor", "peerASN": 64512, "peerAddress": "192.168.1.1"}],
            "advertisements": [{"advertisementType": "VirtualServer"}],
            "export": {"allow": ["192.0.2.0/24", "10.0.0.0/8", "192.168.0.0/16"]},
        }
    )
    cidrs = ip_network("10.244.1.0/24"), ip_network("10.0.0.0/24")
    outside = (ip_address("192.168.2.5"),)
    node = Node("here", cidrs, (ip_address("192.168.1.5"),), external_ips=outside)
    old, late = "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"
    services = [
        Service("default", "kubernetes", cluster_ips=(ip_address("10.96.0.1"),)),
        Service("shop", "old", external_ips=(ip_address("192.0.2.7"),), created=old,
                load_balancer_ips=(ip_address("192.0.2.8"),)),
        Service("evil", "late", external_ips=(ip_address("192.0.2.9"),), created=late),
        Service("shop", "web", load_balancer_ips=(ip_address("192.0.2.10"),), created=old),
    ]  # fmt: skip
    api_server = [EndpointSlice("default", "kubernetes", endpoints=(ServiceEndpoint(ip_address("192.168.1.9")),))]
    uplinks = Uplinks(gateways={Gateway(ip_address("192.168.1.254")): Route(None)})
    server = replace(SERVER, frontend=replace(FRONTEND, address=ip_address(address)), created="2026-01-02T00:00:00Z")
    pool = pools([server], _local(*MEMBERS), claims("here", bgp, [node], services, api_server, uplinks))[SERVER.name]
    assert pool.lacks.startswith(why)
    assert bool(pool.members) is not bool(why)


@pytest.mark.parametrize(
    ("address", "is_pod", "why"),
    [
        ("10.0.0.1", False, ""),
        ("fd00::7", False, ""),
        ("203.0.113.7", True, ""),  # a fixed IP
        ("192.168.1.5", True, ""),  # a pod with hostNetwork
        ("203.0.113.7", False, "it is outside the node's pod CIDRs, and no targetRef says that it is a Pod's"),
        ("192.168.1.5", False, "it is outside the node's pod CIDRs"),
        ("169.254.169.254", True, "no pod has such an address"),
        ("fe80::1", True, "no pod has such an address"),
        ("127.0.0.1", True, "no pod has such an address"),
        ("10.96.0.1", True, "it is a cluster IP of Service default/kubernetes"),
        ("192.168.1.9", True, "it is an address of the API server"),
        ("192.168.1.6", True, "it is an address of node far"),
        ("10.0.1.7", True, "it is in the pod CIDR 10.0.1.0/24 of node far"),
    ],
)
def test_only_pods_of_this_node_are_members(address: str, is_pod: bool, why: str) -> None:
    """Whoever may write a slice may name any address in it, and the node would send there what a monitor says."""
    far = Node("far", (ip_network("10.0.1.0/24"),), (ip_address("192.168.1.6"),))
    services = [Service("default", "kubernetes", cluster_ips=(ip_address("10.96.0.1"),))]
    api_server = [EndpointSlice("default", "kubernetes", endpoints=(ServiceEndpoint(ip_address("192.168.1.9")),))]
    taken = claims("here", Bgp.model_construct(peers=(), export=Export()), [PODS, far], services, api_server)
    named = ip_address(address)
    frontend = replace(FRONTEND, address=ip_address("192.0.2.1" if named.version == 4 else "2001:db8::1"))
    server = replace(SERVER, frontend=frontend, monitors=())
    pool = pools([server], _endpoints(ServiceEndpoint(named, "here", is_pod=is_pod)), taken)[server.name]
    assert pool.members == (() if why else (Member(named, 8080),))
    assert pool.refused.startswith(f"{named} of EndpointSlice shop/x is no pod of this node: {why}" if why else "")
    assert (pool.refused in served(pool, lambda server, member: {}, VirtualServers()).why) is True
    assert bool(pool.refused) is bool(why)


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_an_endpoint_in_two_slices_is_ready_if_one_says_so(order: tuple[bool, bool]) -> None:
    """Its controller has moved it, and only one of the slices is up to date: whichever comes last."""
    first, second = (
        EndpointSlice("shop", name, "shop/web", (ServiceEndpoint(MEMBERS[0].address, "here", ready=ready),), (PORT,))
        for name, ready in zip("xy", order, strict=True)
    )
    services = {"shop/web": Service("shop", "web", ports=(ServicePort("http", Protocol.TCP, 80),))}
    pool = pools([SERVER], Endpoints(services, {"shop/web": [first, second]}), HERE)[SERVER.name]
    assert pool.members == MEMBERS[:1]


def test_what_a_pool_lacks_is_named() -> None:
    """No Service, no such port, a frontend that is taken."""
    assert pools([SERVER], Endpoints(), HERE)[SERVER.name].lacks == "there is no Service shop/web"
    other = VirtualServer("shop/vs", FRONTEND, "shop/web", 443)
    assert "has no port 443/TCP; it has 80/TCP" in pools([other], _local(*MEMBERS), HERE)["shop/vs"].lacks
    second = VirtualServer("shop/xs", FRONTEND, "shop/web", 80)
    found = pools([second, SERVER], _local(*MEMBERS), HERE)
    assert found["shop/vs"].members == MEMBERS
    assert "is ConfigMap shop/vs's, the first by name; give one" in found["shop/xs"].lacks


def test_whoever_comes_later_takes_nobodys_address() -> None:
    """Of two ConfigMaps with one frontend the older has it, whatever they are called; a file need not say when."""
    old = replace(SERVER, name="shop/z", created="2026-01-02T03:04:05Z")
    late = replace(SERVER, name="other/a", created="2026-01-02T03:04:06Z")
    unknown = replace(SERVER, name="other/b")
    found = pools([late, unknown, old], _local(*MEMBERS), HERE)
    assert found["shop/z"].members == MEMBERS
    for name in ("other/a", "other/b"):
        assert found[name].members == ()
        assert "is ConfigMap shop/z's, which is older; give" in found[name].lacks
    twins = [replace(SERVER, name=name, created=old.created) for name in ("shop/y", "shop/x")]
    assert "ConfigMap shop/x's, the first by name" in pools(twins, _local(*MEMBERS), HERE)["shop/y"].lacks


@pytest.mark.parametrize(
    ("states", "in_service", "why"),
    [
        ((True, True), MEMBERS[:2], ""),
        ((True, False, None), MEMBERS[:1], "2 of 3 local pods are down"),
        ((False, False), (), "all 2 local pods are down"),
        ((False, None), (), "1 of 2 local pods are down, and of the others nothing is known yet"),
        ((None, None), (), "the monitors of the local pods have not decided yet"),
    ],
)
def test_who_is_in_service(
    states: Sequence[bool | None], in_service: Sequence[Member], why: str
) -> None:
    """Those that are healthy; nobody is taken for healthy, or for sick, before there is a result."""
    found = _served(states)
    assert (found.in_service, found.why) == (tuple(in_service), why)


def test_announced_once_the_kernel_leads_there() -> None:
    """And withheld, with the reason, before that and when nobody is healthy."""
    up, down = _served((True,)), _served((False,))
    (offer,) = candidates([up], lambda frontend: "", VirtualServers())
    assert (str(offer.prefix), offer.withheld, offer.remark) == ("192.0.2.1/32", "", "")
    (offer,) = candidates([up], lambda frontend: "not yet", VirtualServers())
    assert offer.withheld == "not yet"
    (offer,) = candidates([down], lambda frontend: "", VirtualServers())
    assert offer.withheld == "the only local pod is down"


def test_nobody_is_a_last_resort_before_it_has_failed() -> None:
    """Nor is one taken away from those that have because a new pod comes."""
    new = _served((None,), FAILED)
    assert (new.in_service, new.last_resort) == ((), False)
    (offer,) = candidates([new], lambda frontend: "", FAILED)
    assert offer.withheld == "the monitors of the local pods have not decided yet"
    mixed = _served((False, None), FAILED)
    assert (mixed.in_service, mixed.last_resort) == (MEMBERS[:1], True)


def test_as_a_last_resort() -> None:
    """All pods failed: with the worse MED, or communities; as usual if another virtual server there is healthy."""
    down = _served((False,), FAILED)
    assert (down.in_service, down.last_resort) == (MEMBERS[:1], True)
    (offer,) = candidates([down], lambda frontend: "", FAILED)
    assert (offer.withheld, offer.med, offer.communities) == ("", 900, ())
    by_community = VirtualServers.model_validate({"whenDown": "community", "communities": ["64512:9"]})
    (offer,) = candidates([down], lambda frontend: "", by_community)
    assert (offer.med, offer.communities) == (None, ("64512:9",))
    (offer,) = candidates([down, _served((True,))], lambda frontend: "", FAILED)
    assert (offer.withheld, offer.med) == ("", None)


def test_in_turn() -> None:
    """Three pods get 40 slots each, one after the other."""
    dealt = in_turn(MEMBERS)
    assert len(dealt) == SLOTS
    assert dealt[:4] == (*MEMBERS, MEMBERS[0])
    assert set(Counter(dealt).values()) == {40}


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200))
def test_whoever_has_fewer_gets_more(counts: list[int]) -> None:
    """All slots are dealt; nobody with fewer connections gets fewer slots than one with more, but for rounding."""
    members = tuple(Member(ip_address(0x0A000000 + number), 80) for number in range(len(counts)))
    dealt = by_connections(members, dict(zip(members, counts, strict=True)))
    assert len(dealt) % SLOTS == 0
    shares = Counter(dealt)
    ordered = sorted(zip(counts, (shares[member] for member in members), strict=True))
    assert all(fewer[1] >= more[1] - 1 for fewer, more in pairwise(ordered))


def test_a_new_pod_fills_up() -> None:
    """It gets most of what comes, and no pod that is far above the others gets any."""
    shares = Counter(by_connections(MEMBERS, {MEMBERS[0]: 1000, MEMBERS[1]: 1000}))
    assert shares == {MEMBERS[0]: 20, MEMBERS[1]: 20, MEMBERS[2]: 80}
    shares = Counter(by_connections(MEMBERS, {MEMBERS[0]: 5000}))
    assert shares[MEMBERS[0]] == 0
    assert by_connections(MEMBERS, dict(zip(MEMBERS, (100, 105, 95), strict=True))) == in_turn(MEMBERS)


def test_the_table_changes_only_what_differs() -> None:
    """A second update has nothing to say; other pods are a change of elements."""
    one, two = Table({FRONTEND: in_turn(MEMBERS)}), Table({FRONTEND: in_turn(MEMBERS[:2])})
    assert [*update(one, one)] == []
    assert {message.what for message in update(one, two)} == {
        "elements of to-tcp-192.0.2.1-80",
        "elements of itself4",
    }
    assert "chain tcp-192.0.2.1-80" in {message.what for message in update(Table(None), one)}
