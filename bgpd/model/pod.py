"""Pods and namespaces as far as traffic is concerned (core/v1 Pod, PodStatus.podIPs, Namespace)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bgpd.model.prefix import Address

AUDIT = "bgpd.io/policy-audit"  # the annotation that turns audit mode on: "true"
HOST_ROUTE = "bgpd.io/host-route"  # the annotation that has a pod's addresses announced: "true", or not: "false"
NAME_LABEL = "kubernetes.io/metadata.name"  # the API server puts it on every namespace


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a container gave a name. `protocol` is the number that IP has for it."""

    name: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Pod:
    """`ports` holds named ones only, in the order of the object. `created` is RFC 3339 in UTC, as the API writes it.

    `finished`: every container has ended for good, so that its addresses may be another pod's by now.
    `terminating`: it was told to end; its addresses are its own until it is finished or gone.
    `host_route` is what the annotation says of announcing its addresses; None: nothing.
    `problems` names whatever in the object could not be used; the rest of it still counts.
    """

    namespace: str
    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ips: tuple[Address, ...] = ()
    node: str = ""
    host_network: bool = False
    ports: tuple[ContainerPort, ...] = ()
    created: str = ""
    terminating: bool = False
    finished: bool = False
    host_route: bool | None = None
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Namespace:
    """`labels` always has the label that says the name. `audited`: what policy denies its pods is told and passes."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    audited: bool = False
