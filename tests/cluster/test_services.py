"""Service addresses on a real API server: what a Service and its EndpointSlices say is what both ToRs have.

The objects are written as controllers would, with statuses; nothing runs behind the endpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fabric.node import BgpdNode
from tests.fabric.policy_site import namespace
from tests.fabric.service_objects import endpoint, endpoint_slice, service
from tests.fabric.topology import NodePlace

from .apply import apply, collection_of
from .node import Cluster, announcing, bgpd_node

WEB4, WEB6 = "203.0.113.7", "2001:db8:113::7"


class Shop:
    """The Services of a test, all gone after it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._admin = cluster, cluster.control_plane.admin
        self._there: set[str] = set()
        apply(self._admin, namespace("shop"))

    def put(self, *objects: dict[str, Any]) -> None:
        for each in objects:
            path = f"{collection_of(self._admin, each)}/{each['metadata']['name']}"
            apply(self._admin, {key: value for key, value in each.items() if key != "status"})
            if "status" in each:
                self._admin.patch(f"{path}/status", {"status": each["status"]})
            self._there.add(path)

    def delete(self, each: dict[str, Any]) -> None:
        path = f"{collection_of(self._admin, each)}/{each['metadata']['name']}"
        self._admin.delete(path)
        self._there.discard(path)

    def clear(self) -> None:
        for path in self._there:
            self._admin.delete(path)

    def wait(self, prefix: str) -> None:
        for tor in self._cluster.fabric.tors:
            tor.speaker.wait_route(prefix)

    def wait_gone(self, prefix: str) -> None:
        for tor in self._cluster.fabric.tors:
            tor.speaker.wait_no_route(prefix)


@pytest.fixture
def shop(cluster: Cluster) -> Iterator[Shop]:
    made = Shop(cluster)
    yield made
    made.clear()


@pytest.fixture
def node(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The product, not started, to announce the load balancer addresses of Services with a label."""
    with bgpd_node(cluster, place) as made:
        bgp = made.config["bgp"]
        entry = {"advertisementType": "Service", "service": {"addresses": ["LoadBalancerIP"]}}
        bgp["advertisements"].append(entry | {"selector": {"matchLabels": {"announce": "yes"}}})
        bgp["export"]["allow"] += ["203.0.113.0/24", "2001:db8:113::/48"]
        made.write_config()
        yield made


def web(**more: Any) -> dict[str, Any]:
    return service("web", ingress=[WEB4, WEB6], labels={"announce": "yes"}, **more)


def web_slices(node: str, *, ready: bool = True) -> list[dict[str, Any]]:
    v4 = endpoint_slice("web", [endpoint("10.1.1.1", node, ready=ready)])
    return [v4, endpoint_slice("web", [endpoint("fd00:1::1", node, ready=ready)], "b")]


def test_routes_follow_services_and_slices(cluster: Cluster, place: NodePlace, node: BgpdNode, shop: Shop) -> None:
    """Readiness, the label that selects, deletion of a slice and of the Service: each reaches both ToRs by itself."""
    announcing(cluster, node, place)
    shop.put(web(), *web_slices("elsewhere"))
    for prefix in (f"{WEB4}/32", f"{WEB6}/128"):
        shop.wait(prefix)
    shop.put(*web_slices("elsewhere", ready=False)[:1])
    shop.wait_gone(f"{WEB4}/32")
    shop.wait(f"{WEB6}/128")

    v4, v6 = web_slices("elsewhere")
    shop.delete(v6)
    shop.wait_gone(f"{WEB6}/128")
    node.restart_daemon()  # so that what comes back is not held back
    node.wait_healthy()
    shop.put(v4)
    shop.wait(f"{WEB4}/32")
    unlabelled = web()
    unlabelled["metadata"]["labels"] = {"announce": "no"}
    shop.put(unlabelled)
    shop.wait_gone(f"{WEB4}/32")
    shop.put(web())
    shop.wait(f"{WEB4}/32")
    shop.delete(web())
    shop.wait_gone(f"{WEB4}/32")
    node.wait_healthy()


def test_local_policy_on_a_real_service(cluster: Cluster, place: NodePlace, node: BgpdNode, shop: Shop) -> None:
    """What the API server makes of `externalTrafficPolicy: Local` is read; an endpoint on this node counts."""
    announcing(cluster, node, place)
    shop.put(web(externalTrafficPolicy="Local"), *web_slices("elsewhere"))
    node.wait_status("not absent", lambda it: it["services"]["addresses"]["absent"] == 2)
    shop.wait_gone(f"{WEB4}/32")
    shop.put(*web_slices(place.name))
    shop.wait(f"{WEB4}/32")
    shop.wait(f"{WEB6}/128")


def test_a_server_that_is_away_changes_nothing(
    cluster: Cluster, place: NodePlace, node: BgpdNode, shop: Shop
) -> None:
    """While it cannot be reached the addresses stay; what changed meanwhile counts when it is back."""
    announcing(cluster, node, place)
    shop.put(web(), *web_slices("elsewhere"))
    shop.wait(f"{WEB4}/32")
    cluster.cut()
    try:
        node.wait_problem("source: retrying", 30)
        shop.put(*web_slices("elsewhere", ready=False)[:1])
        shop.wait(f"{WEB4}/32")
    finally:
        cluster.mend()
    shop.wait_gone(f"{WEB4}/32")
    shop.wait(f"{WEB6}/128")
