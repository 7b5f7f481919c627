"""From pods, namespaces and policies to what the kernel's maps are to hold on this node. Pure.

In goes a snapshot, out comes the way there: a few stages, each the whole contents of all maps, the last of which is
what is wanted. Applied one after the other, each in the order of `transition.changes`, they keep every packet's
verdict in either direction what the old snapshot or the new one says, at every moment:

1. *refine*: classes become fine enough for the rules to come. No rule set changes, so no verdict does.
2. *switch*: pods and rule sets become the new ones, one address at a time. Entries for each pair of the old and new
   sets and classes have been there since the first stage.
3. *clean*: classes forget what only the old rules asked for, and what nobody uses any more goes.

The compiler keeps what it worked out, so that a change costs what it touches. Numbers are drawn from what they stand
for (`numbers`), so that nothing it returns depends on what it was asked before, but for the stages on the way.

A pod that is held (`Hold`) is judged by other policies than those that select it; who is held, and why, is decided
in `fit`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from types import MappingProxyType
from typing import Generic, NamedTuple, Self, TypeVar

from bgpd.datapath.layout import Peer, PeerFlag
from bgpd.model.pod import Pod
from bgpd.model.policy import Direction, NamedPort, NetworkPolicy, PolicyRule, RuleRef, Snapshot
from bgpd.model.prefix import Prefix
from bgpd.policy.entries import Contents, RuleSet
from bgpd.policy.numbers import Numbers
from bgpd.policy.resolve import Group, NumberedPort, Selection, Vocabulary, group_of, groups_of, named_ports
from bgpd.policy.rulebook import Rulebook, SetContent, SetRule, numbered
from bgpd.runtime.diff import changed

T = TypeVar("T", bound=Hashable)

_NOTHING = Snapshot(pods={}, namespaces={}, policies={}, local={})
_CIDRS = {Direction.EGRESS: PeerFlag.EGRESS_CIDRS, Direction.INGRESS: PeerFlag.INGRESS_CIDRS}


@dataclass(frozen=True, slots=True)
class Hold:
    """What a pod is judged by in place of the policies that select it: these, by a name that each version has alone.

    Their selectors do not matter, and their peers are those of the moment. None: it is closed, in the directions that
    the policies which select it speak of.
    """

    policies: Mapping[str, NetworkPolicy] | None

    @classmethod
    def on(cls, policies: Iterable[NetworkPolicy]) -> Self:
        return cls({_version(policy): policy for policy in policies})


CLOSED = Hold(None)
NO_HOLDS: Mapping[str, Hold] = MappingProxyType({})


def _version(policy: NetworkPolicy) -> str:
    """No name of an object has a `@`."""
    return f"{policy.key}@{blake2b(repr(policy).encode(), digest_size=8).hexdigest()}"


class Compiler:
    """Ask it with each snapshot in turn, and apply all stages of one answer before the next.

    If they could not all be applied, the next answer still leads to the right contents; on the way a pair of set and
    class that neither of its two snapshots knows has no entry and is denied.
    """

    def __init__(self) -> None:
        self._snapshot = _NOTHING
        self._held = NO_HOLDS
        self._versions: dict[str, NetworkPolicy] = {}  # of policies that pods are held on
        self._selection = Selection()
        self._vocabulary = Vocabulary()
        self._rulebook = Rulebook()
        self._cookies: Numbers[RuleRef] = Numbers()
        self._rules: dict[str, dict[Direction, tuple[SetRule, ...]]] = {}  # of each policy that counts here
        self._groups: _Uses[Group] = _Uses()
        self._named: _Uses[NamedPort] = _Uses()
        self._judged: dict[str, Peer] = {}  # of each pod of this node: its sets and flags, without a class
        self._written: dict[str, list[bytes]] = {}
        self._classes: Counter[int] = Counter()  # by how many peers and prefixes have it
        self._peers: Mapping[bytes, Peer] = {}
        self._cidrs: Mapping[Prefix, int] = {}
        self._contents = Contents()

    def advance(self, snapshot: Snapshot, held: Mapping[str, Hold] = NO_HOLDS) -> tuple[Contents, ...]:
        """The stages that lead from the last snapshot to this one; the last of them is what is wanted.

        `held` has pods of this node that Kubernetes shows.
        """
        before, self._snapshot = self._snapshot, snapshot
        pods = changed(snapshot.pods, before.pods) | changed(snapshot.local, before.local)
        policies = changed(snapshot.policies, before.policies)
        renamed = changed(snapshot.namespaces, before.namespaces)
        namespaces = {name: snapshot.namespaces.get(name) for name in renamed}
        touched = self._selection.update(snapshot, pods, policies)
        audited = before.audited ^ snapshot.audited
        touched |= {key for key in snapshot.local if key.partition("/")[0] in audited}
        touched |= changed(held, self._held)
        self._held = held
        self._renew(policies)
        groups, named = self._groups.settle(), self._named.settle()

        if before is _NOTHING:  # nothing to refine, and a group finds its pods faster than each pod its groups
            self._vocabulary.update(snapshot, pods, namespaces)
            self._vocabulary.learn(groups.new, named.new)
            self._judge(touched)
            return self._staged([self._refreshed(touched)])
        self._vocabulary.learn(groups.new, named.new)
        refined = self._refreshed()
        self._vocabulary.update(snapshot, pods, namespaces)
        self._judge(touched)
        switched = self._refreshed(touched)
        self._vocabulary.forget(groups.old, named.old)
        return self._staged([refined, switched, self._refreshed()])

    def owner(self, address: bytes) -> str | None:
        """The pod that has the address in the last snapshot, as struct policy_address has it; None: none has."""
        return self._vocabulary.owner(address)

    def policies_of(self, pod: str) -> tuple[NetworkPolicy, ...]:
        """Those that select a pod of this node, held or not, by name."""
        return tuple(self._snapshot.policies[each] for each in sorted(self._selection.of(pod)))

    def sets_of(self, pod: str) -> tuple[int, ...]:
        """The sets of rules that judge a pod of this node, by their numbers."""
        judged = self._judged[pod]
        return tuple(number for number in (judged.egress_set, judged.ingress_set) if number)

    # --- policies -----------------------------------------------------------------------------------------

    def _renew(self, changed: set[str]) -> None:
        """Reads the rules of policies that count here and changed, or began to count; drops those that ceased to."""
        self._versions = {
            name: policy for hold in self._held.values() for name, policy in (hold.policies or {}).items()
        }
        relevant = self._selection.relevant(self._snapshot.local.keys() - self._held.keys()) | self._versions.keys()
        for key in (self._rules.keys() ^ relevant) | (changed & relevant):
            policy = (self._versions.get(key) or self._snapshot.policies[key]) if key in relevant else None
            self._rules.pop(key, None)
            self._groups.replace(key, () if policy is None else tuple(groups_of(policy)))
            self._named.replace(key, () if policy is None else tuple(named_ports(policy)))
            if policy is not None:
                self._rules[key] = {
                    direction: tuple(self._set_rules(policy, direction, rules))
                    for direction in Direction
                    if (rules := policy.rules(direction)) is not None
                }

    def _set_rules(
        self, policy: NetworkPolicy, direction: Direction, rules: tuple[PolicyRule, ...]
    ) -> Iterator[SetRule]:
        for index, rule in enumerate(rules):
            if rule.peers == () or rule.ports == ():
                continue  # it allows nothing
            group = group_of(policy, rule)
            number = None if group is None else self._vocabulary.number(group)
            yield SetRule(self._cookies.of(RuleRef(policy.key, direction, index)), number, rule.ports)

    # --- pods of this node --------------------------------------------------------------------------------

    def _judge(self, pods: Iterable[str]) -> None:
        for key in pods:
            if key not in self._snapshot.local:
                self._judged.pop(key, None)
                continue
            sets = {direction: self._set_of(key, direction) for direction in Direction}
            flags = PeerFlag.AUDIT if key.partition("/")[0] in self._snapshot.audited else PeerFlag(0)
            for direction, content in sets.items():
                groups = {rule.group for rule in content.rules} if content is not None else set()
                if any(group is not None and self._vocabulary.has_blocks(group) for group in groups):
                    flags |= _CIDRS[direction]
            numbers = {
                direction: 0 if content is None else self._rulebook.set_of(content)
                for direction, content in sets.items()
            }
            self._judged[key] = Peer(0, numbers[Direction.EGRESS], numbers[Direction.INGRESS], int(flags))

    def _set_of(self, key: str, direction: Direction) -> SetContent | None:
        """None: not isolated. A pod that Kubernetes has not shown is closed: nobody knows its labels."""
        pod = self._snapshot.pods.get(key)
        if pod is None:
            return SetContent(RuleSet(direction, ()), ())
        hold = self._held.get(key)
        if hold is not None and hold.policies is None:
            selecting = (self._snapshot.policies[each] for each in self._selection.of(key))
            names = tuple(sorted(policy.key for policy in selecting if policy.rules(direction) is not None))
            return SetContent(RuleSet(direction, names), ()) if names else None
        # held or not, in the same order: it is part of the number of the set
        names_of = {each: each for each in self._selection.of(key)}
        if hold is not None and hold.policies is not None:
            names_of = {each: self._versions[each].key for each in hold.policies}
        policies = sorted((each for each in names_of if direction in self._rules[each]), key=names_of.__getitem__)
        if not policies:
            return None
        rules = tuple(chain.from_iterable(self._rules[each][direction] for each in policies))
        if direction is Direction.INGRESS:
            rules = tuple(_at(pod, rule) for rule in rules)
        return SetContent(RuleSet(direction, tuple(names_of[each] for each in policies)), rules)

    # --- stages -------------------------------------------------------------------------------------------

    def _refreshed(self, touched: Collection[str] = ()) -> tuple[Mapping[bytes, Peer], Mapping[Prefix, int]]:
        """Peers and prefixes as they are after the changes so far; the same objects if nothing changed."""
        vocabulary = self._vocabulary
        pods = vocabulary.dirty.union(touched)
        if vocabulary.blocks_changed:
            cidrs = {prefix: self._rulebook.class_of(features) for prefix, features in vocabulary.prefixes()}
            self._recount(self._cidrs.values(), cidrs.values())
            self._cidrs = cidrs
        old: dict[bytes, Peer] = {}
        new: dict[bytes, Peer] = {}
        for key in pods:
            old |= ((address, self._peers[address]) for address in self._written.pop(key, ()))
            entries = dict(self._entries(key))
            if entries:
                new |= entries
                self._written[key] = list(entries)
        if old != new:
            peers = dict(self._peers)
            for address in old:
                del peers[address]
            peers.update(new)
            self._recount((peer.number for peer in old.values()), (peer.number for peer in new.values()))
            self._peers = peers
        vocabulary.dirty.clear()
        vocabulary.blocks_changed = False
        return self._peers, self._cidrs

    def _entries(self, key: str) -> Iterator[tuple[bytes, Peer]]:
        judged = self._judged.get(key)
        if judged is None and not self._vocabulary.is_told_apart(key):
            return
        _, egress_set, ingress_set, flags = judged or Peer(0)
        for address, features in self._vocabulary.owned(key):
            yield address, Peer(self._rulebook.class_of(features), egress_set, ingress_set, flags)

    def _recount(self, old: Iterable[int], new: Iterable[int]) -> None:
        self._classes.update(new)
        self._classes.subtract(old)

    def _staged(self, stages: list[tuple[Mapping[bytes, Peer], Mapping[Prefix, int]]]) -> tuple[Contents, ...]:
        """Each stage that differs from the one before, with all rules, then the last with those that stay."""
        during = self._with_rules(self._contents)
        found: list[Contents] = []
        for peers, cidrs in stages:
            at = found[-1] if found else self._contents
            if peers is not at.peers or cidrs is not at.cidrs:
                found.append(replace(during, peers=peers, cidrs=cidrs))
        self._classes = +self._classes
        sets = {number for peer in self._judged.values() for number in (peer.egress_set, peer.ingress_set)}
        self._rulebook.sweep(sets, self._classes.keys())
        self._cookies.keep({rule.cookie for each in self._rules.values() for rule in chain(*each.values())})
        self._contents = self._with_rules(replace(during, peers=self._peers, cidrs=self._cidrs))
        if not found or self._contents != found[-1]:
            found.append(self._contents)
        return tuple(found)

    def _with_rules(self, contents: Contents) -> Contents:
        book = self._rulebook
        cookies = dict(self._cookies.items())
        if not book.changed:
            return replace(contents, cookies=cookies)
        book.changed = False
        return replace(
            contents,
            rules=dict(book.rules),
            ports=dict(book.ports),
            ranges=dict(book.ranges),
            sets=dict(book.sets),
            cookies=cookies,
        )


class _Settled(NamedTuple, Generic[T]):
    new: list[T]
    old: list[T]


class _Uses(Generic[T]):
    """What the policies that count here use, and what of it came and went since it was last asked."""

    def __init__(self) -> None:
        self._of: dict[str, Collection[T]] = {}
        self._count: Counter[T] = Counter()
        self._before: dict[T, int] = {}

    def replace(self, policy: str, used: Collection[T]) -> None:
        before = self._of.pop(policy, ())
        if used:
            self._of[policy] = used
        for each in chain(before, used):
            self._before.setdefault(each, self._count[each])
        self._count.subtract(before)
        self._count.update(used)

    def settle(self) -> _Settled[T]:
        came = [each for each, count in self._before.items() if not count and self._count[each]]
        went = [each for each, count in self._before.items() if count and not self._count[each]]
        for each in self._before:
            if not self._count[each]:
                del self._count[each]
        self._before.clear()
        return _Settled(came, went)


def _at(pod: Pod, rule: SetRule) -> SetRule:
    """An ingress rule at the pod that it protects, whose names for ports it means."""
    if rule.ports is None or not any(isinstance(port, NamedPort) for port in rule.ports):
        return rule
    named = [NumberedPort(port.protocol, port.name, port.port) for port in pod.ports]
    return rule._replace(ports=numbered(rule.ports, named))
