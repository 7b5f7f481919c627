"""Virtual servers from a real API server, with the right that config/rbac.yaml has for them, and without it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator

import pytest
import yaml

from tests.fabric.node import BgpdNode
from tests.fabric.policy_site import Object
from tests.fabric.service_objects import endpoint, endpoint_slice, service
from tests.fabric.topology import NodePlace

from .apply import apply, collection_of
from .node import RBAC, Cluster, announcing, bgpd_node
from .rest import ApiError

POD, OTHER = "188.188.0.10", "fd00:188:188::10"
VIPS = ("11.16.22.80", "11.16.22.81", "fd00:11:16:22::80")
RESTORED_S = 31.0  # the longest pause between two attempts, and one attempt


def granting() -> list[Object]:
    """config/rbac.yaml without the marks in front of the rule that virtual servers take."""
    marked = r"^  # (?=- apiGroups|  resources: \[configmaps\]|  verbs)"
    text, taken = re.subn(marked, "  ", RBAC.read_text(), flags=re.MULTILINE)
    assert taken == 3
    return list(yaml.safe_load_all(text))


def virtual_server(name: str, address: str) -> Object:
    """Of the Service that `backend` makes."""
    health = {"protocol": "tcp", "interval": 1, "timeout": 3}
    back = {"servicePort": 80, "serviceName": "web", "healthMonitors": [health]}
    front = {"virtualAddress": {"port": 80, "bindAddr": address}, "partition": "x", "mode": "tcp"}
    data = json.dumps({"virtualServer": {"backend": back, "frontend": front}})
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "shop", "labels": {"f5type": "virtual-server"}},
        "data": {"schema": "f5schemadb://bigip-virtual-server_v0.1.7.json", "data": data},
    }


class Site:
    """A Service whose pod, of both families, is on the node that is asked: sockets that listen, and nobody reads."""

    def __init__(self, cluster: Cluster, place: NodePlace, stack: contextlib.ExitStack) -> None:
        self.cluster, self._admin, self._stack = cluster, cluster.control_plane.admin, stack
        for address, family in ((POD, socket.AF_INET), (OTHER, socket.AF_INET6)):
            length = 32 if family is socket.AF_INET else 128
            place.namespace.add_address("lo", f"{address}/{length}")
            stack.callback(place.namespace.ip, f"address del {address}/{length} dev lo")
            opened = stack.enter_context(place.namespace.socket(family, socket.SOCK_STREAM))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address, 8080))
            opened.listen(1024)
        apply(self._admin, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        self.put({key: value for key, value in service("web").items() if key != "status"})
        self.put(endpoint_slice("web", [endpoint(POD, place.name)]))
        self.put(endpoint_slice("web", [endpoint(OTHER, place.name)], "b"))

    def put(self, each: Object) -> None:
        apply(self._admin, each)
        self._stack.callback(self.delete, each)

    def delete(self, each: Object) -> None:
        """Whether it is there or not."""
        with contextlib.suppress(ApiError):
            self._admin.delete(f"{collection_of(self._admin, each)}/{each['metadata']['name']}")

    def wait(self, address: str, timeout_s: float = 20.0) -> None:
        for tor in self.cluster.fabric.tors:
            tor.speaker.wait_route(_route(address), timeout_s)

    def wait_gone(self, address: str) -> None:
        for tor in self.cluster.fabric.tors:
            tor.speaker.wait_no_route(_route(address))


def _route(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


@pytest.fixture
def node(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The product, not started, that serves virtual servers."""
    with bgpd_node(cluster, place, virtualServers={"enabled": True}) as made:
        made.config["bgp"]["advertisements"].append({"advertisementType": "VirtualServer"})
        made.config["bgp"]["export"]["allow"] += ["11.16.22.0/24", "fd00:11:16:22::/64"]
        made.write_config()
        yield made
    cluster.control_plane.apply_file(RBAC)


@pytest.fixture
def site(cluster: Cluster, place: NodePlace) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(cluster, place, stack)


def test_the_right_is_named_and_is_enough(
    cluster: Cluster, place: NodePlace, node: BgpdNode, site: Site
) -> None:
    """Without it status says which; with it the addresses come, by themselves, and only allowed things are asked."""
    cluster.make(place, *place.pod_cidrs)
    site.put(virtual_server("web", VIPS[0]))
    site.put(virtual_server("web6", VIPS[2]))
    node.start()
    problem = node.wait_problem("not allowed to list configmaps; the role lacks")
    assert 'apiGroups: [""], resources: ["configmaps"], verbs: ["list"]' in problem
    for document in granting():
        apply(cluster.control_plane.admin, document)
    for address in (VIPS[0], VIPS[2]):
        site.wait(address, RESTORED_S)
    node.wait_healthy(RESTORED_S)
    cluster.forget_asked()
    node.restart_daemon()
    node.wait_healthy()
    asked = cluster.asked()
    assert {it.status for it in asked} == {200}
    assert {it.verb for it in asked if it.resource == "configmaps"} == {"list", "watch"}


def test_addresses_follow_config_maps_and_endpoints(
    cluster: Cluster, place: NodePlace, node: BgpdNode, site: Site
) -> None:
    """An edit moves the address, a ConfigMap without the label is none, and the last ready pod takes it along."""
    for document in granting():
        apply(cluster.control_plane.admin, document)
    site.put(virtual_server("web6", VIPS[2]))  # without any the status would complain
    announcing(cluster, node, place)
    site.put(virtual_server("web", VIPS[0]))
    site.wait(VIPS[0])
    site.put(virtual_server("web", VIPS[1]))
    site.wait(VIPS[1])
    site.wait_gone(VIPS[0])
    unlabelled = virtual_server("web", VIPS[1])
    unlabelled["metadata"]["labels"] = {}
    site.put(unlabelled)
    site.wait_gone(VIPS[1])
    site.put(virtual_server("web", VIPS[1]))
    site.wait(VIPS[1])
    site.put(endpoint_slice("web", [endpoint(POD, "elsewhere")]))
    site.wait_gone(VIPS[1])
    site.put(endpoint_slice("web", [endpoint(POD, place.name)]))
    site.wait(VIPS[1])
    site.delete(virtual_server("web", VIPS[1]))
    site.wait_gone(VIPS[1])
    site.wait(VIPS[2])
    node.wait_healthy()
