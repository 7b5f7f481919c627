"""Everything that the maps of NetworkPolicy are to hold, with keys in words. Pure.

Values are those of `datapath.layout`, which also writes keys as bytes. Tuples, for there may be a hundred thousand.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bgpd.datapath.layout import Peer, Port, Rule
from bgpd.model.policy import Direction, RuleRef
from bgpd.model.prefix import Prefix


class RuleKey(NamedTuple):
    """A set is asked about a class. What has no entry is denied."""

    set: int
    of_class: int


class PortKey(NamedTuple):
    """A single port."""

    portset: int
    protocol: int
    port: int


class RangeKey(NamedTuple):
    """The ports that share the first `length` bits with `port`."""

    portset: int
    protocol: int
    port: int
    length: int


@dataclass(frozen=True, slots=True)
class RuleSet:
    """What a set stands for: the policies that isolate the pod. None: Kubernetes has not shown the pod yet."""

    direction: Direction
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that the maps are to hold, and what its numbers stand for. Never changed once it is made.

    Addresses are as struct policy_address has them: `ipaddress` objects take a microsecond to be looked up.
    """

    peers: Mapping[bytes, Peer] = field(default_factory=dict)
    cidrs: Mapping[Prefix, int] = field(default_factory=dict)
    rules: Mapping[RuleKey, Rule] = field(default_factory=dict)
    ports: Mapping[PortKey, Port] = field(default_factory=dict)
    ranges: Mapping[RangeKey, Port] = field(default_factory=dict)
    sets: Mapping[int, RuleSet] = field(default_factory=dict)
    cookies: Mapping[int, RuleRef] = field(default_factory=dict)


def shares(contents: Contents) -> Counter[str]:
    """How many entries the rules of each policy account for."""
    cookies = (entry.cookie for each in (contents.rules, contents.ports, contents.ranges) for entry in each.values())
    return Counter(contents.cookies[cookie].policy for cookie in cookies)


PLACES = {
    "policy_peers": "peers",
    "policy_cidrs_v4": "cidrs",
    "policy_cidrs_v6": "cidrs",
    "policy_rules": "rules",
    "policy_ports": "ports",
    "policy_ranges": "ranges",
}
"""The part of `Contents` that each of the kernel's maps has, or has its share of."""


def place_of(part: str, key: Any) -> str:
    """The map in which an entry lies."""
    return f"policy_cidrs_v{key.version}" if part == "cidrs" else f"policy_{part}"


def entries_in(contents: Contents, place: str) -> Mapping[Any, Any]:
    """What one of the kernel's maps is to hold."""
    part = PLACES[place]
    entries: Mapping[Any, Any] = getattr(contents, part)
    return {k: v for k, v in entries.items() if place_of(part, k) == place} if part == "cidrs" else entries


def asked_by(contents: Contents, place: str, keys: Collection[Any]) -> Counter[int]:
    """How many of these entries of a map each set of rules leads to."""
    entries = entries_in(contents, place)
    if place == "policy_rules":
        return Counter(key.set for key in keys)
    found: Counter[int] = Counter()
    if place in ("policy_ports", "policy_ranges"):
        in_portset = Counter(key.portset for key in keys)
        for number, portset in {(key.set, rule.portset) for key, rule in contents.rules.items()}:
            found[number] += in_portset[portset]
        return +found
    values = (entries[key] for key in keys)
    of_class = Counter(value.number if isinstance(value, Peer) else value for value in values)
    for number, class_ in contents.rules:
        found[number] += of_class[class_]
    return +found


def shares_of(contents: Contents, place: str) -> Counter[str]:
    """How many entries of a map are there because of each policy: whom to name when it does not fit."""
    entries = entries_in(contents, place)
    if PLACES[place] in ("rules", "ports", "ranges"):
        return Counter(contents.cookies[entry.cookie].policy for entry in entries.values())
    speaking: defaultdict[int, set[str]] = defaultdict(set)  # of a class
    for key, rule in contents.rules.items():
        speaking[key.of_class].add(contents.cookies[rule.cookie].policy)
    classes = (value.number if isinstance(value, Peer) else value for value in entries.values())
    return Counter(policy for number in classes if number in speaking for policy in speaking[number])


def largest(contents: Contents, place: str) -> str:
    """The policies that most entries of a map are of, in words."""
    return ", ".join(f"{policy} ({count:,})" for policy, count in shares_of(contents, place).most_common(3))


def needed_in(place: str, at_once: Sequence[Contents], room: int, left: Collection[Any] = ()) -> int:
    """What comes is written before what it replaces goes, so all must fit; and what is `left` of others, by key.

    While even without what they share they come to no more than `room`, it is that: nothing is counted.
    """
    parts: dict[int, Mapping[Any, Any]] = {id(part): part for part in (getattr(it, PLACES[place]) for it in at_once)}
    most = len(left) + sum(map(len, parts.values()))
    return most if most <= room else len(set(left).union(*(entries_in(each, place) for each in at_once)))
