"""Services and where they lead, as far as their addresses are announced (core/v1, discovery.k8s.io/v1).

How an object becomes one of these, and which of its addresses count: `kube.service`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bgpd.model.fault import FieldFault
from bgpd.model.policy import Protocol
from bgpd.model.prefix import Address


class ServiceAddress(StrEnum):
    """Which of a Service's addresses."""

    LOAD_BALANCER_IP = "LoadBalancerIP"
    EXTERNAL_IP = "ExternalIP"
    CLUSTER_IP = "ClusterIP"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a Service, or of the endpoints in a slice: the same name says that they belong together."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """The addresses are those that a node serves: a headless Service and an ExternalName have none.

    `external_local`: what comes in by external addresses goes to endpoints of the node where it came in only
    (externalTrafficPolicy: Local); `internal_local` says the same of the cluster IPs. `proxied` are addresses of a
    load balancer in front that no node answers (`ipMode: Proxy`). `created` is RFC 3339 in UTC, as the API writes it;
    empty in a file. `faults` name what could not be used.
    """

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    cluster_ips: tuple[Address, ...] = ()
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    proxied: tuple[Address, ...] = ()
    load_balancer_class: str = ""
    external_local: bool = False
    internal_local: bool = False
    ports: tuple[ServicePort, ...] = ()
    created: str = ""
    faults: tuple[FieldFault, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """One of those that serve. `node` empty: nobody says where it runs.

    `ready`: it takes new connections. `serving`: it answers, be it on its way out (`terminating`). `is_pod`: its
    slice says so (targetRef).
    """

    address: Address
    node: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    is_pod: bool = False


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Some of a Service's endpoints, of one family. `service` is namespace/name; empty: it belongs to none."""

    namespace: str
    name: str
    service: str = ""
    endpoints: tuple[ServiceEndpoint, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    faults: tuple[FieldFault, ...] = ()
