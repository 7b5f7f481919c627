"""NetworkPolicies at the API server, the pods that they speak of, and when they are in a node's kernel.

Decides how a Pod is shown that no kubelet runs, and how a test knows that what it wrote counts: the *fence* is a pod
that nobody has, isolated by a policy of its own now in one direction, now in the other. One kind of object arrives in
the order in which it was written, so that what was written before the fence is in the kernel when that has turned.
What should get through is for the tests to say.
"""

from __future__ import annotations

from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from bgpd.datapath import layout, pins
from tests.fabric.node import BgpdNode
from tests.fabric.policy_site import Object, namespace, pod, policy
from tests.fabric.process import poll

from .apply import apply, collection_of
from .node import Cluster

FENCE: Final = "fence"
ADDRESS: Final = "100.64.0.1"
DIRECTIONS: Final = ("Ingress", "Egress")
IN_FORCE_S: Final = 20.0


def show_pod(cluster: Cluster, made: Object) -> None:
    """A Pod as `policy_site.pod` has it, running; its node need not exist."""
    admin = cluster.control_plane.admin
    (container,) = made["spec"]["containers"]
    spec = {**made["spec"], "containers": [{**container, "image": "none"}], "automountServiceAccountToken": False}
    path = f"{collection_of(admin, made)}/{made['metadata']['name']}"
    apply(admin, {**made, "spec": spec})
    status = {"phase": "Running", "podIPs": made["status"]["podIPs"], "podIP": made["status"]["podIPs"][0]["ip"]}
    admin.patch(f"{path}/status", {"status": status})


class Policies:
    """Those of a test. `node` runs, and pins in `bpf`."""

    def __init__(self, cluster: Cluster, node: BgpdNode, bpf: Path) -> None:
        self._admin, self._node, self._bpf = cluster.control_plane.admin, node, bpf
        self._there: dict[str, Object] = {}
        apply(self._admin, namespace(FENCE))
        show_pod(cluster, pod(FENCE, FENCE, [ADDRESS], node=node.name))

    def set(self, *policies: Object) -> None:
        """Makes these all policies that a test has written, and returns when they are in force."""
        wanted = {self._path(each): each for each in policies}
        for path in self._there.keys() - wanted.keys():
            self._admin.delete(path)
        for each in policies:
            apply(self._admin, each)
        self._there = wanted
        self.wait_in_force()

    def wait_in_force(self) -> None:
        # a round that turns the fence may not be over yet; the next one begins when it is
        for direction in DIRECTIONS:
            apply(self._admin, policy(FENCE, FENCE, types=[direction]))
            poll(partial(self._is_turned, direction), IN_FORCE_S, lambda: self._node.bgpd("status", check=False))

    def _is_turned(self, direction: str) -> bool:
        peers = pins.open_map(self._bpf / "policy_peers", layout.MAPS["policy_peers"])
        value = None if peers is None else peers.lookup(layout.policy_address(ip_address(ADDRESS)))
        if value is None:
            return False
        peer = layout.Peer(*layout.PEER.unpack(value))
        return [bool(peer.ingress_set), bool(peer.egress_set)] == [direction == each for each in DIRECTIONS]

    def _path(self, each: Object) -> str:
        return f"{collection_of(self._admin, each)}/{each['metadata']['name']}"


def to_ports(*ports: int) -> list[Object]:
    """TCP, as a rule has it."""
    return [{"protocol": "TCP", "port": port} for port in ports]
