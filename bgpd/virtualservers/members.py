"""Decides which endpoints of a Service are members of a virtual server on this node. Pure.

The ready ones of the frontend's family that run here and are pods. An endpoint may be in two slices for a while, as
when its controller moves it (KEP-752): it is ready if one of them says so, as for kube-proxy. What a slice says runs
here and cannot be a pod of this node (see `claim`) is named, and neither monitored nor served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bgpd.model.brief import brief
from bgpd.model.service import EndpointSlice, Service
from bgpd.model.virtualserver import Member, VirtualServer
from bgpd.virtualservers.claim import Claims


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Services and their slices, as Kubernetes has them, by namespace/name; a slice is found by its Service."""

    services: Mapping[str, Service] = field(default_factory=dict)
    slices: Mapping[str, Sequence[EndpointSlice]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """`lacks` is why there are no members, `refused` names the endpoints that must not be any; empty as a rule."""

    members: tuple[Member, ...] = ()
    lacks: str = ""
    refused: str = ""


def by_service(slices: Iterable[EndpointSlice]) -> dict[str, list[EndpointSlice]]:
    """Each Service's slices."""
    found: dict[str, list[EndpointSlice]] = {}
    for each in slices:
        found.setdefault(each.service, []).append(each)
    return found


def members(server: VirtualServer, endpoints: Endpoints, claims: Claims) -> Found:
    """Those of this node."""
    service = endpoints.services.get(server.service)
    if service is None:
        return Found(lacks=f"there is no Service {server.service}")
    protocol, version = server.frontend.protocol, server.frontend.address.version
    names = [each.name for each in service.ports if (each.port, each.protocol) == (server.service_port, protocol)]
    if not names:
        ports = ", ".join(f"{each.port}/{each.protocol.name}" for each in service.ports) or "none"
        return Found(
            lacks=f"Service {server.service} has no port {server.service_port}/{protocol.name}; it has {ports}"
        )
    ready: dict[Member, bool] = {}
    refused: dict[str, None] = {}
    for part in endpoints.slices.get(server.service, ()):
        ports_here = [port.port for port in part.ports if port.name == names[0] and port.protocol is protocol]
        for endpoint in part.endpoints if ports_here else ():
            if endpoint.node != claims.own or endpoint.address.version != version:
                continue
            why = claims.foreign(endpoint)
            if why:
                name = f"{part.namespace}/{part.name}"
                refused[f"{endpoint.address} of EndpointSlice {name} is no pod of this node: {why}"] = None
                continue
            for port in ports_here:
                member = Member(endpoint.address, port)
                ready[member] = ready.get(member, False) or endpoint.ready
    found = sorted((member for member, is_ready in ready.items() if is_ready), key=lambda member: member.order)
    unready = f": {len(ready)} not ready" if ready else ""
    lacks = f"Service {server.service} has no ready IPv{version} pod on this node{unready}"
    return Found(tuple(found), "" if found else lacks, "; ".join(brief(refused)))
