"""Addresses of single pods on a real API server: announced, moved, and by one node only, with the rights of the role.

Two nodes of the fabric with a daemon each, which announce what PodIP means and their pod CIDRs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.policy_site import namespace, pod
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace

from .apply import apply
from .node import Cluster, bgpd_node
from .policies import show_pod

SHOP = "shop"
FIXED, FIXED6 = "188.188.200.7", "fd00:188:188:200::7"  # in no node's pod CIDR
ROUTES = (f"{FIXED}/32", f"{FIXED6}/128")
PODS = f"/api/v1/namespaces/{SHOP}/pods"
AT_ONCE = {"gracePeriodSeconds": 0}
WIRE = 'bgpd_event_to_wire_seconds_{}{{subsystem="routes"}}'
GOAL_S = 0.1

Nodes = list[BgpdNode]


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Nodes]:
    """Two, announcing; no pod so far."""
    apply(cluster.control_plane.admin, namespace(SHOP))
    places = cluster.fabric.nodes[:2]
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(bgpd_node(cluster, place)) for place in places]
        stack.callback(cluster.control_plane.admin.delete, PODS, AT_ONCE)
        for node, place in zip(made, places, strict=True):
            kinds = [{"advertisementType": kind} for kind in ("PodCIDR", "PodIP")]
            node.config["bgp"] = {**two_tor_bgp(cluster.fabric), "advertisements": kinds}
            node.write_config()
            cluster.make(place, *place.pod_cidrs)
            node.start()
        for node in made:
            node.wait_healthy()
        yield made


def show(cluster: Cluster, name: str, place: NodePlace, *ips: str, **annotations: str) -> None:
    made = pod(SHOP, name, ips, node=place.name)
    show_pod(cluster, {**made, "metadata": {**made["metadata"], "annotations": annotations}})


def wait_only_from(cluster: Cluster, place: NodePlace | None, *prefixes: str) -> None:
    """Until both ToRs have these from this node alone, or from nobody."""
    wanted = {(tor.name, prefix, place.address) for tor in cluster.fabric.tors for prefix in prefixes if place}

    def there() -> set[tuple[str, str, str]]:
        return {
            (tor.name, prefix, path.peer)
            for tor in cluster.fabric.tors
            for prefix in prefixes
            for path in tor.speaker.paths(prefix)
        }

    poll(lambda: there() == wanted, 20, lambda: f"{there()}, not {wanted}")


def wait_counted(node: BgpdNode, count: float) -> None:
    """Until more changes than these are in the histogram, which is published a moment later."""
    poll(lambda: node.metric(WIRE.format("count")) > count, 5, lambda: f"{node.name} has counted nothing")


def test_a_pod_moves(cluster: Cluster, nodes: Nodes, request: pytest.FixtureRequest) -> None:
    """It ends here and runs there: from each event at the API server to the wire it takes no longer than 100 ms."""
    first, second = cluster.fabric.nodes[:2]
    show(cluster, "db-0", first, FIXED, FIXED6)
    wait_only_from(cluster, first, *ROUTES)
    before = [(node.metric(WIRE.format("count")), node.metric(WIRE.format("sum"))) for node in nodes]
    cluster.control_plane.admin.delete(f"{PODS}/db-0", AT_ONCE)
    wait_only_from(cluster, None, *ROUTES)
    show(cluster, "db-0", second, FIXED, FIXED6)
    wait_only_from(cluster, second, *ROUTES)
    for what, node, (count, total) in zip(("withdrawn", "announced"), nodes, before, strict=True):
        wait_counted(node, count)
        took_s = (node.metric(WIRE.format("sum")) - total) / (node.metric(WIRE.format("count")) - count)
        request.node.user_properties.append((f"{what}_s", round(took_s, 4)))
        assert took_s < GOAL_S


def test_a_pod_that_is_told_to_end_is_announced_until_it_is_gone(cluster: Cluster, nodes: Nodes) -> None:
    """Its grace period is for the connections that it still has; a second pod with its address takes it over."""
    first, second = cluster.fabric.nodes[:2]
    show(cluster, "db-0", first, FIXED)
    wait_only_from(cluster, first, ROUTES[0])
    cluster.control_plane.admin.delete(f"{PODS}/db-0", {"gracePeriodSeconds": 600})
    show(cluster, "other", first, "188.188.0.9", **{"bgpd.io/host-route": "true"})
    wait_only_from(cluster, first, "188.188.0.9/32", ROUTES[0])
    show(cluster, "db-1", second, FIXED)
    wait_only_from(cluster, second, ROUTES[0])
    assert not nodes[0].status()["problems"]


def test_one_address_of_two_pods(cluster: Cluster, nodes: Nodes) -> None:
    """The server's own stamps and UIDs decide, and both nodes decide alike; who loses says so."""
    places = cluster.fabric.nodes[:2]
    for name, place in zip(("a", "b"), places, strict=True):
        show(cluster, name, place, FIXED)
    admin = cluster.control_plane.admin
    meta = [admin.get(f"{PODS}/{name}")["metadata"] for name in ("a", "b")]
    ranks = [(each["creationTimestamp"], each["uid"]) for each in meta]
    winner = ranks.index(max(ranks))
    wait_only_from(cluster, places[winner], ROUTES[0])
    nodes[1 - winner].wait_problem(f"{FIXED} is not announced: Pod {SHOP}/{'ab'[winner]} on {places[winner].name}")
    nodes[winner].wait_healthy()


def test_nothing_else_is_asked_for(cluster: Cluster, nodes: Nodes) -> None:
    """The node's own Node, and pods: neither namespaces nor policies, which the role allows for others."""
    cluster.forget_asked()
    nodes[0].restart_daemon()
    poll(lambda: {"nodes", "pods"} == {it.resource for it in cluster.asked()}, 10, lambda: str(cluster.asked()))
    nodes[0].wait_healthy()
    asked = {(it.resource, it.selector) for it in cluster.asked()}
    assert asked >= {("pods", ""), ("nodes", f"metadata.name={nodes[0].name}")}
    assert {each.status for each in cluster.asked()} == {200}
