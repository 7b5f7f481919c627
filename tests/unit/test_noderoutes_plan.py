"""How the pods of other nodes are reached: by a shared subnet, in VXLAN, not at all, or as they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.config.schema import NodeRoutes, Vxlan
from bgpd.model.node import Node
from bgpd.model.noderoute import (
    DEVICE,
    Device,
    DeviceKey,
    ForwardingKey,
    Host,
    Interface,
    NeighborKey,
    OwnAddressKey,
    Route,
    RouteKey,
)
from bgpd.noderoutes.plan import NodeRoutesPlan, Planner, mac_of, plan, standing
from bgpd.runtime.diff import diff


def node(name: str, addresses: Iterable[str], *cidrs: str) -> Node:
    return Node(name, tuple(map(ip_network, cidrs)), tuple(map(ip_address, addresses)))


def interface(name: str, *addresses: str, mtu: int = 1500, index: int = 2) -> Interface:
    return Interface(index, name, mtu, name == "lo", tuple(map(ip_interface, addresses)))


OWN = node("a", ["192.168.1.1", "fd00::1"], "10.0.1.0/24", "fd10:1::/64")
HOST = Host((interface("eth0", "192.168.1.1/24", "fd00::1/64"), interface("cni0", "10.0.1.1/24", index=3)))


def planned(
    *others: Node, mode: NodeRoutes = NodeRoutes.AUTO, host: Host = HOST, own: Node | None = OWN
) -> NodeRoutesPlan:
    nodes = {each.name: each for each in (*others, *([own] if own else []))}
    return plan(mode, Vxlan(), own, nodes, host)


def routes(found: NodeRoutesPlan) -> dict[str, str]:
    """Prefix to `via interface`."""
    return {
        str(key.prefix): f"{value.via} {value.interface}"
        for key, value in found.want.items()
        if isinstance(key, RouteKey) and isinstance(value, Route)
    }


def test_flannels_host_gw_of_the_seed() -> None:
    """192.168.1.202 with its two others, route by route."""
    own = node("node2", ["192.168.1.202"], "10.244.1.0/24")
    host = Host((interface("eno1", "192.168.1.202/24"), interface("docker0", "172.17.0.1/16", index=3)))
    found = planned(
        node("master", ["192.168.1.200"], "10.244.0.0/24"),
        node("node1", ["192.168.1.201"], "10.244.3.0/24"),
        mode=NodeRoutes.HOST_GW,
        host=host,
        own=own,
    )
    assert routes(found) == {"10.244.0.0/24": "192.168.1.200 eno1", "10.244.3.0/24": "192.168.1.201 eno1"}
    assert {type(key) for key in found.want} == {RouteKey}


def test_past_a_router_in_vxlan() -> None:
    """The device, the addresses this node itself uses, an entry for the far node, a gateway for each CIDR."""
    far = node("c", ["192.168.3.3"], "10.0.3.0/24", "fd10:3::/64")
    found = planned(far)
    mac = mac_of("c")
    assert routes(found) == {"10.0.3.0/24": f"10.0.3.0 {DEVICE}", "fd10:3::/64": f"fd10:3:: {DEVICE}"}
    assert found.want[DeviceKey()] == Device(179, 4789, ip_address("192.168.1.1"), mac_of("a"), 1450)
    assert found.want[ForwardingKey(mac)] == ip_address("192.168.3.3")
    assert found.want[NeighborKey(ip_address("fd10:3::"))] == mac
    assert OwnAddressKey(ip_address("10.0.1.0")) in found.want


@pytest.mark.parametrize(
    ("mode", "near", "far"),
    [
        (NodeRoutes.HOST_GW, "192.168.1.2 eth0", None),
        (NodeRoutes.VXLAN, f"10.0.2.0 {DEVICE}", f"10.0.3.0 {DEVICE}"),
        (NodeRoutes.AUTO, "192.168.1.2 eth0", f"10.0.3.0 {DEVICE}"),
    ],
)
def test_modes(mode: NodeRoutes, near: str, far: str | None) -> None:
    """host-gw leaves nodes of other subnets out, and says so."""
    found = planned(node("b", ["192.168.1.2"], "10.0.2.0/24"), node("c", ["192.168.3.3"], "10.0.3.0/24"), mode=mode)
    assert routes(found).get("10.0.2.0/24") == near
    assert routes(found).get("10.0.3.0/24") == far
    assert [("in no subnet of this node" in why) for why in found.unreachable.values()] == ([] if far else [True])


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (node("b", [], "10.0.2.0/24"), "shows no InternalIP"),
        (node("b", ["fd00:9::2"], "10.0.2.0/24"), "VXLAN goes from 192.168.1.1 here"),
    ],
)
def test_a_node_that_cannot_be_reached(other: Node, why: str) -> None:
    """It is named, and nothing is made for it."""
    found = planned(other)
    assert found.want == {}
    (text,) = found.unreachable.values()
    assert text.startswith("10.0.2.0/24 of node b gets no route")
    assert why in text


def test_a_node_without_pod_cidr_needs_no_route() -> None:
    assert planned(node("b", ["192.168.1.2"])) == NodeRoutesPlan(others=1)


@pytest.mark.parametrize(
    ("cidrs", "why"),
    [
        (("10.0.2.0/24", "10.0.2.0/24"), "overlaps"),
        (("10.0.2.0/23", "10.0.3.0/24"), "overlaps"),
        (("10.0.2.0/24", "10.0.1.0/25"), "overlaps 10.0.1.0/24 of node a"),
        (("10.0.2.0/24", "192.168.0.0/16"), "has the address of node a in it"),
        (("10.0.2.0/24", "0.0.0.0/0"), "overlaps"),
    ],
)
def test_what_is_in_doubt_is_held(cidrs: tuple[str, str], why: str) -> None:
    """It gets no route, whoever comes first; who had one keeps it."""
    first, second = node("b", ["192.168.1.2"], cidrs[0]), node("c", ["192.168.1.3"], cidrs[1])
    before = planned(first).want
    for order in ((first, second), (second, first)):
        found = planned(*order)
        assert any(why in text for text in found.held.values())
        assert ip_network(cidrs[1]) in found.held
        assert RouteKey.of(ip_network(cidrs[1])) not in found.want
        kept = standing(found, before)
        assert kept == before


def test_a_foreign_route_holds_a_prefix() -> None:
    """Nothing is made for it; what there is of ours stays as it is, also when its node moves."""
    host = Host(HOST.interfaces, {ip_network("10.0.2.0/24"): "via 192.168.1.9 dev eth0 proto bird metric 32"})
    found = planned(node("b", ["192.168.1.2"], "10.0.2.0/24", "10.0.4.0/24"), host=host)
    assert routes(found) == {"10.0.4.0/24": "192.168.1.2 eth0"}
    have = planned(node("b", ["192.168.1.7"], "10.0.2.0/24")).want
    assert standing(found, have)[RouteKey.of(ip_network("10.0.2.0/24"))] == Route(ip_address("192.168.1.7"), "eth0")


@pytest.mark.parametrize(
    ("host", "own", "why"),
    [
        (HOST, None, "has not shown this node"),
        (HOST, node("a", []), "shows no InternalIP"),
        (Host((interface("eth0", "192.168.1.1/24"),)), OWN, "no interface that is up has fd00::1"),
        (Host(HOST.interfaces, {}, ("/run/flannel/subnet.env",)), OWN, "/run/flannel/subnet.env"),
    ],
)
def test_when_nothing_may_be_changed(host: Host, own: Node | None, why: str) -> None:
    """The plan says why, and wants nothing."""
    found = planned(node("b", ["192.168.1.2"], "10.0.2.0/24"), host=host, own=own)
    assert why in found.blocked
    assert found.want == {}


def test_the_smallest_subnet_counts_and_none_of_pods() -> None:
    """A wide prefix on another interface does not catch what the uplink has, nor does the bridge of the pods."""
    host = Host((interface("wide", "192.168.0.1/16"), interface("eth0", "192.168.1.1/24", "fd00::1/64", index=5)))
    found = planned(node("b", ["192.168.1.2"], "10.0.2.0/24"), host=host)
    assert routes(found) == {"10.0.2.0/24": "192.168.1.2 eth0"}


@pytest.mark.parametrize(
    ("own", "interfaces", "mtu"),
    [
        (OWN, HOST.interfaces, 1450),
        (node("a", ["fd00::1"]), (interface("eth0", "fd00::1/64", mtu=9000),), 8930),
        (
            node("a", ["10.9.9.9"]),
            (interface("lo", "10.9.9.9/32", mtu=65536), interface("up0", "192.0.2.1/31", mtu=1600)),
            1550,
        ),
    ],
)
def test_mtu_of_the_device(own: Node, interfaces: tuple[Interface, ...], mtu: int) -> None:
    """The uplink's less what VXLAN adds; where a loopback has the address, the least of the others'."""
    found = planned(node("c", ["192.168.3.3", "fd00:3::3"], "10.0.3.0/24"), own=own, host=Host(interfaces))
    device = found.want[DeviceKey()]
    assert isinstance(device, Device)
    assert device.mtu == mtu


def test_macs_are_unicast_and_local() -> None:
    """And no two of 10,000 nodes have the same."""
    macs = {mac_of(f"node-{number}") for number in range(10_000)}
    assert len(macs) == 10_000
    assert {int(mac[:2], 16) & 0b11 for mac in macs} == {0b10}


# --- any cluster ----------------------------------------------------------------------------------------------------

_ADDRESSES = st.lists(
    st.sampled_from(["192.168.1.2", "192.168.1.3", "192.168.3.3", "fd00::2", "fd00:3::3", "10.0.2.5"]), max_size=2
)
_CIDRS = st.lists(
    st.sampled_from(["10.0.1.0/24", "10.0.2.0/24", "10.0.2.0/25", "10.0.3.0/24", "fd10:2::/64", "192.168.0.0/16"]),
    max_size=3,
    unique=True,
)
_NODES = st.dictionaries(st.sampled_from(["b", "c", "d", "e"]), st.tuples(_ADDRESSES, _CIDRS))


def _cluster(drawn: Mapping[str, tuple[list[str], list[str]]]) -> dict[str, Node]:
    others = {name: node(name, addresses, *cidrs) for name, (addresses, cidrs) in drawn.items()}
    return {"a": OWN, **others}


@pytest.mark.parametrize("mode", [NodeRoutes.HOST_GW, NodeRoutes.VXLAN])
def test_a_node_that_shows_no_address_keeps_what_leads_to_it(mode: NodeRoutes) -> None:
    """A kubelet that starts may show none for a moment: nothing of its entries is taken away, and nothing is made."""
    before = planned(node("b", ["192.168.1.2", "fd00::2"], "10.0.2.0/24", "fd10:2::/64"), mode=mode).want
    lapsed = planned(node("b", [], "10.0.2.0/24", "fd10:2::/64", "10.0.9.0/24"), mode=mode)
    assert standing(lapsed, before) == before
    assert standing(lapsed, {}) == {}
    assert all("what there is of one stays" in why for why in lapsed.unreachable.values())
    gone = planned(mode=mode)
    assert standing(gone, before) == {}


@given(st.sampled_from([NodeRoutes.HOST_GW, NodeRoutes.VXLAN, NodeRoutes.AUTO]), _NODES)
def test_every_prefix_has_a_route_or_a_reason(
    mode: NodeRoutes, drawn: Mapping[str, tuple[list[str], list[str]]]
) -> None:
    """And never both. No route leads into itself, and one in VXLAN has all that it takes."""
    nodes = _cluster(drawn)
    found = plan(mode, Vxlan(), OWN, nodes, HOST)
    for other in nodes.values():
        for prefix in other.pod_cidrs if other is not OWN else ():
            route = found.want.get(RouteKey.of(prefix))
            assert (route is not None) != (prefix in found.held or (other.name, prefix) in found.unreachable)
            addresses = [address for each in nodes.values() for address in each.internal_ips]
            assert route is None or not any(address in prefix for address in addresses)
            if isinstance(route, Route) and route.interface == DEVICE:
                assert route.via is not None
                mac = found.want[NeighborKey(route.via)]
                assert isinstance(mac, str)
                assert {DeviceKey(), ForwardingKey(mac)} <= found.want.keys()


@given(st.sampled_from(list(NodeRoutes)[1:]), _NODES, _NODES)
def test_only_the_newest_nodes_count(
    mode: NodeRoutes,
    before: Mapping[str, tuple[list[str], list[str]]],
    now: Mapping[str, tuple[list[str], list[str]]],
) -> None:
    """Not what a planner has seen before, nor the order: the second difference is empty."""
    planner = Planner()
    planner.plan(mode, Vxlan(), OWN, _cluster(before), HOST)
    nodes = _cluster(now)
    fresh = plan(mode, Vxlan(), OWN, dict(reversed(nodes.items())), HOST)
    found = planner.plan(mode, Vxlan(), OWN, nodes, HOST)
    assert found == fresh
    assert diff(standing(found, found.want), fresh.want, lambda key: key.order, prune=True) == []
