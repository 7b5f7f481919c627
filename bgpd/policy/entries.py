"""Everything that the maps of NetworkPolicy are to hold, with keys in words. Pure.

Values are those of `datapath.layout`, which also writes keys as bytes. Tuples, for there may be a hundred thousand.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

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


def shares_of(contents: Contents, part: str) -> Counter[str]:
    """How many entries of one part are there because of each policy: whom to name when it does not fit."""
    entries = getattr(contents, part)
    if part in ("rules", "ports", "ranges"):
        return Counter(contents.cookies[entry.cookie].policy for entry in entries.values())
    speaking: defaultdict[int, set[str]] = defaultdict(set)  # of a class
    for key, rule in contents.rules.items():
        speaking[key.of_class].add(contents.cookies[rule.cookie].policy)
    classes = (value.number if isinstance(value, Peer) else value for value in entries.values())
    return Counter(policy for number in classes if number in speaking for policy in speaking[number])
