"""Says what each set of rules allows each class of addresses, as entries of the kernel's maps. Pure.

A set is the rules that judge one pod in one direction, a class what one address is to all rules (`resolve`). All
precedence is resolved here: for a set and a class there is one entry, or none, which denies, and where ports matter a
portset, which is what all matching rules allow together. Deny rules, tiers and proxies change what is worked out
here, not what the kernel looks up.

Sets and classes come one by one and only pairs that have something to say to each other are looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, TypeAlias

from bgpd.datapath.layout import Action, Port, Rule, RuleFlag
from bgpd.model.policy import PolicyPort, PortRange
from bgpd.policy.entries import PortKey, RangeKey, RuleKey, RuleSet
from bgpd.policy.numbers import Numbers
from bgpd.policy.resolve import Features, NumberedPort

NO_CLASS = 0  # of an address that nothing tells apart
_PORT_BITS = 16


class SetRule(NamedTuple):
    """`group` None: everybody. `ports` None: everything. In ingress no port is a name any more."""

    cookie: int
    group: int | None
    ports: tuple[PolicyPort, ...] | None


class SetContent(NamedTuple):
    """Rules by the names of their policies, then in their order: the first that allows is the one that is named."""

    origin: RuleSet
    rules: tuple[SetRule, ...]


_Opening: TypeAlias = tuple[PortRange, int]  # with the cookie of the rule that opens it


class Rulebook:
    """All pairs of the sets and classes that are there, worked out.

    `rules`, `ports` and `ranges` are changed in place; `changed` says whether they were, until the caller clears it.
    """

    def __init__(self) -> None:
        self.rules: dict[RuleKey, Rule] = {}
        self.ports: dict[PortKey, Port] = {}
        self.ranges: dict[RangeKey, Port] = {}
        self.sets: dict[int, RuleSet] = {}
        self.changed = False
        self._sets: Numbers[SetContent] = Numbers()
        self._classes: Numbers[tuple[int | NumberedPort, ...]] = Numbers()
        self._class_numbers: dict[Features, int] = {frozenset(): NO_CLASS}
        self._features: dict[int, Features] = {NO_CLASS: frozenset()}
        self._portsets: Numbers[tuple[_Opening, ...]] = Numbers()
        self._portset_uses: dict[int, int] = {}
        self._sets_by_group: dict[int | None, set[int]] = {}
        self._classes_by_group: dict[int, set[int]] = {}

    def class_of(self, features: Features) -> int:
        """The number of a class; one that is new is judged by every set at once."""
        number = self._class_numbers.get(features)
        if number is None:
            number = self._classes.of(tuple(sorted(features, key=repr)))
            self._class_numbers[features] = number
            self._features[number] = features
            for feature in features:
                if isinstance(feature, int):
                    self._classes_by_group.setdefault(feature, set()).add(number)
            for each in self._sets_for(features):
                self._judge(each, number)
        return number

    def set_of(self, content: SetContent) -> int:
        """The number of a set; one that is new judges every class at once."""
        known = content in self._sets
        number = self._sets.of(content)
        if not known:
            self.sets[number] = content.origin
            for rule in content.rules:
                self._sets_by_group.setdefault(rule.group, set()).add(number)
            for each in self._classes_for(content):
                self._judge(number, each)
            self.changed = True
        return number

    def sweep(self, sets: Collection[int], classes: Collection[int]) -> None:
        """Drops all sets and classes but these."""
        for number in self.sets.keys() - sets:
            content = self._sets[number]
            for each in self._classes_for(content):
                self._drop(RuleKey(number, each))
            for group in {rule.group for rule in content.rules}:
                self._sets_by_group[group].discard(number)
            self._sets.drop(number)
            del self.sets[number]
            self.changed = True
        for number in self._features.keys() - classes - {NO_CLASS}:
            features = self._features.pop(number)
            for each in self._sets_for(features):
                self._drop(RuleKey(each, number))
            for feature in features:
                if isinstance(feature, int):
                    self._classes_by_group[feature].discard(number)
            self._classes.drop(number)
            del self._class_numbers[features]
        self._sets_by_group = {key: value for key, value in self._sets_by_group.items() if value}
        self._classes_by_group = {key: value for key, value in self._classes_by_group.items() if value}

    # --- pairs --------------------------------------------------------------------------------------------

    def _sets_for(self, features: Features) -> set[int]:
        groups = [feature for feature in features if isinstance(feature, int)]
        return set().union(*(self._sets_by_group.get(group, ()) for group in (None, *groups)))

    def _classes_for(self, content: SetContent) -> Collection[int]:
        groups = {rule.group for rule in content.rules}
        if None in groups:
            return self._features.keys()
        return set().union(*(self._classes_by_group.get(group, ()) for group in groups if group is not None))

    def _judge(self, number: int, class_: int) -> None:
        features = self._features[class_]
        matching = [rule for rule in self._sets[number].rules if rule.group is None or rule.group in features]
        entry = self._entry(matching, features)
        if entry is not None:
            self.rules[RuleKey(number, class_)] = entry
            self.changed = True

    def _entry(self, matching: list[SetRule], features: Features) -> Rule | None:
        for rule in matching:
            if rule.ports is None:
                return Rule(0, Action.ALLOW, flags=0, proxy_port=0, cookie=rule.cookie)
        openings: dict[PortRange, int] = {}
        for rule in matching:
            for port in rule.ports or ():
                for opened in _resolved(port, features):
                    openings.setdefault(opened, rule.cookie)
        if not openings:
            return None
        portset, flags = self._portset(tuple(openings.items()))
        return Rule(portset, Action.DENY, flags, proxy_port=0, cookie=matching[0].cookie)

    def _portset(self, content: tuple[_Opening, ...]) -> tuple[int, int]:
        known = content in self._portsets
        number = self._portsets.of(content)
        self._portset_uses[number] = self._portset_uses.get(number, 0) + 1
        flags = 0
        for opened, cookie in content:
            flags |= RuleFlag.HAS_PORTS if opened.first == opened.last else RuleFlag.HAS_RANGES
            if known:
                continue
            if opened.first == opened.last:
                self.ports[PortKey(number, opened.protocol, opened.first)] = _open(cookie)
            else:
                for port, length in prefixes(opened):
                    self.ranges.setdefault(RangeKey(number, opened.protocol, port, length), _open(cookie))
        return number, flags

    def _drop(self, key: RuleKey) -> None:
        rule = self.rules.pop(key, None)
        if rule is None:
            return
        self.changed = True
        if not rule.portset:
            return
        self._portset_uses[rule.portset] -= 1
        if self._portset_uses[rule.portset]:
            return
        for opened, _ in self._portsets[rule.portset]:
            self.ports.pop(PortKey(rule.portset, opened.protocol, opened.first), None)
            for port, length in prefixes(opened):
                self.ranges.pop(RangeKey(rule.portset, opened.protocol, port, length), None)
        del self._portset_uses[rule.portset]
        self._portsets.drop(rule.portset)


def _open(cookie: int) -> Port:
    return Port(Action.ALLOW, flags=0, proxy_port=0, cookie=cookie)


def prefixes(ports: PortRange) -> Iterator[tuple[int, int]]:
    """The fewest prefixes that have exactly these ports: the first port of each and its length."""
    first = ports.first
    while first <= ports.last:
        bits = _PORT_BITS if first == 0 else (first & -first).bit_length() - 1
        while first + (1 << bits) - 1 > ports.last:
            bits -= 1
        yield first, _PORT_BITS - bits
        first += 1 << bits


def _resolved(port: PolicyPort, features: Features) -> Iterator[PortRange]:
    if isinstance(port, PortRange):
        yield port
        return
    yield from sorted(
        (
            PortRange(port.protocol, feature.port, feature.port)
            for feature in features
            if isinstance(feature, NumberedPort) and (feature.protocol, feature.name) == (port.protocol, port.name)
        ),
        key=lambda found: found.first,
    )


def numbered(ports: tuple[PolicyPort, ...], named: Collection[NumberedPort]) -> tuple[PolicyPort, ...]:
    """Ports of rules at a pod that has these names: what is no name there is nothing."""
    features = frozenset(named)
    return tuple(opened for port in ports for opened in _resolved(port, features))
