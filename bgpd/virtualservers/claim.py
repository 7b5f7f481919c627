"""Decides which addresses a virtual server may not have, whoever asks for them. Pure.

Whoever may write ConfigMaps of one namespace says where traffic goes that passes this node, its own and its pods'
included. So an address that somebody else answers is left to them: a node's, a pod's, a peer's, that of a Service
inside the cluster. And what `export.allow` keeps from being announced is not served either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bgpd.config.bgp import Bgp
from bgpd.model.node import Node
from bgpd.model.prefix import Address
from bgpd.model.service import Service


def refusal(bgp: Bgp, nodes: Iterable[Node], services: Iterable[Service]) -> Callable[[Address], str]:
    """Why an address cannot be a virtual server's; empty when it can."""
    taken: dict[Address, str] = {}
    pod_cidrs = []
    for service in services:
        taken.update(dict.fromkeys(service.cluster_ips, f"a cluster IP of Service {service.key}"))
    for node in nodes:
        taken.update(dict.fromkeys(node.internal_ips, f"an address of node {node.name}"))
        pod_cidrs += [(prefix, f"in the pod CIDR {prefix} of node {node.name}") for prefix in node.pod_cidrs]
    for peer in bgp.peers:
        if peer.peer_address is not None:
            taken[peer.peer_address] = f"the address of peer {peer.name}"

    def refused(address: Address) -> str:
        whose = taken.get(address) or next((what for prefix, what in pod_cidrs if address in prefix), "")
        if whose:
            return f"{address} is {whose}; give the virtual server an address of its own"
        allow = bgp.export.allow
        if allow is not None and not any(address in prefix for prefix in allow):
            return f"{address} is outside export.allow"
        return ""

    return refused
