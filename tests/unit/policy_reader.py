"""Looks verdicts up in contents of the policy maps, step by step as bpf/include/bgpd/verdict.h does.

Values only, so that there is a verdict at every moment of a change without a kernel. What is right is for the tests.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from ipaddress import ip_network

from bgpd.datapath.layout import Action, Peer, PeerFlag, Port, Rule, RuleFlag, policy_address
from bgpd.model.policy import Direction
from bgpd.model.prefix import Address, Prefix
from bgpd.policy.entries import Contents, PortKey, RangeKey, RuleKey
from bgpd.policy.evaluate import Flow
from bgpd.policy.transition import Write


@dataclass
class Maps:
    """The kernel's maps, changed by one write at a time."""

    peers: MutableMapping[bytes, Peer] = field(default_factory=dict)
    cidrs: MutableMapping[Prefix, int] = field(default_factory=dict)
    rules: MutableMapping[RuleKey, Rule] = field(default_factory=dict)
    ports: MutableMapping[PortKey, Port] = field(default_factory=dict)
    ranges: MutableMapping[RangeKey, Port] = field(default_factory=dict)

    @classmethod
    def of(cls, contents: Contents) -> Maps:
        maps = (contents.peers, contents.cidrs, contents.rules, contents.ports, contents.ranges)
        return cls(*map(dict, maps))  # type: ignore[arg-type]

    def apply(self, write: Write) -> None:
        entries = getattr(self, write.map)
        if write.value is None:
            del entries[write.key]
        else:
            entries[write.key] = write.value


@dataclass(frozen=True)
class Side:
    """`cookie` is the rule that allows, or the first that speaks of the other end; 0: none does."""

    allowed: bool
    cookie: int = 0


PASSES = Side(True)


def look_up(maps: Maps | Contents, flow: Flow, direction: Direction) -> Side:
    """What one end says; a pod to itself is nobody's business."""
    here, there = (flow.client, flow.server) if direction is Direction.EGRESS else (flow.server, flow.client)
    peer = maps.peers.get(policy_address(here))
    if here == there or peer is None:
        return PASSES
    egress = direction is Direction.EGRESS
    number = peer.egress_set if egress else peer.ingress_set
    if not number:
        return PASSES
    cidrs = peer.flags & (PeerFlag.EGRESS_CIDRS if egress else PeerFlag.INGRESS_CIDRS)
    rule = maps.rules.get(RuleKey(number, _class_of(maps, there, bool(cidrs))))
    if rule is None:
        return Side(False)
    port = _port_of(maps, rule, flow) if rule.flags else None
    verdict, cookie = (rule.verdict, rule.cookie) if port is None else (port.verdict, port.cookie)
    return Side(verdict == Action.ALLOW, cookie)


def _class_of(maps: Maps | Contents, address: Address, cidrs: bool) -> int:
    peer = maps.peers.get(policy_address(address))
    if peer is not None:
        return peer.number
    if not cidrs or not maps.cidrs:
        return 0
    for length in range(address.max_prefixlen, -1, -1):
        number = maps.cidrs.get(ip_network((int(address), length), strict=False))
        if number is not None:
            return number
    return 0


def _port_of(maps: Maps | Contents, rule: Rule, flow: Flow) -> Port | None:
    port = flow.port or 0
    if rule.flags & RuleFlag.HAS_PORTS:
        found = maps.ports.get(PortKey(rule.portset, flow.protocol, port))
        if found is not None:
            return found
    if rule.flags & RuleFlag.HAS_RANGES:
        for length in range(16, -1, -1):
            first = port >> (16 - length) << (16 - length)
            found = maps.ranges.get(RangeKey(rule.portset, flow.protocol, first, length))
            if found is not None:
                return found
    return None
