"""Looks a flow up in the kernel's policy maps, step by step as bpf/include/bgpd/verdict.h does.

It knows nothing of pods and policies: what the numbers stand for is the compiler's. A test holds it to the program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from bgpd.datapath import layout
from bgpd.datapath.layout import Action, Peer, PeerFlag, PolicyVerdict, Port, Rule, RuleFlag, policy_address
from bgpd.model.lpm import LpmKey
from bgpd.model.policy import Direction
from bgpd.model.prefix import Address, host_prefix
from bgpd.policy.evaluate import Flow

Lookup: TypeAlias = Callable[[str, bytes], bytes | None]
"""The value that a map, by its name, has for a key; of a trie the longest match."""

_PORT_BITS = 16
_DENIED = {Direction.EGRESS: PolicyVerdict.DENIED_EGRESS, Direction.INGRESS: PolicyVerdict.DENIED_INGRESS}


@dataclass(frozen=True, slots=True)
class Side:
    """What one end's rules say. `set` 0: none are asked. `cookie` is of the rule or port that decided, 0: none did.

    `audited`: what they deny passes.
    """

    verdict: PolicyVerdict
    set: int = 0
    of_class: int = 0
    cookie: int = 0
    audited: bool = False

    @property
    def allowed(self) -> bool:
        return self.verdict < PolicyVerdict.DENIED_EGRESS


def walk(lookup: Lookup, flow: Flow, direction: Direction) -> Side:
    """Asked of both ends alike, although the program does not ask the server's once the client's have denied."""
    here, there = (flow.client, flow.server) if direction is Direction.EGRESS else (flow.server, flow.client)
    if here == there:
        return Side(PolicyVerdict.SELF)
    peer = _peer(lookup, here)
    egress = direction is Direction.EGRESS
    number = 0 if peer is None else peer.egress_set if egress else peer.ingress_set
    if peer is None or not number:
        return Side(PolicyVerdict.NOT_ISOLATED)
    cidrs = PeerFlag.EGRESS_CIDRS if egress else PeerFlag.INGRESS_CIDRS
    of_class = _class_of(lookup, there, bool(peer.flags & cidrs))
    action, cookie = _ask(lookup, number, of_class, flow)
    verdict = PolicyVerdict.ALLOWED if action == Action.ALLOW else _DENIED[direction]
    return Side(verdict, number, of_class, cookie, bool(peer.flags & PeerFlag.AUDIT))


def _peer(lookup: Lookup, address: Address) -> Peer | None:
    value = lookup("policy_peers", policy_address(address))
    return None if value is None else Peer._make(layout.PEER.unpack(value))


def _class_of(lookup: Lookup, address: Address, cidrs: bool) -> int:
    peer = _peer(lookup, address)
    if peer is not None:
        return peer.number
    value = lookup(f"policy_cidrs_v{address.version}", LpmKey.of(host_prefix(address))) if cidrs else None
    return 0 if value is None else int(layout.CLASS.unpack(value)[0])


def _ask(lookup: Lookup, number: int, of_class: int, flow: Flow) -> tuple[int, int]:
    value = lookup("policy_rules", layout.rule_key(number, of_class))
    if value is None:
        return Action.DENY, 0
    rule = Rule._make(layout.RULE.unpack(value))
    found = None
    if rule.flags & RuleFlag.HAS_PORTS:
        found = lookup("policy_ports", layout.port_key(rule.portset, flow.protocol, flow.port or 0))
    if found is None and rule.flags & RuleFlag.HAS_RANGES:
        key = layout.range_key(rule.portset, flow.protocol, flow.port or 0, _PORT_BITS)
        found = lookup("policy_ranges", key)
    if found is None:
        return rule.verdict, rule.cookie
    port = Port._make(layout.PORT.unpack(found))
    return port.verdict, port.cookie
