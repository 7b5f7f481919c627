"""Addresses of single pods at both ToRs: what is announced, what moves, and that one address has one node.

Two nodes of the fabric, the real daemon on each, and both see the same pods in their manifests.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
import yaml

from tests.benchmarks.failover_probe import ON_THE_WAY_S, Flow, Probe, Receiver
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.process import poll
from tests.fabric.topology import STRANGER, STRANGER6, NodePlace, TwoTorFabric
from tests.files import rewrite

pytestmark = pytest.mark.needs("bird")

FIXED, FIXED6 = "188.188.200.7", "fd00:188:188:200::7"  # in no node's pod CIDR
ANNOTATED = {"bgpd.io/host-route": "true"}


def pod(
    name: str, place: NodePlace, *ips: str, annotations: dict[str, str] | None = None, created: int = 0, **fields: Any
) -> dict[str, Any]:
    """A v1 Pod as far as anybody reads it. `fields` go into its spec."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": f"{name}-{place.name}-{created}",
            "creationTimestamp": f"2026-01-01T00:00:{created:02}Z",
            "annotations": annotations or {},
        },
        "spec": {"nodeName": place.name, **fields},
        "status": {"phase": "Running", "podIPs": [{"ip": ip} for ip in ips]},
    }


class Site:
    """Both nodes announcing, no pod so far."""

    def __init__(self, fabric: TwoTorFabric, *kinds: str) -> None:
        self.fabric, self.places = fabric, fabric.nodes[:2]
        bgp = two_tor_bgp(fabric)
        bgp["advertisements"] = [{"advertisementType": kind} for kind in kinds]
        self.nodes = [BgpdNode.at(place, bgp, *place.pod_cidrs) for place in self.places]
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_healthy()

    def show(self, *pods: dict[str, Any]) -> None:
        """These are all pods of the cluster, to both nodes."""
        for node in self.nodes:
            rewrite(node.manifests / "pods.yaml", yaml.safe_dump_all(pods))

    def wait_from(self, index: int, *prefixes: str) -> None:
        """Until both ToRs have these from this node alone."""
        wanted = {(tor.name, prefix, self.places[index].address) for tor in self.fabric.tors for prefix in prefixes}
        poll(lambda: self._there(prefixes) == wanted, 20, lambda: f"{self._there(prefixes)}, not {wanted}")

    def wait_without(self, *prefixes: str) -> None:
        for tor in self.fabric.tors:
            for prefix in prefixes:
                tor.speaker.wait_no_route(prefix)

    def _there(self, prefixes: Iterable[str]) -> set[tuple[str, str, str]]:
        return {
            (tor.name, prefix, path.peer)
            for tor in self.fabric.tors
            for prefix in prefixes
            for path in tor.speaker.paths(prefix)
        }


@pytest.fixture
def site(fabric: TwoTorFabric) -> Site:
    return Site(fabric, "PodCIDR", "PodIP")


def test_fixed_and_annotated_addresses_of_both_families(site: Site) -> None:
    """One outside the pod CIDRs, one that is annotated; an ordinary pod and a host's are not. Then they end."""
    here = site.places[0]
    fixed = pod("fixed", here, FIXED, FIXED6)
    asked = pod("asked", here, "188.188.0.9", "fd00:188:188::9", annotations=ANNOTATED)
    ordinary = pod("ordinary", here, "188.188.0.10")
    host = pod("host", here, here.address, hostNetwork=True)
    site.show(fixed, asked, ordinary, host)
    site.wait_from(0, f"{FIXED}/32", f"{FIXED6}/128", "188.188.0.9/32", "fd00:188:188::9/128")
    site.wait_without("188.188.0.10/32", f"{here.address}/32")
    site.nodes[0].wait_metric('bgpd_host_routes_wanted{family="ipv4"}', 2)
    astray = [each["text"] for each in site.nodes[0].ask("doctor") if each["what"] == "hostRoutes"]
    assert any(text.startswith(f"{FIXED6} of shop/fixed is announced, and the route to it here") for text in astray)
    fixed["status"]["phase"] = "Succeeded"
    site.show(fixed, ordinary)
    site.wait_without(f"{FIXED}/32", f"{FIXED6}/128", "188.188.0.9/32", "fd00:188:188::9/128")


def test_a_pod_moves_with_packets_on_their_way(site: Site) -> None:
    """Deleted here and running there, at once: packets arrive again, and none is lost from then on."""
    first, second = site.places
    ends = [site.fabric.add_pod(place, FIXED, f"p{number}") for number, place in enumerate(site.places)]
    for end, place in zip(ends, site.places, strict=True):
        end.add_address("eth0", f"{FIXED6}/128")
        place.namespace.add_route(f"{FIXED6}/128", dev=f"v{end.name.rpartition('-')[2]}")
    site.show(pod("p", first, FIXED, FIXED6))
    site.wait_from(0, f"{FIXED}/32", f"{FIXED6}/128")
    found = {each["what"]: each["state"] for each in site.nodes[0].ask("doctor")}
    assert found["hostRoutes"] == "ok"
    receivers = [Receiver(end, [FIXED, FIXED6]) for end in ends]
    for receiver in receivers:
        receiver.open()
    flows = [Flow(STRANGER, port, FIXED) for port in range(20000, 20004)]  # by both ToRs
    flows += [Flow(STRANGER6, port, FIXED6) for port in range(20004, 20008)]
    probe = Probe(site.fabric.outside, flows, receivers)
    try:
        time.sleep(10 * ON_THE_WAY_S)  # so that some have been sent
        poll(lambda: probe.lost_ms(time.monotonic() - 0.3) == 0, 10, lambda: "no packets arrive before the move")
        began = time.monotonic()
        receivers[0].close()
        site.show(pod("p", second, FIXED, FIXED6, created=1))
        site.wait_from(1, f"{FIXED}/32", f"{FIXED6}/128")
        learnt = time.monotonic()
        poll(lambda: probe.lost_ms(time.monotonic() - 0.3) == 0, 10, lambda: "no packets arrive after the move")
        arriving = time.monotonic()
        time.sleep(10 * ON_THE_WAY_S)  # so that there is something to lose
        print(f"moved in at most {1000 * (learnt - began):.0f} ms, lost {probe.lost_ms(began):.0f} ms")
        assert probe.lost_ms(arriving) == 0
    finally:
        probe.stop()
        for receiver in receivers:
            receiver.close()


def test_one_address_on_two_nodes_is_announced_by_the_newer(site: Site) -> None:
    """Whoever came first; the other node says why not, until one of the two is gone."""
    old, new = pod("old", site.places[0], FIXED), pod("new", site.places[1], FIXED, created=1)
    site.show(old)
    site.wait_from(0, f"{FIXED}/32")
    site.show(old, new)
    site.wait_from(1, f"{FIXED}/32")
    site.nodes[0].wait_problem(f"{FIXED} is not announced: Pod shop/new on {site.places[1].name}, which is newer")
    rows = {(row["prefix"], row["peer"]): row for row in site.nodes[0].ask("routes")}
    assert "delete one of the two" in rows[f"{FIXED}/32", "tor-a"]["why"]
    site.nodes[0].wait_metric('bgpd_host_routes_withheld{why="conflict"}', 1)
    site.show(old)
    site.wait_from(0, f"{FIXED}/32")
    site.nodes[0].wait_healthy()


def test_the_last_pod_of_a_node_that_announces_nothing_else(fabric: TwoTorFabric) -> None:
    """A node without pods is nothing odd: its route goes at once, not after a while of doubt."""
    site = Site(fabric, "PodIP")
    site.show(pod("p", site.places[0], FIXED))
    site.wait_from(0, f"{FIXED}/32")
    site.show()
    site.wait_without(f"{FIXED}/32")
    assert site.nodes[0].status()["held"] is None
