"""Reads Services (core/v1) and EndpointSlices (discovery.k8s.io/v1), as kube-proxy understands them.

Decides which of a Service's addresses a node serves at all. Headless Services and ExternalNames have none, whatever
else their spec says; load balancer addresses are those of `status`, and only of a Service that still is of that type.
Of an endpoint the first address counts (the API's word), conditions that are absent mean what the API says they
mean. `spec.publishNotReadyAddresses` is not read: the controller that writes the slices says `ready` then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import msgspec

from bgpd.kube.parse import Kind, RawDatedMeta, RawObject
from bgpd.model.fault import FieldFault, FieldPath
from bgpd.model.policy import Protocol
from bgpd.model.prefix import Address, PrefixError, parse_address
from bgpd.model.service import EndpointSlice, Service, ServiceEndpoint, ServicePort

T = TypeVar("T", Service, EndpointSlice)
_Text: TypeAlias = tuple[FieldPath, str]

_LAST_PORT = 65535
SERVICE_NAME = "kubernetes.io/service-name"  # the label of a slice that says whose it is


class RawServicePort(msgspec.Struct, frozen=True, gc=False):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class RawServiceSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    load_balancer_class: str | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    ports: list[RawServicePort] | None = None


class RawIngress(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    ip: str | None = None
    ip_mode: str | None = None


class RawLoadBalancer(msgspec.Struct, frozen=True, gc=False):
    ingress: list[RawIngress] | None = None


class RawServiceStatus(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    load_balancer: RawLoadBalancer | None = None


class RawService(RawObject, frozen=True, gc=False):
    metadata: RawDatedMeta
    spec: RawServiceSpec | None = None
    status: RawServiceStatus | None = None


class RawConditions(msgspec.Struct, frozen=True, gc=False):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class RawReference(msgspec.Struct, frozen=True, gc=False):
    kind: str | None = None


class RawEndpoint(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    addresses: list[str] | None = None
    conditions: RawConditions | None = None
    node_name: str | None = None
    target_ref: RawReference | None = None


class RawEndpointSlice(RawObject, frozen=True, gc=False, rename="camel"):
    address_type: str | None = None
    endpoints: list[RawEndpoint] | None = None
    ports: list[RawServicePort] | None = None


def service_from(raw: RawService) -> Service:
    """The Service with every valid address; the rest is in `faults`."""
    spec, namespace = raw.spec or RawServiceSpec(), raw.metadata.namespace or "default"
    reader = _Reader()
    ports = reader.ports(("spec", "ports"), spec.ports)
    labels = raw.metadata.labels or {}
    cluster = _listed(("spec", "clusterIPs"), spec.cluster_ips)
    if not cluster and spec.cluster_ip:  # before dual stack
        cluster = [(("spec", "clusterIP"), spec.cluster_ip)]
    if spec.type == "ExternalName" or any(text == "None" for _, text in cluster):
        return Service(namespace, raw.metadata.name, labels, ports=ports, faults=tuple(reader.faults))
    status = raw.status if spec.type == "LoadBalancer" else None
    ingress = ((status or RawServiceStatus()).load_balancer or RawLoadBalancer()).ingress or ()
    return Service(
        namespace=namespace,
        name=raw.metadata.name,
        labels=labels,
        cluster_ips=reader.addresses(cluster),
        external_ips=reader.addresses(_listed(("spec", "externalIPs"), spec.external_ips)),
        load_balancer_ips=reader.addresses(_ingress_ips(ingress, proxied=False)),
        proxied=reader.addresses(_ingress_ips(ingress, proxied=True)),
        load_balancer_class=spec.load_balancer_class or "",
        external_local=spec.external_traffic_policy == "Local",
        internal_local=spec.internal_traffic_policy == "Local",
        ports=ports,
        created=raw.metadata.creation_timestamp or "",
        faults=tuple(reader.faults),  # arguments are evaluated in this order: all has been read
    )


def endpoint_slice_from(raw: RawEndpointSlice) -> EndpointSlice:
    """The slice with each endpoint that has a valid address; one of host names (`addressType: FQDN`) has none."""
    namespace, reader = raw.metadata.namespace or "default", _Reader()
    owner = (raw.metadata.labels or {}).get(SERVICE_NAME)
    endpoints = []
    for index, entry in enumerate(raw.endpoints or ()) if raw.address_type != "FQDN" else ():
        conditions = entry.conditions or RawConditions()
        ready = conditions.ready is not False
        for address in reader.addresses(_listed(("endpoints", index, "addresses"), (entry.addresses or ())[:1])):
            endpoints.append(
                ServiceEndpoint(
                    address,
                    entry.node_name or "",
                    ready,
                    ready if conditions.serving is None else conditions.serving,
                    bool(conditions.terminating),
                    entry.target_ref is not None and entry.target_ref.kind == "Pod",
                )
            )
    return EndpointSlice(
        namespace,
        raw.metadata.name,
        f"{namespace}/{owner}" if owner else "",
        tuple(endpoints),
        reader.ports(("ports",), raw.ports),
        tuple(reader.faults),
    )


def _listed(path: FieldPath, texts: Sequence[str] | None) -> list[_Text]:
    return [((*path, index), text) for index, text in enumerate(texts or ())]


def _ingress_ips(ingress: Sequence[RawIngress], *, proxied: bool) -> list[_Text]:
    """A load balancer may also be a host name, which has no `ip`."""
    path = ("status", "loadBalancer", "ingress")
    return [
        ((*path, index, "ip"), entry.ip)
        for index, entry in enumerate(ingress)
        if entry.ip and (entry.ip_mode == "Proxy") is proxied
    ]


def _faults(value: T) -> tuple[FieldFault, ...]:
    return value.faults


SERVICE = Kind(
    "Service", "v1", "services", namespaced=True, raw=RawService, to_model=service_from, faults=_faults,
)  # fmt: skip
ENDPOINT_SLICE = Kind(
    "EndpointSlice", "discovery.k8s.io/v1", "endpointslices", namespaced=True, raw=RawEndpointSlice,
    to_model=endpoint_slice_from, faults=_faults,
)  # fmt: skip


class _Reader:
    """Each method keeps what can be read; `faults` tells of the rest."""

    def __init__(self) -> None:
        self.faults: list[FieldFault] = []

    def addresses(self, found: Iterable[_Text]) -> tuple[Address, ...]:
        """In the order of the object, each once."""
        kept: dict[Address, None] = {}
        for path, text in found:
            try:
                kept[parse_address(text)] = None
            except PrefixError as error:
                self.faults.append(FieldFault(path, str(error)))
        return tuple(kept)

    def ports(self, path: FieldPath, entries: Iterable[RawServicePort] | None) -> tuple[ServicePort, ...]:
        """Those with a number; a slice may leave it out, which means all of them."""
        kept = []
        for index, entry in enumerate(entries or ()):
            protocol = entry.protocol or Protocol.TCP.name
            if protocol not in Protocol.__members__:
                problem = f"must be {', '.join(Protocol.__members__)}, not {protocol!r}"
                self.faults.append(FieldFault((*path, index, "protocol"), problem))
            elif entry.port is not None and not 0 < entry.port <= _LAST_PORT:  # of slices the API server takes any
                self.faults.append(FieldFault((*path, index, "port"), f"must be 1 to {_LAST_PORT}, not {entry.port}"))
            elif entry.port is not None:
                kept.append(ServicePort(entry.name or "", Protocol[protocol], entry.port))
        return tuple(kept)
