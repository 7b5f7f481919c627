"""Says what NetworkPolicy makes of one flow, word by word as the Kubernetes API documents it. Pure.

The reference that everything faster is held to, and what `policy explain` reads its reasons from. It looks through
all pods and policies for every question and remembers nothing; it knows nothing of sets, classes or maps. Source:
networking.k8s.io/v1 NetworkPolicySpec and the Network Policies page of the Kubernetes documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from bgpd.model.pod import Pod
from bgpd.model.policy import (
    Direction,
    IpBlock,
    NamedPort,
    NetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    RuleRef,
    Snapshot,
)
from bgpd.model.prefix import Address


@dataclass(frozen=True, slots=True)
class Flow:
    """What a client sends to a server, after all translation of services. `protocol` is IP's number for it.

    `port` is the server's; None for a protocol without ports. Replies are judged as the flow they answer.
    """

    client: Address
    server: Address
    protocol: int
    port: int | None = None


class Reason(StrEnum):
    """Why one direction is as it is."""

    NO_POD = "no pod of this node"
    ITSELF = "a pod to itself"
    OWN_NODE = "the pod's own node"
    NOT_ISOLATED = "no policy isolates the pod"
    RULE = "a rule allows it"
    NO_RULE = "no rule allows it"
    UNKNOWN_POD = "Kubernetes has not shown the pod yet"


_PASSES = frozenset({Reason.NO_POD, Reason.ITSELF, Reason.OWN_NODE, Reason.NOT_ISOLATED, Reason.RULE})


@dataclass(frozen=True, slots=True)
class Decision:
    """One direction at one pod. `policies` isolate it, and `rules` of theirs allow the flow: any one would do."""

    reason: Reason
    pod: str = ""
    policies: tuple[str, ...] = ()
    rules: tuple[RuleRef, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.reason in _PASSES


@dataclass(frozen=True, slots=True)
class Judgement:
    """What this node says; the other end's node may say otherwise."""

    egress: Decision
    ingress: Decision

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


@dataclass(frozen=True, slots=True)
class Near:
    """Rules that do not allow a flow and are half right: they speak of its other end, or of its port."""

    of_peer: tuple[RuleRef, ...] = ()
    of_port: tuple[RuleRef, ...] = ()


def evaluate(snapshot: Snapshot, flow: Flow) -> Judgement:
    """Egress at the client and ingress at the server, as far as they are pods of this node."""
    return Judgement(_decide(snapshot, flow, Direction.EGRESS), _decide(snapshot, flow, Direction.INGRESS))


def near(snapshot: Snapshot, flow: Flow, direction: Direction) -> Near:
    """What is half right in the policies that isolate the pod in this direction; nothing where none does."""
    here, there = (flow.client, flow.server) if direction is Direction.EGRESS else (flow.server, flow.client)
    key = owner(snapshot, here)
    pod = snapshot.pods.get(key) if key is not None and key in snapshot.local else None
    of_peer: list[RuleRef] = []
    of_port: list[RuleRef] = []
    for policy in _isolating(snapshot, pod, direction) if pod is not None else ():
        for index, rule in enumerate(policy.rules(direction) or ()):
            peer = _speaks_of_peer(snapshot, rule, policy.namespace, there)
            if peer != _speaks_of_port(snapshot, rule, flow):
                (of_peer if peer else of_port).append(RuleRef(policy.key, direction, index))
    return Near(tuple(of_peer), tuple(of_port))


def owner(snapshot: Snapshot, address: Address) -> str | None:
    """The pod that has the address, as namespace/name; None: none has, or it is a node's."""
    claimants = [key for key in snapshot.pods.keys() | snapshot.local.keys() if address in snapshot.addresses(key)]
    return max(claimants, key=snapshot.claim, default=None)


def _decide(snapshot: Snapshot, flow: Flow, direction: Direction) -> Decision:
    here, there = (flow.client, flow.server) if direction is Direction.EGRESS else (flow.server, flow.client)
    key = owner(snapshot, here)
    if key is None or key not in snapshot.local:
        return Decision(Reason.NO_POD)
    if here == there:
        return Decision(Reason.ITSELF, key)
    if there in snapshot.node_addresses:
        return Decision(Reason.OWN_NODE, key)
    pod = snapshot.pods.get(key)
    if pod is None:
        return Decision(Reason.UNKNOWN_POD, key)
    isolating = _isolating(snapshot, pod, direction)
    if not isolating:
        return Decision(Reason.NOT_ISOLATED, key)
    rules = tuple(ref for policy in isolating for ref in _allowing(snapshot, flow, policy, direction, there))
    reason = Reason.RULE if rules else Reason.NO_RULE
    return Decision(reason, key, tuple(policy.key for policy in isolating), rules)


def _isolating(snapshot: Snapshot, pod: Pod, direction: Direction) -> list[NetworkPolicy]:
    return [
        policy
        for _, policy in sorted(snapshot.policies.items())
        if policy.namespace == pod.namespace
        and policy.rules(direction) is not None
        and policy.pods.selects(pod.labels)
    ]


def _allowing(
    snapshot: Snapshot, flow: Flow, policy: NetworkPolicy, direction: Direction, there: Address
) -> Iterator[RuleRef]:
    for index, rule in enumerate(policy.rules(direction) or ()):
        if _speaks_of_peer(snapshot, rule, policy.namespace, there) and _speaks_of_port(snapshot, rule, flow):
            yield RuleRef(policy.key, direction, index)


def _speaks_of_peer(snapshot: Snapshot, rule: PolicyRule, namespace: str, address: Address) -> bool:
    return rule.peers is None or any(_is_peer(snapshot, peer, namespace, address) for peer in rule.peers)


def _is_peer(snapshot: Snapshot, peer: Peer, policy_namespace: str, address: Address) -> bool:
    if isinstance(peer, IpBlock):
        return address in peer.cidr and not any(address in prefix for prefix in peer.excepts)
    pod = snapshot.pods.get(owner(snapshot, address) or "")
    if pod is None or not peer.pods.selects(pod.labels):
        return False
    if peer.namespaces is None:
        return pod.namespace == policy_namespace
    namespace = snapshot.namespaces.get(pod.namespace)
    return namespace is not None and peer.namespaces.selects(namespace.labels)


def _speaks_of_port(snapshot: Snapshot, rule: PolicyRule, flow: Flow) -> bool:
    return rule.ports is None or any(_is_port(snapshot, port, flow) for port in rule.ports)


def _is_port(snapshot: Snapshot, port: PolicyPort, flow: Flow) -> bool:
    if port.protocol != flow.protocol or flow.port is None:
        return False
    if isinstance(port, NamedPort):
        server = snapshot.pods.get(owner(snapshot, flow.server) or "")
        return server is not None and any(
            (named.name, named.protocol, named.port) == (port.name, flow.protocol, flow.port)
            for named in server.ports
        )
    return port.first <= flow.port <= port.last
