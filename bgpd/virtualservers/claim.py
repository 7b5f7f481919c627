"""Decides which addresses a virtual server, or a member of one, may not have, whoever asks for them. Pure.

Whoever may write ConfigMaps of one namespace says where traffic goes that passes this node, its own and its pods'
included. So an address that somebody else answers is left to them: a node's, a pod's, a peer's or another gateway's,
the API server's, a Service's. Of a Service's external addresses and a virtual server's the older object's counts, for
whoever may write Services could take a served address else. And what `export.allow` keeps from being announced is not
served either.

Whoever may write EndpointSlices names addresses too, and a node reaches what pods do not. So a member is an address
of this node's pods: in its pod CIDRs, or one that a slice says is a Pod's and that nobody else is known to have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bgpd.config.bgp import Bgp
from bgpd.model.node import Node
from bgpd.model.prefix import Address, Prefix
from bgpd.model.service import EndpointSlice, Service, ServiceEndpoint
from bgpd.model.uplink import Uplinks
from bgpd.model.virtualserver import VirtualServer

API_SERVER = "default/kubernetes"  # the Service that the API server makes for itself


@dataclass(frozen=True, slots=True)
class Claims:
    """Who has which address. `own` is this node's name. `outside` are Services that have it outside the cluster,
    `nodes` and `pod_cidrs` the names of nodes."""

    own: str
    allow: Sequence[Prefix] | None = None
    taken: Mapping[Address, str] = field(default_factory=dict)
    outside: Mapping[Address, Sequence[tuple[Service, str]]] = field(default_factory=dict)
    nodes: Mapping[Address, str] = field(default_factory=dict)
    pod_cidrs: Sequence[tuple[Prefix, str]] = ()

    def refused(self, server: VirtualServer) -> str:
        """Why its address cannot be this virtual server's; empty when it can."""
        address = server.frontend.address
        whose = self._whose(address) or self._of_service(address, server) or self._of_node(address)
        if whose:
            return f"{address} is {whose}; give the virtual server an address of its own"
        if self.allow is not None and not any(address in prefix for prefix in self.allow):
            return f"{address} is outside export.allow"
        return ""

    def foreign(self, endpoint: ServiceEndpoint) -> str:
        """Why an endpoint of this node cannot be one of its pods; empty when it can."""
        address = endpoint.address
        if any(address in prefix for prefix, node in self.pod_cidrs if node == self.own):
            return ""
        if address.is_link_local or address.is_loopback or address.is_multicast or address.is_unspecified:
            return "no pod has such an address"
        if not endpoint.is_pod:
            return "it is outside the node's pod CIDRs, and no targetRef says that it is a Pod's"
        whose = self._whose(address) or (self._of_node(address) if self.nodes.get(address) != self.own else "")
        return f"it is {whose}" if whose else ""  # a pod with hostNetwork has its node's

    def _whose(self, address: Address) -> str:
        return self.taken.get(address, "")

    def _of_node(self, address: Address) -> str:
        if address in self.nodes:
            return f"an address of node {self.nodes[address]}"
        inside = (f"in the pod CIDR {prefix} of node {node}" for prefix, node in self.pod_cidrs if address in prefix)
        return next(inside, "")

    def _of_service(self, address: Address, server: VirtualServer) -> str:
        """The virtual server's own Service may have it too."""
        for service, kind in self.outside.get(address, ()):
            younger = bool(server.created) and service.created > server.created
            if service.key != server.service and not younger:
                return f"{kind} of Service {service.key}"
        return ""


def claims(
    own: str,
    bgp: Bgp,
    nodes: Iterable[Node],
    services: Iterable[Service],
    api_server: Iterable[EndpointSlice] = (),
    uplinks: Uplinks | None = None,
) -> Claims:
    """`api_server` are the slices of its Service."""
    taken: dict[Address, str] = {}
    outside: dict[Address, list[tuple[Service, str]]] = {}
    addresses, pod_cidrs = {}, []
    for service in services:
        taken.update(dict.fromkeys(service.cluster_ips, f"a cluster IP of Service {service.key}"))
        for address in service.external_ips:
            outside.setdefault(address, []).append((service, "an external IP"))
        for address in (*service.load_balancer_ips, *service.proxied):
            outside.setdefault(address, []).append((service, "a load balancer IP"))
    for node in nodes:
        addresses.update(dict.fromkeys((*node.internal_ips, *node.external_ips), node.name))
        pod_cidrs += [(prefix, node.name) for prefix in node.pod_cidrs]
    for each in api_server:
        taken |= {endpoint.address: "an address of the API server" for endpoint in each.endpoints}
    for gateway in uplinks.gateways if uplinks is not None else ():
        taken[gateway.address] = "the gateway of a default route"
    for peer in bgp.peers:
        if peer.peer_address is not None:
            taken[peer.peer_address] = f"the address of peer {peer.name}"
    return Claims(own, bgp.export.allow, taken, outside, addresses, pod_cidrs)
