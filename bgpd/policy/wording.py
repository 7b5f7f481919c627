"""Says rules, peers, ports and flows the way an operator would: selectors as kubectl takes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bgpd.model.labels import Operator, Requirement, Selector
from bgpd.model.policy import (
    Direction,
    IpBlock,
    NamedPort,
    NetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
)
from bgpd.model.prefix import Address

ICMP = {4: 1, 6: 58}
"""The protocol of a ping, by IP version."""
_PROTOCOLS = {each.value: each.name.lower() for each in Protocol} | {1: "icmp", 58: "icmpv6"}
_LAST_PORT = 65535


def protocol_name(number: int) -> str:
    """As in /etc/protocols, of those that are met every day; else the number."""
    return _PROTOCOLS.get(number, str(number))


def end(address: Address, port: int | None) -> str:
    """`10.0.0.1:80`, `[fd00::1]:80`; the address alone without a port."""
    if port is None:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def selector(given: Selector) -> str:
    """Empty for the one that selects everything."""
    return ",".join(map(_requirement, given.requirements))


def peers(rule: PolicyRule) -> str:
    if rule.peers is None:
        return "everybody"
    return _listed(map(_peer, rule.peers), "nobody, for no peer of it can be read")


def ports(rule: PolicyRule) -> str:
    if rule.ports is None:
        return "everything"
    return _listed(map(_port, rule.ports), "nothing, for no port of it can be read")


def sentences(policy: NetworkPolicy) -> dict[str, list[str] | None]:
    """What each rule lets through, by direction. None: the policy does not speak of it."""
    found: dict[str, list[str] | None] = {}
    for direction in Direction:
        word = "from" if direction is Direction.INGRESS else "to"
        rules = policy.rules(direction)
        found[direction.value] = None if rules is None else [f"{word} {peers(rule)}: {ports(rule)}" for rule in rules]
    return found


def _requirement(given: Requirement) -> str:
    match given.operator:
        case Operator.EXISTS:
            return given.key
        case Operator.DOES_NOT_EXIST:
            return f"!{given.key}"
    one = len(given.values) == 1
    if given.operator is Operator.IN:
        return f"{given.key}={given.values[0]}" if one else f"{given.key} in ({','.join(given.values)})"
    return f"{given.key}!={given.values[0]}" if one else f"{given.key} notin ({','.join(given.values)})"


def _peer(given: Peer) -> str:
    if isinstance(given, IpBlock):
        excepts = f" except {', '.join(map(str, given.excepts))}" if given.excepts else ""
        return f"{given.cidr}{excepts}"
    pods = selector(given.pods)
    text = f"pods {pods}" if pods else "all pods"
    if given.namespaces is None:
        return text
    namespaces = selector(given.namespaces)
    return f"{text} in namespaces {namespaces}" if namespaces else f"{text} in all namespaces"


def _port(given: PolicyPort) -> str:
    protocol = protocol_name(given.protocol)
    if isinstance(given, NamedPort):
        return f"{protocol} {given.name}"
    if given.first == given.last:
        return f"{protocol} {given.first}"
    return protocol if given.last - given.first >= _LAST_PORT - 1 else f"{protocol} {given.first}-{given.last}"


def _listed(items: Iterable[str], otherwise: str) -> str:
    return " or ".join(items) or otherwise
