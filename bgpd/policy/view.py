"""What verdicts rest on, as the stores have it at a moment: one snapshot of the cluster, seen from this node.

It decides which pods are this node's and in which namespaces nothing is dropped for now. A cluster has ten thousand
pods and shows one change after the other, so what was found out is kept and a look costs what has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bgpd.model.attachment import AttachmentKey
from bgpd.model.endpoint import Endpoint
from bgpd.model.node import Node
from bgpd.model.pod import Namespace, Pod
from bgpd.model.policy import NetworkPolicy, Snapshot
from bgpd.model.prefix import Address
from bgpd.runtime.diff import changed
from bgpd.runtime.store import Store


@dataclass(frozen=True, slots=True)
class Objects:
    """What Kubernetes has, by namespace/name, or by name."""

    nodes: Store[Mapping[str, Node]]
    pods: Store[Mapping[str, Pod]]
    namespaces: Store[Mapping[str, Namespace]]
    policies: Store[Mapping[str, NetworkPolicy]]

    @property
    def unread(self) -> list[str]:
        """The kinds that have not been read completely so far."""
        kinds: dict[str, Store[Any]] = {
            "Node": self.nodes,
            "Pod": self.pods,
            "Namespace": self.namespaces,
            "NetworkPolicy": self.policies,
        }
        return [kind for kind, store in kinds.items() if not store.newest.synced]


class View:
    """Of the node that has this name."""

    def __init__(self, node_name: str, objects: Objects) -> None:
        self._node_name, self._objects = node_name, objects
        self._pods: Mapping[str, Pod] = {}
        self._shown_here: set[str] = set()
        self._namespaces: Mapping[str, Namespace] = {}
        self._audited: frozenset[str] = frozenset()

    def look(self, endpoints: Mapping[AttachmentKey, Endpoint]) -> Snapshot:
        """This node's pods are those that Kubernetes shows here or that have an interface here."""
        self._take_in()
        local: dict[str, tuple[Address, ...]] = dict.fromkeys(self._shown_here, ())
        for endpoint in endpoints.values():
            if endpoint.pod is not None:
                name = f"{endpoint.pod.namespace}/{endpoint.pod.name}"
                local[name] = (*local.get(name, ()), *endpoint.addresses)
        node = self._objects.nodes.newest.value.get(self._node_name)
        own = frozenset(node.internal_ips) if node is not None else frozenset()
        policies = self._objects.policies.newest.value
        return Snapshot(self._pods, self._namespaces, policies, local, own, self._audited)

    def _take_in(self) -> None:
        before, self._pods = self._pods, self._objects.pods.newest.value
        for key in changed(self._pods, before):
            pod = self._pods.get(key)
            here = pod is not None and pod.node == self._node_name and not (pod.host_network or pod.finished)
            (self._shown_here.add if here else self._shown_here.discard)(key)
        if self._namespaces is not self._objects.namespaces.newest.value:
            self._namespaces = self._objects.namespaces.newest.value
            self._audited = frozenset(each.name for each in self._namespaces.values() if each.audited)
