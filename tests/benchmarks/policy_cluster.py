"""The cluster that policy is measured in: 10,000 pods in 1,000 namespaces with a policy each, as etcd has them.

This decides what the objects say. It does not decide how they get anywhere (`policy_stage`). Pods are as large as
they are elsewhere, 3 KB, because most of what a daemon is sent of them it has to skip. They lie in turn in all
namespaces, so that the pods of one node, the first ones, are in a hundred of them and meet a hundred policies.
Policies come in the shapes that people write: an application's tiers, a team's namespaces, address blocks, DNS.

A *tenant* is a namespace of its own whose pods are on one node, with as many policies as are asked for, each of which
selects all of its pods: that is what a packet of one of them has to be judged by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, TypeAlias

from tests.benchmarks.masq_stage import FAR
from tests.fabric.policy_site import Object, key_of, labelled, namespace, policy

PODS, NAMESPACES, POLICIES = 10_000, 1_000, 1_000
NODE_PODS = 110  # kubelet's default limit
TEAMS, TIERS = 20, ("web", "api", "database", "cache", "worker")
SYSTEM = "kube-system"
CREATED = "2026-01-01T00:00:00Z"
PEERS = 10  # pods that a tenant's policy speaks of
PORT = 80

Stored: TypeAlias = dict[str, Object]
"""Objects by etcd's keys."""

_GROUPS = {"Pod": "pods", "Namespace": "namespaces", "NetworkPolicy": "networkpolicies", "Node": "minions"}


def stored(objects: Iterable[Object]) -> Stored:
    """With what the API server adds to every object."""
    found: Stored = {}
    for number, each in enumerate(objects):
        metadata = {"uid": f"00000000-0000-4000-8000-{number:012x}", "creationTimestamp": CREATED, **each["metadata"]}
        key = key_of(each)[1].lstrip("/")
        found[f"/registry/{_GROUPS[each['kind']]}/{key}"] = {**each, "metadata": metadata}
    return found


def name_of(number: int) -> str:
    return f"ns-{number}"


def address_of(number: int) -> str:
    """Of a pod elsewhere."""
    return str(FAR[256 + number])


def namespaces() -> Iterator[Object]:
    for number in range(NAMESPACES):
        name = name_of(number)
        yield namespace(name, {"kubernetes.io/metadata.name": name, "team": f"team-{number % TEAMS}"})


def pods(node: str, addresses: Sequence[str]) -> Iterator[Object]:
    """The first of them are on `node` and have these addresses."""
    for number in range(PODS):
        home, tier = name_of(number % NAMESPACES), TIERS[number // NAMESPACES % len(TIERS)]
        here = number < len(addresses)
        place, address = (node, addresses[number]) if here else (f"node-{number % 100}", address_of(number))
        yield pod(home, f"{tier}-{number}", address, {"tier": tier, "number": str(number)}, place)


def policies() -> Iterator[Object]:
    tcp, dns = [{"protocol": "TCP", "port": 8080}], [{"protocol": "UDP", "port": 53}]
    for number in range(POLICIES):
        team = {"matchExpressions": [{"key": "team", "operator": "In", "values": [f"team-{number % TEAMS}"]}]}
        block = {"cidr": "10.0.0.0/8", "except": [f"10.{number % 200}.0.0/16"]}
        shapes: tuple[dict[str, Any], ...] = (
            {"ingress": [{"from": [{"podSelector": labelled(tier="web")}], "ports": tcp}]},
            {"ingress": [{"from": [{"namespaceSelector": team, "podSelector": labelled(tier="api")}],
                          "ports": [{"protocol": "TCP", "port": "http"}]}]},
            {"types": ["Ingress", "Egress"], "ingress": [{"from": [{"podSelector": {}}]}],
             "egress": [{"to": [{"ipBlock": block}], "ports": tcp}, {"ports": dns}]},
            {"ingress": [{"from": [{"namespaceSelector": team}], "ports": [{"protocol": "TCP", "port": 9090}]},
                         {"from": [{"ipBlock": block}]}]},
        )  # fmt: skip
        yield policy(name_of(number % NAMESPACES), f"policy-{number}", **shapes[number % len(shapes)])


def pod(home: str, name: str, address: str | None, labels: dict[str, str], node: str) -> Object:
    """One that runs, or, without an address, one that is about to."""
    token = {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    probe = {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10}
    container = {
        "name": "main",
        "image": f"registry.example/{labels.get('tier', 'main')}:1.42.0",
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": [{"name": f"SETTING_{number}", "value": f"value-{number}"} for number in range(12)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [token],
        "livenessProbe": probe,
        "readinessProbe": probe,
        "imagePullPolicy": "IfNotPresent",
    }
    conditions = [
        {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": CREATED}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    fields = {"f:metadata": {"f:labels": {f"f:{key}": {} for key in labels}}, "f:spec": {"f:containers": {}}}
    managed = {"apiVersion": "v1", "operation": "Update", "time": CREATED, "fieldsType": "FieldsV1"}
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": "0", "controller": True}
    tolerations = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        for key in ("not-ready", "unreachable")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": home,
            "name": name,
            "labels": labels,
            "annotations": {"example.com/checksum": "0123456789abcdef" * 4},
            "ownerReferences": [owner],
            "managedFields": [
                {**managed, "fieldsV1": fields, "manager": each} for each in ("kube-controller-manager", "kubelet")
            ],
        },
        "spec": {
            "nodeName": node,
            "containers": [container],
            "serviceAccountName": "default",
            "restartPolicy": "Always",
            "tolerations": tolerations,
            "volumes": [{"name": "token", "emptyDir": {}}],
        },
        "status": {
            "phase": "Running" if address else "Pending",
            "conditions": conditions if address else [],
            **({"podIP": address, "podIPs": [{"ip": address}]} if address else {}),
        },
    }


# --- tenants --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tenant:
    """`policies` policies, which all select all pods; `addresses` are those of the pods, all on `node`. The peers'
    addresses begin with number `first`.

    Policy number n lets them connect to port 80 of `peers_each` pods elsewhere, those of its own number.
    """

    node: str
    addresses: tuple[str, ...]
    policies: int
    first: int = PODS
    peers_each: int = PEERS

    @property
    def name(self) -> str:
        return f"tenant-{self.policies}"

    def peers(self, number: int) -> list[str]:
        """The addresses that policy `number` speaks of."""
        return [address_of(self.first + self.peers_each * number + each) for each in range(self.peers_each)]

    def allowed(self) -> Iterator[IPv4Address]:
        """Addresses that may be connected to, by all policies in turn, the last first."""
        while True:
            for each in range(self.peers_each):
                for number in reversed(range(self.policies)):
                    yield IPv4Address(self.peers(number)[each])

    def objects(self) -> Iterator[Object]:
        yield namespace(self.name, {"kubernetes.io/metadata.name": self.name})
        yield namespace(f"{self.name}-peers", {"kubernetes.io/metadata.name": f"{self.name}-peers"})
        for number, address in enumerate(self.addresses):
            yield pod(self.name, f"pod-{number}", address, {}, self.node)
        ports = [{"protocol": "TCP", "port": PORT}]
        for number in range(self.policies):
            for each, address in enumerate(self.peers(number)):
                yield pod(f"{self.name}-peers", f"peer-{number}-{each}", address, {"of": str(number)}, "elsewhere")
            home = {"namespaceSelector": labelled(**{"kubernetes.io/metadata.name": f"{self.name}-peers"})}
            rule = {"to": [{**home, "podSelector": labelled(of=str(number))}], "ports": ports}
            yield policy(self.name, f"policy-{number}", types=["Egress"], egress=[rule])
