"""Node routes on a real API server: Nodes come, leave and come back, with the rights of the role and no others.

The daemon runs on one node of the fabric, which all others share a subnet with; BGP has nothing to do with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from bgpd.runtime.reconcile import EMPTY_GRACE_S
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.topology import CABLE, NodePlace

from .node import NODES, OTHER_CIDRS, Cluster, bgpd_node


@pytest.fixture
def router(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The daemon on the first node, in step with the Nodes of all three; its routes go with it."""
    others = cluster.fabric.nodes[1:]
    for each in (place, *others):
        cluster.make(each, *each.pod_cidrs)
    with bgpd_node(cluster, place, nodeRoutes="auto") as node:
        node.config["paths"] |= {name: str(node.directory / name) for name in ("flannel", "cniConf")}
        node.write_config()
        node.start_daemon()
        wait_routes(node, *(route_to(each) for each in others))
        yield node
        node.daemon.stop()  # type: ignore[union-attr]
        node.bgpd("noderoutes", "clear")
    for each in others:
        cluster.control_plane.admin.delete(f"{NODES}/{each.name}")


def route_to(place: NodePlace, *cidrs: str) -> tuple[str, ...]:
    """As `ip route` shows those of ours to a node's pod CIDRs (default: its own), one of each family."""
    addresses = {False: place.address, True: place.address6}
    return tuple(f"{cidr} via {addresses[':' in cidr]} dev {CABLE}" for cidr in cidrs or place.pod_cidrs)


def routes(node: BgpdNode) -> list[str]:
    shown = "".join(node.namespace.run(["ip", f"-{it}", "route", "show", "proto", "179"]).stdout for it in (4, 6))
    return sorted(re.sub(r" (pref medium|metric 1024)| +$", "", line).strip() for line in shown.splitlines())


def wait_routes(node: BgpdNode, *wanted: tuple[str, ...], timeout_s: float = 20.0) -> None:
    expected = sorted(line for lines in wanted for line in lines)
    poll(lambda: routes(node) == expected, timeout_s, lambda: f"{routes(node)}; {node.bgpd('status', check=False)}")


def test_a_node_comes_leaves_and_comes_back(cluster: Cluster, router: BgpdNode) -> None:
    """With other pod CIDRs at last: each time the routes of the others stay as they are."""
    _, second, third = cluster.fabric.nodes
    cluster.unmake(third)
    wait_routes(router, route_to(second))
    cluster.make(third, *third.pod_cidrs)
    wait_routes(router, route_to(second), route_to(third))
    cluster.unmake(third)
    cluster.make(third, *OTHER_CIDRS)
    wait_routes(router, route_to(second), route_to(third, *OTHER_CIDRS))
    cluster.create("newcomer", ["11.8.37.99"], ("188.188.150.0/24",))
    try:
        newcomer = ("188.188.150.0/24 via 11.8.37.99 dev eth0",)
        wait_routes(router, route_to(second), route_to(third, *OTHER_CIDRS), newcomer)
    finally:
        cluster.control_plane.admin.delete(f"{NODES}/newcomer")
    wait_routes(router, route_to(second), route_to(third, *OTHER_CIDRS))


def test_the_last_other_node_is_doubted_for_a_while(cluster: Cluster, router: BgpdNode) -> None:
    """Nodes that are all gone at once may be a server's mistake: the routes stay for a grace, then go."""
    others = cluster.fabric.nodes[1:]
    for each in others:
        cluster.unmake(each)
    try:
        wait_routes(router, timeout_s=3 * EMPTY_GRACE_S)
    finally:
        for each in others:
            cluster.make(each, *each.pod_cidrs)
    wait_routes(router, *(route_to(each) for each in others))


def test_a_node_that_shows_no_address_for_a_while(cluster: Cluster, router: BgpdNode) -> None:
    """A kubelet that starts may empty its addresses: its routes stay as they are for as long as its Node does."""
    _, second, third = cluster.fabric.nodes
    path = f"{NODES}/{third.name}/status"
    cluster.control_plane.admin.patch(path, {"status": {"addresses": None}})
    cluster.unmake(second)  # seen after it: both have been taken in when this has
    wait_routes(router, route_to(third))
    assert any(third.name in problem for problem in router.status()["problems"])
    cluster.make(second, *second.pod_cidrs)
    cluster.unmake(third)
    wait_routes(router, route_to(second))
    cluster.make(third, *third.pod_cidrs)
    wait_routes(router, route_to(second), route_to(third))


def test_only_nodes_are_asked_for(cluster: Cluster, router: BgpdNode) -> None:
    """All of them, and nothing else; list and watch are all that the role has."""
    cluster.forget_asked()
    router.restart_daemon()
    poll(lambda: {"list", "watch"} == {it.verb for it in cluster.asked()}, 10, lambda: str(cluster.asked()))
    assert {(it.resource, it.selector, it.status) for it in cluster.asked()} == {("nodes", "", 200)}
