"""The whole daemon on a real API server: what a Node says is what both ToRs have, and nobody else is asked about."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fabric.bgp_wire import BgpMessage, BgpType
from tests.fabric.node import BgpdNode
from tests.fabric.observe import BgpCapture
from tests.fabric.peer import Speaker
from tests.fabric.process import poll
from tests.fabric.topology import CABLE, NodePlace

from .node import NODES, OTHER_CIDRS, Asked, Cluster, announcing, unbroken
from .rest import ApiError

GRACE_S = 10.0  # bgpd.runtime.reconcile.EMPTY_GRACE_S, which operators read about
RSS_LIMIT_KB = 75_000

Measured = Callable[[str, float], None]


@pytest.fixture
def tors(cluster: Cluster) -> list[Speaker]:
    return [tor.speaker for tor in cluster.fabric.tors]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Keeps a number in the test's report."""

    def keep(name: str, value: float) -> None:
        request.node.user_properties.append((name, round(value, 4)))

    return keep


# --- from the Node to the wire ------------------------------------------------------------------------------


def test_node_that_is_created_becomes_routes(
    cluster: Cluster, place: NodePlace, node: BgpdNode, tors: list[Speaker]
) -> None:
    """A daemon that waits for its Node says so; once there is one, both ToRs have its pod CIDRs and it is fine."""
    node.start()
    node.wait_problem(f"there is no Node named {place.name}")
    assert node.try_bgpd("status").returncode == 4
    cluster.make(place, *place.pod_cidrs)
    for tor in tors:
        assert tor.wait_route(place.pod_cidrs[0]).next_hop == place.address
        assert tor.wait_route(place.pod_cidrs[1]).next_hop == place.address6
    node.wait_healthy()
    shown = node.try_bgpd("status")
    assert shown.returncode == 0, shown.stdout
    assert "kubernetes: synced" in shown.stdout


def test_node_is_given_its_pod_cidrs_later(
    cluster: Cluster, place: NodePlace, node: BgpdNode, tors: list[Speaker], measured: Measured
) -> None:
    """Sessions come up for a Node without pod CIDRs, End-of-RIB included, and routes follow once it has some."""
    cluster.make(place)
    node.start()
    node.wait_status("sessions", lambda it: [len(row.get("endOfRIB", ())) for row in it["peers"]] == [2, 2])
    node.wait_problem(f"node {place.name} has no spec.podCIDRs")
    started = time.monotonic()
    cluster.give(place, *place.pod_cidrs)
    for tor in tors:
        tor.wait_route(place.pod_cidrs[0])
    measured("patch_to_both_tors_s", time.monotonic() - started)
    node.wait_healthy()


def test_api_server_lets_nobody_change_pod_cidrs(
    cluster: Cluster, place: NodePlace, node: BgpdNode, tors: list[Speaker]
) -> None:
    """Why a change is a new Node: pod CIDRs that are set can neither be replaced, nor taken away, nor added to."""
    announcing(cluster, node, place)
    for cidrs in (OTHER_CIDRS, (*place.pod_cidrs[:1], OTHER_CIDRS[1]), ()):
        with pytest.raises(ApiError) as refused:
            cluster.control_plane.admin.patch(
                f"{NODES}/{place.name}", {"spec": {"podCIDR": "".join(cidrs[:1]), "podCIDRs": list(cidrs)}}
            )
        assert refused.value.status == 422
        assert "podCIDRs" in refused.value.message
    held = {ipaddress.ip_network(path.prefix) for path in tors[0].paths() if path.peer == place.address}
    assert held == set(map(ipaddress.ip_network, place.pod_cidrs))


# --- the Node goes away ---------------------------------------------------------------------------------------


def test_node_that_comes_back_with_other_cidrs(
    cluster: Cluster, place: NodePlace, node: BgpdNode, tors: list[Speaker]
) -> None:
    """Within the grace nothing is withdrawn; then the new CIDRs are announced before the old ones are withdrawn."""
    announcing(cluster, node, place)
    old, new = place.pod_cidrs[0], OTHER_CIDRS[0]
    with BgpCapture(place.namespace, CABLE) as capture:
        cluster.unmake(place)
        node.wait_problem(f"there is no Node named {place.name}")
        cluster.make(place, *OTHER_CIDRS)
        for tor in tors:
            tor.wait_route(new)
            tor.wait_no_route(old)
        node.wait_healthy()
    assert capture.dropped == 0
    for there in cluster.fabric.tors:
        said = [it for it in capture.messages(BgpType.UPDATE, dst=there.loopback) if not it.end_of_rib]
        announced = next(index for index, it in enumerate(said) if new in announced_v4(it))
        withdrawn = next(index for index, it in enumerate(said) if old in withdrawn_v4(it))
        assert announced < withdrawn
    assert not capture.messages(BgpType.OPEN, BgpType.NOTIFICATION)


def test_node_that_is_recreated_as_it_was(
    cluster: Cluster, place: NodePlace, node: BgpdNode, tors: list[Speaker]
) -> None:
    """A Node deleted and made again within the grace is nothing that the fabric hears of."""
    announcing(cluster, node, place)
    with unbroken(cluster, place) as capture:
        cluster.unmake(place)
        node.wait_problem(f"there is no Node named {place.name}")
        cluster.make(place, *place.pod_cidrs)
        node.wait_healthy()
    assert capture.besides_keepalives() == []


def test_node_that_stays_away(cluster: Cluster, place: NodePlace, node: BgpdNode, tors: list[Speaker]) -> None:
    """Ten seconds after its Node was deleted its routes are withdrawn, not before; the sessions stay."""
    announcing(cluster, node, place)
    with BgpCapture(place.namespace, CABLE) as capture:
        cluster.unmake(place)
        deleted = time.monotonic()
        for tor in tors:
            for prefix in place.pod_cidrs:
                tor.wait_no_route(prefix, 3 * GRACE_S)
        assert GRACE_S - 0.5 < time.monotonic() - deleted < GRACE_S + 5
        node.wait_problem(f"there is no Node named {place.name}")
    assert not capture.messages(BgpType.OPEN, BgpType.NOTIFICATION)
    cluster.make(place, *place.pod_cidrs)
    for tor in tors:
        tor.wait_route(place.pod_cidrs[0])
    node.wait_healthy()


# --- what it asks the API server for, and what it costs -------------------------------------------------------


def test_only_the_own_node_is_asked_for(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """The audit log has lists and watches of the one name only, for all that this daemon and others before did."""
    for other in cluster.fabric.nodes[1:]:
        cluster.make(other, *other.pod_cidrs)
    try:
        announcing(cluster, node, place)
        poll(lambda: {"list", "watch"} == {it.verb for it in cluster.asked()}, 10, lambda: str(cluster.asked()))
    finally:
        for other in cluster.fabric.nodes[1:]:
            cluster.unmake(other)
    selector = f"metadata.name={place.name}"
    assert {(it.group, it.resource, it.selector) for it in cluster.asked()} == {("", "nodes", selector)}
    assert Asked("watch", "", "nodes", selector, 200) in cluster.asked()


def test_change_is_in_the_latency_histogram(
    cluster: Cluster, place: NodePlace, node: BgpdNode, tors: list[Speaker], measured: Measured
) -> None:
    """The time from an event at the API server to the wire is measured, and a quarter of a second at most here."""
    name = "bgpd_event_to_wire_seconds"
    cluster.make(place)
    node.start()
    node.wait_status("sessions", lambda it: [len(row.get("endOfRIB", ())) for row in it["peers"]] == [2, 2])
    before = node.metric(f'{name}_count{{subsystem="routes"}}'), node.metric(f'{name}_sum{{subsystem="routes"}}')
    cluster.give(place, *place.pod_cidrs)
    for tor in tors:
        tor.wait_route(place.pod_cidrs[0])
    node.wait_healthy()
    after = node.metric(f'{name}_count{{subsystem="routes"}}'), node.metric(f'{name}_sum{{subsystem="routes"}}')
    assert after[0] == before[0] + 1
    measured("event_to_wire_s", after[1] - before[1])
    assert after[1] - before[1] < 0.25


def test_memory(cluster: Cluster, place: NodePlace, node: BgpdNode, measured: Measured) -> None:
    """With the Kubernetes source, announcing two prefixes, the daemon has 75 MB resident at most."""
    announcing(cluster, node, place)
    assert node.daemon is not None
    lines = Path(f"/proc/{node.daemon.pid}/status").read_text().splitlines()
    resident_kb = int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    measured("rss_kb", resident_kb)
    assert resident_kb <= RSS_LIMIT_KB


# --- IPv4 routes in an UPDATE (RFC 4271 section 4.3) ----------------------------------------------------------


def withdrawn_v4(update: BgpMessage) -> set[str]:
    length = int.from_bytes(update.body[:2])
    return _prefixes(update.body[2 : 2 + length])


def announced_v4(update: BgpMessage) -> set[str]:
    at = 2 + int.from_bytes(update.body[:2])
    return _prefixes(update.body[at + 2 + int.from_bytes(update.body[at : at + 2]) :])


def _prefixes(data: bytes) -> set[str]:
    found = set()
    while data:
        size = (data[0] + 7) // 8
        found.add(f"{ipaddress.IPv4Address(data[1 : 1 + size].ljust(4, bytes(1)))}/{data[0]}")
        data = data[1 + size :]
    return found
