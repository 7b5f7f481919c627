"""Finds the pods and namespaces that a selector selects without asking each of them. Pure.

What a selector means is `model.labels`' business; this only keeps the questions few: of the requirements that name
values, the rarest is looked up, and what it finds is asked in full.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

from bgpd.model.labels import Operator, Selector
from bgpd.model.pod import Namespace, Pod
from bgpd.model.policy import NamedPort, PodPeer

K = TypeVar("K")
L = TypeVar("L", Namespace, Pod)

_Groups: TypeAlias = Sequence[Collection[str]]  # of keys


class LabelIndex(Generic[L]):
    """Objects by key, found by the labels that they have."""

    def __init__(self) -> None:
        self.objects: dict[str, L] = {}
        self._by_label: dict[str, dict[str, set[str]]] = {}  # for the label keys that were asked for so far

    def put(self, key: str, found: L) -> None:
        """Adds an object or replaces what was known of it."""
        self.drop(key)
        self.objects[key] = found
        for label, by_value in self._by_label.items():
            if label in found.labels:
                by_value.setdefault(found.labels[label], set()).add(key)

    def drop(self, key: str) -> L | None:
        """Returns what it was."""
        was = self.objects.pop(key, None)
        if was is not None:
            for label, by_value in self._by_label.items():
                if label in was.labels:
                    _discard(by_value, was.labels[label], key)
        return was

    def candidates(self, selector: Selector) -> Iterator[_Groups]:
        """For each requirement that names values: the keys of those that have one of them."""
        for requirement in selector.requirements:
            if requirement.operator is Operator.IN:
                by_value = self._with_label(requirement.key)
                yield [by_value[value] for value in set(requirement.values) if value in by_value]

    def _with_label(self, label: str) -> dict[str, set[str]]:
        """Those that have a label, by its value. Most labels are in no selector."""
        by_value = self._by_label.get(label)
        if by_value is None:
            by_value = self._by_label[label] = {}
            for key, found in self.objects.items():
                if label in found.labels:
                    by_value.setdefault(found.labels[label], set()).add(key)
        return by_value


class PodIndex:
    """Pods by key, found by namespace, label and named port."""

    def __init__(self) -> None:
        self._labels: LabelIndex[Pod] = LabelIndex()
        self._by_namespace: dict[str, set[str]] = {}
        self._by_port: dict[tuple[int, str], set[str]] = {}

    @property
    def pods(self) -> Mapping[str, Pod]:
        return self._labels.objects

    def put(self, key: str, pod: Pod) -> None:
        """Adds a pod or replaces what was known of it."""
        self.drop(key)
        self._labels.put(key, pod)
        self._by_namespace.setdefault(pod.namespace, set()).add(key)
        for port in _names(pod):
            self._by_port.setdefault(port, set()).add(key)

    def drop(self, key: str) -> None:
        pod = self._labels.drop(key)
        if pod is None:
            return
        _discard(self._by_namespace, pod.namespace, key)
        for port in _names(pod):
            _discard(self._by_port, port, key)

    def of_namespace(self, name: str) -> Collection[str]:
        return self._by_namespace.get(name, ())

    def with_port(self, named: NamedPort) -> Collection[str]:
        return self._by_port.get((named.protocol, named.name), ())

    def select(self, selector: Selector, namespaces: Collection[str]) -> Collection[str]:
        """The pods of these namespaces that `selector` selects, in no order."""
        inside: _Groups = [self._by_namespace[name] for name in namespaces if name in self._by_namespace]
        if not selector.requirements:
            return set().union(*inside)
        groups = min((inside, *self._labels.candidates(selector)), key=_size)
        return [
            key
            for keys in groups
            for key in keys
            if (groups is inside or self.pods[key].namespace in namespaces)
            and selector.selects(self.pods[key].labels)
        ]


class NamespaceIndex:
    """Namespaces by name, and which of them each selector that was asked about selects."""

    def __init__(self) -> None:
        self._labels: LabelIndex[Namespace] = LabelIndex()
        self._selected: dict[Selector, set[str]] = {}

    def of(self, peer: PodPeer, policy_namespace: str) -> Collection[str]:
        """The namespaces that a peer of a policy speaks of."""
        if peer.namespaces is None:
            return (policy_namespace,)
        selected = self._selected.get(peer.namespaces)
        if selected is None:
            selected = self._selected[peer.namespaces] = self._select(peer.namespaces)
        return selected

    def update(self, changed: Mapping[str, Namespace | None]) -> dict[str, set[Selector]]:
        """Takes in what changed; None is gone. For each of them: the selectors that select it now or no longer."""
        flipped: dict[str, set[Selector]] = {}
        for name, namespace in changed.items():
            if namespace is None:
                self._labels.drop(name)
            else:
                self._labels.put(name, namespace)
            for selector, selected in self._selected.items():
                selects = namespace is not None and selector.selects(namespace.labels)
                if selects != (name in selected):
                    (selected.add if selects else selected.discard)(name)
                    flipped.setdefault(name, set()).add(selector)
        return flipped

    def keep(self, selectors: set[Selector]) -> None:
        """Forgets all selectors but these."""
        self._selected = {key: value for key, value in self._selected.items() if key in selectors}

    def _select(self, selector: Selector) -> set[str]:
        namespaces = self._labels.objects
        everything: _Groups = [namespaces.keys()]
        groups = min((everything, *self._labels.candidates(selector)), key=_size)
        return {name for names in groups for name in names if selector.selects(namespaces[name].labels)}


def _names(pod: Pod) -> set[tuple[int, str]]:
    """Two containers of a pod may use one name."""
    return {(port.protocol, port.name) for port in pod.ports}


def _size(groups: _Groups) -> int:
    return sum(map(len, groups))


def _discard(index: dict[K, set[str]], at: K, key: str) -> None:
    keys = index[at]
    keys.discard(key)
    if not keys:
        del index[at]
