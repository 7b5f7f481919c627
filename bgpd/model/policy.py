"""Kubernetes NetworkPolicy (networking.k8s.io/v1): values with every default of the API filled in.

How an object becomes one, and what becomes of what cannot be read: `kube.networkpolicy`. What one means for a packet:
`policy.evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TypeAlias

from bgpd.model.fault import FieldFault
from bgpd.model.labels import Selector
from bgpd.model.pod import Namespace, Pod
from bgpd.model.prefix import Address, Prefix


class Protocol(IntEnum):
    """The protocols that have ports in a policy, by the number that IP has for them."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Direction(StrEnum):
    """Seen from the pod that a policy selects."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Tampering(StrEnum):
    """What becomes of a pod that removes the program it is policed by: it is put back; and nothing passes."""

    RESTORE = "restore"
    CLOSE = "close"


class Overflow(StrEnum):
    """What becomes of a pod whose rules do not fit: the rules that it had stay, or nothing passes."""

    KEEP = "keep"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class PortRange:
    """Both ends belong to it."""

    protocol: Protocol
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class NamedPort:
    """The ports of this protocol that the destination gave that name, which may be none."""

    protocol: Protocol
    name: str


@dataclass(frozen=True, slots=True)
class IpBlock:
    """Every address of `cidr` that is in none of `excepts`, be it a pod's or not."""

    cidr: Prefix
    excepts: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class PodPeer:
    """The pods that `pods` selects. `namespaces` None: of the policy's own namespace."""

    pods: Selector
    namespaces: Selector | None = None


PolicyPort: TypeAlias = PortRange | NamedPort
Peer: TypeAlias = IpBlock | PodPeer


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """`peers` None: everybody. `ports` None: everything, protocols without ports included.

    An empty tuple is nobody and nothing: all that stood there could not be read.
    """

    peers: tuple[Peer, ...] | None
    ports: tuple[PolicyPort, ...] | None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """`ingress`, `egress` None: the policy does not speak of that direction. Else what it lets through, if anything.

    `faults` is what in the object could not be read, with its place in the object.
    """

    namespace: str
    name: str
    uid: str
    pods: Selector
    ingress: tuple[PolicyRule, ...] | None
    egress: tuple[PolicyRule, ...] | None
    faults: tuple[FieldFault, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def rules(self, direction: Direction) -> tuple[PolicyRule, ...] | None:
        return self.ingress if direction is Direction.INGRESS else self.egress


@dataclass(frozen=True, slots=True, order=True)
class RuleRef:
    """One rule of one policy, as an operator finds it: `index` counts in the object's list."""

    policy: str
    direction: Direction
    index: int

    def __str__(self) -> str:
        return f"NetworkPolicy {self.policy} spec.{self.direction}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that verdicts rest on: pods and policies by namespace/name, namespaces by name.

    `local` are the pods of this node: the addresses their interfaces have, which are known before the API server
    shows them (empty: those that it shows). `node_addresses` are this node's own. In the namespaces of `audited`
    nothing is dropped for now.

    A namespace that is not in `namespaces` has no labels that anybody knows, so no namespaceSelector selects it.
    """

    pods: Mapping[str, Pod]
    namespaces: Mapping[str, Namespace]
    policies: Mapping[str, NetworkPolicy]
    local: Mapping[str, tuple[Address, ...]]
    node_addresses: frozenset[Address] = frozenset()
    audited: frozenset[str] = frozenset()

    def addresses(self, key: str) -> tuple[Address, ...]:
        """The addresses that are this pod's alone, as far as it can tell: not the node's, and not given back."""
        pod = self.pods.get(key)
        if pod is not None and pod.host_network:
            return ()
        if key in self.local:
            return self.local[key] or (pod.ips if pod is not None else ())
        return () if pod is None or pod.finished else pod.ips

    def claim(self, key: str) -> tuple[bool, bool, str, str]:
        """Of two pods that show one address, it belongs to the one with the greater claim.

        The runtime gives an address back before the API server lets the pod go, so for a while both the old pod and
        the new one show it. A pod whose interface is here has it; else the one that is being ended loses, then the
        older one.
        """
        pod = self.pods.get(key)
        return key in self.local, pod is None or not pod.terminating, pod.created if pod is not None else "", key
