"""Service addresses, as both ToRs see them: /32 and /128 come and go with the endpoints behind them.

The objects come from manifests here; from an API server in `tests/cluster/test_services.py`. What is decided and why
is tested in `tests/unit/test_services_plan.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.service_objects import endpoint, endpoint_slice, service
from tests.fabric.topology import TwoTorFabric
from tests.files import rewrite

pytestmark = pytest.mark.needs("bird")

WEB4, WEB6 = "203.0.113.7", "2001:db8:113::7"
LONG_S = 3600


class Shop:
    """The first node, with Services of which it announces the load balancer addresses."""

    def __init__(self, fabric: TwoTorFabric, advertisement: dict[str, Any] | None = None, **services: Any) -> None:
        self.fabric, self.place = fabric, fabric.nodes[0]
        bgp = two_tor_bgp(fabric)
        entry = {"advertisementType": "Service", "service": {"addresses": ["LoadBalancerIP"]}, "selector": {}}
        bgp["advertisements"].append(entry | (advertisement or {}))
        del bgp["export"]
        self.node = BgpdNode.at(self.place, bgp, *self.place.pod_cidrs, services=services)

    @property
    def here(self) -> str:
        return self.place.name

    def put(self, *objects: dict[str, Any]) -> None:
        """Each object has a file of its own, replaced as a whole."""
        for each in objects:
            name = f"{each['kind']}-{each['metadata']['name']}.yaml"
            rewrite(self.node.manifests / name, yaml.safe_dump(each))

    def wait(self, *prefixes: str) -> None:
        """Until both ToRs have them."""
        for tor in self.fabric.tors:
            for prefix in prefixes:
                tor.speaker.wait_route(prefix)

    def wait_gone(self, *prefixes: str) -> None:
        for tor in self.fabric.tors:
            for prefix in prefixes:
                tor.speaker.wait_no_route(prefix)

    def why(self, prefix: str) -> set[str]:
        """What `bgpd routes` says about it."""
        return {row["why"] for row in self.node.ask("routes") if row["prefix"] == prefix}


def test_addresses_of_both_families_come_and_go_with_their_endpoints(fabric: TwoTorFabric) -> None:
    """Announced while an endpoint anywhere is ready, each family for itself; `bgpd routes` says why one is not."""
    shop = Shop(fabric)
    shop.put(service("web", ingress=[WEB4, WEB6]), service("quiet", ingress=["203.0.113.8"]))
    v4 = [endpoint("10.1.1.1", "elsewhere"), endpoint("10.1.1.2", shop.here, ready=False)]
    shop.put(endpoint_slice("web", v4), endpoint_slice("web", [endpoint("fd00:1::1", "elsewhere")], "b"))
    shop.node.start()
    shop.wait(f"{WEB4}/32", f"{WEB6}/128", *shop.place.pod_cidrs)
    shop.node.wait_healthy()
    shop.wait_gone("203.0.113.8/32")
    assert shop.why("203.0.113.8/32") == {"Service shop/quiet has no endpoint"}

    shop.put(endpoint_slice("web", [endpoint("10.1.1.1", "elsewhere", ready=False), v4[1]]))
    shop.wait_gone(f"{WEB4}/32")
    assert shop.why(f"{WEB4}/32") == {"Service shop/web has no ready endpoint"}
    shop.wait(f"{WEB6}/128", *shop.place.pod_cidrs)

    shop.put(endpoint_slice("web", v4))
    shop.wait(f"{WEB4}/32")


def test_local_traffic_goes_to_nodes_with_an_endpoint_only(fabric: TwoTorFabric) -> None:
    """externalTrafficPolicy: Local: withdrawn when the endpoint here is gone, though others are ready elsewhere."""
    shop = Shop(fabric)
    shop.put(service("web", ingress=[WEB4], externalTrafficPolicy="Local"))
    both = [endpoint("10.1.1.1", "elsewhere"), endpoint("10.1.1.2", shop.here)]
    shop.put(endpoint_slice("web", both))
    shop.node.start()
    shop.wait(f"{WEB4}/32")
    shop.put(endpoint_slice("web", both[:1]))
    shop.wait_gone(f"{WEB4}/32")
    reason = "Service shop/web has no endpoint on this node (externalTrafficPolicy: Local)"
    assert shop.why(f"{WEB4}/32") == {reason}
    assert not shop.node.status()["problems"]


def test_an_aggregate_stands_for_cluster_ips(fabric: TwoTorFabric) -> None:
    """The service CIDR instead of its addresses; a Service with internalTrafficPolicy Local has its own route."""
    entry = {"service": {"addresses": ["ClusterIP"], "aggregate": ["10.96.0.0/12"]}}
    shop = Shop(fabric, entry | {"selector": {"matchLabels": {"io.kubernetes.service.namespace": "shop"}}})
    shop.put(service("web", cluster_ips=["10.96.0.7"]), endpoint_slice("web", [endpoint("10.1.1.1", "elsewhere")]))
    shop.put(service("dns", cluster_ips=["10.96.0.10"], internalTrafficPolicy="Local"))
    shop.put(endpoint_slice("dns", [endpoint("10.1.1.3", shop.here)]))
    shop.node.start()
    shop.wait("10.96.0.0/12", "10.96.0.10/32")
    shop.wait_gone("10.96.0.7/32")
    shop.put(endpoint_slice("web", []))
    shop.wait_gone("10.96.0.0/12")
    shop.wait("10.96.0.10/32")


def test_an_address_that_flaps_waits_until_it_is_stable(fabric: TwoTorFabric) -> None:
    """Lost as soon as it had come, it is held back, and `bgpd routes` says for how long."""
    shop = Shop(fabric, stableSeconds=LONG_S)
    ready = endpoint_slice("web", [endpoint("10.1.1.1", "elsewhere")])
    unready = endpoint_slice("web", [endpoint("10.1.1.1", "elsewhere", ready=False)])
    shop.node.start()
    shop.wait(*shop.place.pod_cidrs)
    shop.put(service("web", ingress=[WEB4]), ready)
    shop.wait(f"{WEB4}/32")
    shop.put(unready)
    shop.wait_gone(f"{WEB4}/32")
    shop.put(ready)
    shop.node.wait_status("not settling", lambda it: it["services"]["addresses"]["settling"] == 1)
    shop.wait_gone(f"{WEB4}/32")
    assert "services.stableSeconds" in shop.why(f"{WEB4}/32").pop()
    shop.node.wait_metric('bgpd_service_addresses{state="settling"}', 1)


def test_the_brake_keeps_half_of_what_is_down(fabric: TwoTorFabric) -> None:
    """Of four addresses that lose all endpoints two stay, and both commands say so; by a new daemon too.

    With `maxWithdrawnPercent: 100` they go.
    """
    shop = Shop(fabric)
    names = [f"web{number}" for number in range(4)]
    prefixes = [f"203.0.113.{number}/32" for number in range(4)]
    for number, name in enumerate(names):
        shop.put(service(name, ingress=[f"203.0.113.{number}"]), endpoint_slice(name, [endpoint("10.1.1.1", "a")]))
    shop.node.start()
    shop.wait(*prefixes)
    for name in names:
        shop.put(endpoint_slice(name, [endpoint("10.1.1.1", "a", ready=False)]))
    shop.node.wait_problem("2 addresses stay announced without a ready endpoint")
    four = 2 + len(shop.place.pod_cidrs)
    for tor in fabric.tors:
        tor.speaker.wait_route_count(shop.place.address, four)
    rows = [row for row in shop.node.ask("routes") if row["prefix"] in prefixes and row["announced"]]
    assert len(rows) == 4
    assert all("services.maxWithdrawnPercent" in row["why"] for row in rows)

    shop.node.restart_daemon()
    shop.node.wait_problem("2 addresses stay announced without a ready endpoint")
    shop.node.wait_status("not as many", lambda it: [row["announced"] for row in it["peers"]] == [four, four])

    shop.node.config["services"]["maxWithdrawnPercent"] = 100
    shop.node.write_config()
    shop.node.bgpd("reload")
    shop.wait_gone(*prefixes)
    shop.node.wait_healthy()
