"""Works out which policies count on this node, and what their rules tell apart in the rest of the cluster. Pure.

A node has some hundred pods and the cluster ten thousand. Only policies that select a pod of this node count here
(`Selection`). Each of their rules speaks of a group of peers; an address is to them what groups it is in, and what
numbers its named ports have where a rule asks for them: its features (`Vocabulary`). Two addresses with the same
features are one class to the kernel, and `compile` gives it a number.

Both keep what they worked out and take in changes, so that a change costs what it touches. That is all their memory
is for: what they answer depends on nothing but the snapshot and the groups they were told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple, TypeAlias

from bgpd.datapath.layout import policy_address
from bgpd.model.labels import Selector
from bgpd.model.pod import Namespace, Pod
from bgpd.model.policy import (
    Direction,
    IpBlock,
    NamedPort,
    NetworkPolicy,
    Peer,
    PodPeer,
    PolicyRule,
    Snapshot,
)
from bgpd.model.prefix import Prefix
from bgpd.policy.blocks import Blocks
from bgpd.policy.numbers import Numbers
from bgpd.policy.selector import NamespaceIndex, PodIndex


class Group(NamedTuple):
    """The peers that a rule speaks of. `namespace` is the policy's if one of them depends on it."""

    namespace: str
    peers: tuple[Peer, ...]


class NumberedPort(NamedTuple):
    """A port that a pod has under a name."""

    protocol: int
    name: str
    port: int


Feature: TypeAlias = int | NumberedPort  # the number of a group, or a port
Features: TypeAlias = frozenset[Feature]

_NONE: Features = frozenset()


def group_of(policy: NetworkPolicy, rule: PolicyRule) -> Group | None:
    """None: the rule speaks of everybody."""
    if rule.peers is None:
        return None
    own = any(isinstance(peer, PodPeer) and peer.namespaces is None for peer in rule.peers)
    return Group(policy.namespace if own else "", rule.peers)


def groups_of(policy: NetworkPolicy) -> Iterator[Group]:
    """Those that its rules speak of. Rules that allow nothing speak of nobody."""
    for direction in Direction:
        for rule in policy.rules(direction) or ():
            group = group_of(policy, rule)
            if group is not None and group.peers and rule.ports != ():
                yield group


def prefixes_of(policy: NetworkPolicy) -> set[Prefix]:
    """Those of its ipBlocks, and what they leave out."""
    blocks = chain.from_iterable(_blocks_of(group) for group in groups_of(policy))
    return {prefix for block in blocks for prefix in (block.cidr, *block.excepts)}


def named_ports(policy: NetworkPolicy) -> Iterator[NamedPort]:
    """Those that are looked up at the peers: the destination is one only in egress."""
    for rule in policy.rules(Direction.EGRESS) or ():
        yield from (port for port in rule.ports or () if isinstance(port, NamedPort))


class Selection:
    """Which policies select each pod of this node, whatever directions they speak of."""

    def __init__(self) -> None:
        self._by_namespace: dict[str, set[str]] = {}
        self._selecting: dict[str, set[str]] = {}

    def of(self, pod: str) -> Collection[str]:
        return self._selecting.get(pod, ())

    def relevant(self, pods: Iterable[str]) -> set[str]:
        """The policies that select one of these."""
        return set().union(*(self._selecting.get(pod, ()) for pod in pods))

    def update(self, snapshot: Snapshot, pods: Collection[str], policies: Collection[str]) -> set[str]:
        """Takes in pods and policies that changed; returns the pods of this node that this may mean something to."""
        touched: set[str] = set()
        for key in policies:
            touched |= self._update_policy(snapshot, key)
        for key in pods:
            pod = snapshot.pods.get(key)
            if key in snapshot.local:
                inside = self._by_namespace.get(pod.namespace, ()) if pod is not None else ()
                self._selecting[key] = {each for each in inside if selects(snapshot.policies[each], pod)}
                touched.add(key)
            elif self._selecting.pop(key, None) is not None:
                touched.add(key)
        return touched

    def _update_policy(self, snapshot: Snapshot, key: str) -> set[str]:
        policy = snapshot.policies.get(key)
        namespace = key.partition("/")[0]
        inside = self._by_namespace.setdefault(namespace, set())
        (inside.discard if policy is None else inside.add)(key)
        if not inside:
            del self._by_namespace[namespace]
        touched = set()
        for local, selecting in self._selecting.items():
            is_meant = policy is not None and selects(policy, snapshot.pods.get(local))
            if is_meant or key in selecting:
                touched.add(local)
                (selecting.add if is_meant else selecting.discard)(key)
        return touched


def selects(policy: NetworkPolicy, pod: Pod | None) -> bool:
    """Whether the rules of the policy are for this pod; for none that Kubernetes has not shown."""
    return pod is not None and pod.namespace == policy.namespace and policy.pods.selects(pod.labels)


class Vocabulary:
    """The groups and named ports that rules speak of, and what each pod and address is to them.

    `dirty` collects the pods that are told apart, or were, and whose features or addresses may have changed, until
    the caller clears it; `blocks_changed` likewise says whether prefixes did.
    """

    def __init__(self) -> None:
        self.dirty: set[str] = set()
        self.blocks_changed = False
        self._groups: Numbers[Group] = Numbers()
        self._pod_peers: dict[int, tuple[str, tuple[PodPeer, ...]]] = {}  # with the namespace of the policy
        self._members: dict[int, set[str]] = {}
        self._named: set[NamedPort] = set()
        self._features: dict[str, Features] = {}
        self._shared: dict[Features, Features] = {}  # one object for all pods with the same features
        self._blocks = Blocks()
        self._pods = PodIndex()
        self._namespaces = NamespaceIndex()
        self._addresses: dict[str, tuple[bytes, ...]] = {}  # as struct policy_address has them
        self._claimants: dict[bytes, tuple[str, ...]] = {}
        self._owners: dict[bytes, str] = {}
        self._held: dict[bytes, frozenset[int]] = {}  # the groups with blocks around an address that was asked for

    # --- answers ------------------------------------------------------------------------------------------

    def number(self, group: Group) -> int:
        return self._groups.of(group)

    def has_blocks(self, group: int) -> bool:
        return any(isinstance(peer, IpBlock) for peer in self._groups[group].peers)

    def is_told_apart(self, pod: str) -> bool:
        """Whether the pod is more to the rules than its address is by the prefixes that cover it."""
        return bool(self._features.get(pod))

    def owner(self, address: bytes) -> str | None:
        """The pod that has the address, as struct policy_address has it; None: none has."""
        return self._owners.get(address)

    def owned(self, pod: str) -> Iterator[tuple[bytes, Features]]:
        """The pod's addresses, except for those that another pod has the better claim to."""
        for address in self._addresses.get(pod, ()):
            if self._owners[address] == pod:
                held = self._held.get(address)
                if held is None:
                    held = self._held[address] = self._blocks.holding(address)
                features = self._features.get(pod, _NONE)
                yield address, self._share(features.union(held)) if held else features

    def prefixes(self) -> Iterator[tuple[Prefix, Features]]:
        """What addresses are to the rules that no pod which is told apart has, for the longest prefix of each."""
        return iter(self._blocks.classes())

    # --- changes of what is asked -------------------------------------------------------------------------

    def learn(self, groups: Iterable[Group], named: Iterable[NamedPort]) -> None:
        """Takes in groups that rules speak of now, and names of ports."""
        gained: dict[str, list[Feature]] = {}
        changed = Blocks()
        for group in groups:
            number = self._groups.of(group)
            pod_peers = tuple(peer for peer in group.peers if isinstance(peer, PodPeer))
            self._pod_peers[number] = group.namespace, pod_peers
            members = self._members[number] = set[str]()
            for peer in pod_peers:
                members.update(self._pods.select(peer.pods, self._namespaces.of(peer, group.namespace)))
            for key in members:
                gained.setdefault(key, []).append(number)
            blocks = _blocks_of(group)
            if blocks:
                self._blocks.put(number, blocks)
                changed.put(number, blocks)
        for name in named:
            self._named.add(name)
            for key, port in self._ports_named(name):
                gained.setdefault(key, []).append(port)
        self._give(gained)
        self._touch_blocks(changed)

    def forget(self, groups: Iterable[Group], named: Iterable[NamedPort]) -> None:
        """Lets go of groups that no rule speaks of any more, and of names of ports."""
        lost: dict[str, list[Feature]] = {}
        changed = Blocks()
        for group in groups:
            number = self._groups.of(group)
            for key in self._members.pop(number):
                lost.setdefault(key, []).append(number)
            del self._pod_peers[number]
            blocks = _blocks_of(group)
            if blocks:
                self._blocks.drop(number)
                changed.put(number, blocks)
            self._groups.drop(number)
        for name in named:
            self._named.discard(name)
            for key, port in self._ports_named(name):
                lost.setdefault(key, []).append(port)
        self._take(lost)
        self._touch_blocks(changed)
        self._namespaces.keep(self._namespace_selectors())
        shared = set(self._features.values())
        self._shared = dict(zip(shared, shared, strict=True))

    def _ports_named(self, name: NamedPort) -> Iterator[tuple[str, NumberedPort]]:
        for key in self._pods.with_port(name):
            for port in _numbered(self._pods.pods[key], (name,)):
                yield key, port

    def _namespace_selectors(self) -> set[Selector]:
        peers = (peer for _, each in self._pod_peers.values() for peer in each)
        return {peer.namespaces for peer in peers if peer.namespaces is not None}

    def _touch_blocks(self, changed: Blocks) -> None:
        if not changed:
            return
        self.blocks_changed = True
        for address in [each for each in self._held if changed.holding(each)]:
            del self._held[address]
            self.dirty.add(self._owners[address])

    # --- changes of the cluster ---------------------------------------------------------------------------

    def update(self, snapshot: Snapshot, pods: Collection[str], namespaces: Mapping[str, Namespace | None]) -> None:
        """Takes in pods and namespaces that changed, came or went."""
        flipped = self._namespaces.update(namespaces)
        for name, selectors in flipped.items():
            affected = [
                number
                for number, (_, peers) in self._pod_peers.items()
                if any(peer.namespaces in selectors for peer in peers)
            ]
            for key in self._pods.of_namespace(name):
                self._ask(key, self._pods.pods[key], affected)
        contested: set[bytes] = set()
        for key in pods:
            contested.update(self._addresses.get(key, ()))
            self._update_pod(snapshot, key)
            contested.update(self._addresses.get(key, ()))
        for address in contested:
            self._settle(snapshot, address)

    def _update_pod(self, snapshot: Snapshot, key: str) -> None:
        addresses, pod = tuple(dict.fromkeys(map(policy_address, snapshot.addresses(key)))), snapshot.pods.get(key)
        for address in self._addresses.pop(key, ()):
            self._claimants[address] = tuple(each for each in self._claimants[address] if each != key)
        for address in addresses:
            self._claimants[address] = (*self._claimants.get(address, ()), key)
        if addresses:
            self._addresses[key] = addresses
        known = self._features.get(key, _NONE)
        self._take({key: [each for each in known if isinstance(each, NumberedPort)]})
        if pod is None or not addresses:
            numbers = [each for each in known if isinstance(each, int)]
            for number in numbers:
                self._members[number].discard(key)
            self._take({key: numbers})
            self._pods.drop(key)
        else:
            self._pods.put(key, pod)
            self._ask(key, pod, self._pod_peers)
            self._give({key: _numbered(pod, self._named)})
        self.dirty.add(key)

    def _settle(self, snapshot: Snapshot, address: bytes) -> None:
        """Finds out anew whose an address is."""
        claimants = self._claimants.get(address, ())
        before = self._owners.pop(address, None)
        if not claimants:
            self._claimants.pop(address, None)
            self._held.pop(address, None)  # while somebody has it, changes of blocks find it there
        else:
            self._owners[address] = max(claimants, key=snapshot.claim) if len(claimants) > 1 else claimants[0]
        after = self._owners.get(address)
        self.dirty.update(key for key in (before, after) if key is not None and before != after)

    def _ask(self, key: str, pod: Pod, numbers: Iterable[int]) -> None:
        """Whether a pod is in groups, from the start."""
        gained: list[int] = []
        lost: list[int] = []
        for number in numbers:
            namespace, peers = self._pod_peers[number]
            members = self._members[number]
            if any(
                pod.namespace in self._namespaces.of(peer, namespace) and peer.pods.selects(pod.labels)
                for peer in peers
            ):
                if key not in members:
                    members.add(key)
                    gained.append(number)
            elif key in members:
                members.discard(key)
                lost.append(number)
        self._give({key: gained})
        self._take({key: lost})

    def _give(self, features: Mapping[str, Iterable[Feature]]) -> None:
        self._change(features, frozenset.union)

    def _take(self, features: Mapping[str, Iterable[Feature]]) -> None:
        self._change(features, frozenset.difference)

    def _change(
        self,
        features: Mapping[str, Iterable[Feature]],
        change: Callable[[Features, Iterable[Feature]], Features],
    ) -> None:
        """Ten thousand pods have few different features, so each change of them is worked out once."""
        changed: dict[tuple[Features, tuple[Feature, ...]], Features] = {}
        for key, each in features.items():
            at = self._features.get(key, _NONE), tuple(each)
            if not at[1]:
                continue
            after = changed.get(at)
            if after is None:
                after = changed[at] = self._share(change(*at))
            if after:
                self._features[key] = after
            else:
                del self._features[key]
            self.dirty.add(key)

    def _share(self, features: Features) -> Features:
        return self._shared.setdefault(features, features)


def _blocks_of(group: Group) -> tuple[IpBlock, ...]:
    return tuple(peer for peer in group.peers if isinstance(peer, IpBlock))


def _numbered(pod: Pod, named: Collection[NamedPort]) -> Iterator[NumberedPort]:
    """The pod's ports that rules may ask for by these names."""
    wanted = {(name.protocol, name.name) for name in named}
    for port in dict.fromkeys(pod.ports):
        if (port.protocol, port.name) in wanted:
            yield NumberedPort(port.protocol, port.name, port.port)
