"""Reads NetworkPolicy objects (networking.k8s.io/v1), with the API server's defaults and its validation.

A policy that cannot be read must not open what it was to close. Every fault is noted with its place, and the rest of
the object counts; what cannot be read allows nothing:

- a peer, a port or a rule that cannot be read matches nothing;
- with policyTypes, or a part of the spec, that cannot be read, the policy isolates in both directions;
- with a podSelector that cannot be read it isolates every pod of its namespace and allows nothing, for nobody can
  say whom it was to let in where.

A field that nobody knows makes what it stands in unreadable: `form:` for `from:` would let everybody in, and so
would a field of a later Kubernetes that narrows a rule. The API server refuses most of this; files have nobody else
to tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bgpd.kube.parse import Kind, RawObject
from bgpd.model.fault import FieldFault, FieldPath
from bgpd.model.labels import Operator, Requirement, Selector
from bgpd.model.policy import (
    Direction,
    IpBlock,
    NamedPort,
    NetworkPolicy,
    Peer,
    PodPeer,
    PolicyPort,
    PolicyRule,
    PortRange,
    Protocol,
)
from bgpd.model.prefix import Prefix, PrefixError, contains, parse_masked

T = TypeVar("T")

MAX_PORT = 65535

_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
_LABEL_KEY = re.compile(rf"(?:(?P<domain>{_DOMAIN})/)?{_NAME}")
_LABEL_VALUE = re.compile(rf"(?:{_NAME})?")
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]{0,13}[a-z0-9])?")  # RFC 6335 section 5.1
_POLICY_TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
_PEERS_FIELD = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_NOTHING = PolicyRule(peers=(), ports=())


class RawNetworkPolicy(RawObject, frozen=True, gc=False):
    """The spec is read by hand: a decoder would stop at the first fault and give up the whole object for it."""

    spec: Any = None


def policy_from(raw: RawNetworkPolicy) -> NetworkPolicy:
    """The policy as far as it can be read; the rest is in `faults`."""
    reader = _Reader()
    spec = reader.mapping(("spec",), raw.spec, ("podSelector", "policyTypes", "ingress", "egress"))
    content = spec or {}
    pods = reader.selector(("spec", "podSelector"), content.get("podSelector"))
    rules = {direction: reader.rules(direction, content.get(direction.value)) for direction in Direction}
    isolates = reader.policy_types(content)
    if spec is None or pods is None:
        rules = dict.fromkeys(Direction, ())
    if spec is None:
        isolates = frozenset(Direction)
    return NetworkPolicy(
        namespace=raw.metadata.namespace or "default",
        name=raw.metadata.name,
        uid=raw.metadata.uid or "",
        pods=pods or Selector(),
        ingress=rules[Direction.INGRESS] if Direction.INGRESS in isolates else None,
        egress=rules[Direction.EGRESS] if Direction.EGRESS in isolates else None,
        faults=tuple(reader.faults),
    )


def _faults(policy: NetworkPolicy) -> tuple[FieldFault, ...]:
    return policy.faults


NETWORK_POLICY = Kind(
    "NetworkPolicy",
    "networking.k8s.io/v1",
    "networkpolicies",
    namespaced=True,
    raw=RawNetworkPolicy,
    to_model=policy_from,
    faults=_faults,
)


class _Reader:
    """Each method takes a value and its place. None: it cannot be read, and `faults` says why."""

    def __init__(self) -> None:
        self.faults: list[FieldFault] = []

    def fault(self, path: FieldPath, problem: str) -> None:
        self.faults.append(FieldFault(path, problem))

    def mapping(self, path: FieldPath, value: object, known: tuple[str, ...]) -> Mapping[str, Any] | None:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(path, f"must be a mapping, not {value!r}")
            return None
        unknown = [key for key in value if key not in known]
        for key in unknown:
            self.fault((*path, str(key)), f"is no field that is known here; those are {', '.join(known)}")
        return None if unknown else value

    def each(self, path: FieldPath, value: object, read: Callable[[FieldPath, Any], T]) -> list[T] | None:
        """What `read` makes of each entry of a list; empty for one that is absent."""
        if value is None:
            return []
        if not isinstance(value, list):
            self.fault(path, f"must be a list, not {value!r}")
            return None
        return [read((*path, index), entry) for index, entry in enumerate(value)]

    def policy_types(self, spec: Mapping[str, Any]) -> frozenset[Direction]:
        """The directions in which the policy isolates; those of a spec without types are told by its rules."""
        path = ("spec", "policyTypes")
        found = self.each(path, spec.get("policyTypes"), self._policy_type)
        if found is None or None in found:
            return frozenset(Direction)
        named = frozenset(direction for direction in found if direction)
        speaks_of_egress = spec.get("egress") not in (None, [])
        return named or frozenset(Direction if speaks_of_egress else (Direction.INGRESS,))

    def _policy_type(self, path: FieldPath, value: object) -> Direction | None:
        if not isinstance(value, str) or value not in _POLICY_TYPES:
            self.fault(path, f"must be Ingress or Egress, not {value!r}")
            return None
        return _POLICY_TYPES[value]

    # --- rules --------------------------------------------------------------------------------------------

    def rules(self, direction: Direction, value: object) -> tuple[PolicyRule, ...]:
        """One for each entry, in place: a rule is known by its index."""
        found = self.each(("spec", direction.value), value, lambda path, entry: self._rule(path, direction, entry))
        return tuple(rule or _NOTHING for rule in found or ())

    def _rule(self, path: FieldPath, direction: Direction, value: object) -> PolicyRule | None:
        peers_field = _PEERS_FIELD[direction]
        rule = self.mapping(path, value, (peers_field, "ports"))
        if rule is None:
            return None
        peers = self.each((*path, peers_field), rule.get(peers_field), self._peer)
        ports = self.each((*path, "ports"), rule.get("ports"), self._port)
        return PolicyRule(
            # A list that is absent or empty stands for everything; one that cannot be read is empty.
            peers=None if peers == [] else tuple(peer for peer in peers or () if peer is not None),
            ports=None if ports == [] else tuple(port for port in ports or () if port is not None),
        )

    def _peer(self, path: FieldPath, value: object) -> Peer | None:
        peer = self.mapping(path, value, ("podSelector", "namespaceSelector", "ipBlock"))
        if peer is None:
            return None
        given = [key for key in peer if peer[key] is not None]
        if not given:
            self.fault(path, "selects nobody; give it a podSelector, a namespaceSelector or an ipBlock")
            return None
        if "ipBlock" in given:
            if len(given) > 1:
                self.fault(path, "has an ipBlock beside a selector; make them two entries")
                return None
            return self._ip_block((*path, "ipBlock"), peer["ipBlock"])
        pods = self.selector((*path, "podSelector"), peer.get("podSelector"))
        if "namespaceSelector" not in given:
            return None if pods is None else PodPeer(pods)
        namespaces = self.selector((*path, "namespaceSelector"), peer["namespaceSelector"])
        return None if pods is None or namespaces is None else PodPeer(pods, namespaces)

    def _ip_block(self, path: FieldPath, value: object) -> IpBlock | None:
        block = self.mapping(path, value, ("cidr", "except"))
        if block is None:
            return None
        cidr = self._cidr((*path, "cidr"), block.get("cidr"))
        excepts = self.each((*path, "except"), block.get("except"), self._cidr)
        if cidr is None or excepts is None:
            return None
        kept = []
        for index, prefix in enumerate(excepts):
            if prefix is not None and (prefix == cidr or not contains(cidr, prefix)):
                self.fault((*path, "except", index), f"{prefix} must be a part of {cidr}, and not all of it")
            elif prefix is not None:
                kept.append(prefix)
        return IpBlock(cidr, tuple(kept)) if len(kept) == len(excepts) else None

    def _cidr(self, path: FieldPath, value: object) -> Prefix | None:
        """Host bits are dropped, as the API server takes them."""
        if not isinstance(value, str):
            self.fault(path, f"must be a CIDR like 192.0.2.0/24, not {value!r}")
            return None
        try:
            prefix = parse_masked(value)
        except PrefixError as error:
            self.fault(path, str(error))
            return None
        if prefix.version == 6 and prefix.network_address.ipv4_mapped is not None:
            self.fault(path, f"{prefix} is IPv4 written as IPv6; write it as IPv4")
            return None
        return prefix

    def _port(self, path: FieldPath, value: object) -> PolicyPort | None:
        entry = self.mapping(path, value, ("protocol", "port", "endPort"))
        if entry is None:
            return None
        protocol = self._protocol((*path, "protocol"), entry.get("protocol"))
        port, end_port = entry.get("port"), entry.get("endPort")
        if isinstance(port, str):
            if not _PORT_NAME.fullmatch(port):
                hint = "; write a number without quotes" if port.isdecimal() else ""
                self.fault((*path, "port"), f"{port!r} is no name for a port (RFC 6335){hint}")
                return None
            if end_port is not None:
                self.fault((*path, "endPort"), f"needs a port that is a number, and {port!r} is a name")
                return None
            return None if protocol is None else NamedPort(protocol, port)
        if port is None:
            if end_port is not None:
                self.fault((*path, "endPort"), "needs a port to begin with; add 'port'")
                return None
            return None if protocol is None else PortRange(protocol, 0, MAX_PORT)
        first = self._number((*path, "port"), port)
        last = first if end_port is None else self._number((*path, "endPort"), end_port)
        if protocol is None or first is None or last is None:
            return None
        if last < first:
            self.fault((*path, "endPort"), f"{last} is less than port, {first}")
            return None
        return PortRange(protocol, first, last)

    def _protocol(self, path: FieldPath, value: object) -> Protocol | None:
        if value is None:
            return Protocol.TCP
        if isinstance(value, str) and value in Protocol.__members__:
            return Protocol[value]
        self.fault(path, f"must be {', '.join(Protocol.__members__)}, not {value!r}")
        return None

    def _number(self, path: FieldPath, value: object) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PORT:
            return value
        self.fault(path, f"must be a number from 1 to {MAX_PORT}, not {value!r}")
        return None

    # --- selectors ----------------------------------------------------------------------------------------

    def selector(self, path: FieldPath, value: object) -> Selector | None:
        """One that is absent has no requirements either; callers for whom it differs look first."""
        content = self.mapping(path, value, ("matchLabels", "matchExpressions"))
        if content is None:
            return None
        by_label = self._match_labels((*path, "matchLabels"), content.get("matchLabels"))
        expressions = self.each((*path, "matchExpressions"), content.get("matchExpressions"), self._expression)
        if by_label is None or expressions is None or None in expressions:
            return None
        return Selector((*by_label, *(expression for expression in expressions if expression)))

    def _match_labels(self, path: FieldPath, value: object) -> list[Requirement] | None:
        if value is None:
            return []
        if not isinstance(value, dict):
            self.fault(path, f"must be a mapping, not {value!r}")
            return None
        faults = len(self.faults)
        found = []
        for key, text in value.items():
            place = (*path, str(key))
            if self._label_key(place, key) is not None and self._label_value(place, text) is not None:
                found.append(Requirement(key, Operator.IN, (text,)))
        return found if len(self.faults) == faults else None

    def _expression(self, path: FieldPath, value: object) -> Requirement | None:
        content = self.mapping(path, value, ("key", "operator", "values"))
        if content is None:
            return None
        key = self._label_key((*path, "key"), content.get("key"))
        values = self.each((*path, "values"), content.get("values"), self._label_value)
        operator = content.get("operator")
        if not isinstance(operator, str) or operator not in set(Operator):
            self.fault((*path, "operator"), f"must be {', '.join(Operator)}, not {operator!r}")
            return None
        if key is None or values is None or None in values:
            return None
        if Operator(operator).takes_values != bool(values):
            remedy = "takes no values; remove them" if values else "needs values; name at least one"
            self.fault((*path, "values"), f"{operator} {remedy}")
            return None
        return Requirement(key, Operator(operator), tuple(text for text in values if text is not None))

    def _label_key(self, path: FieldPath, value: object) -> str | None:
        match = _LABEL_KEY.fullmatch(value) if isinstance(value, str) else None
        if match is None or len(match["domain"] or "") > 253:
            self.fault(path, f"{value!r} is no label key; write it like app or example.com/app")
            return None
        return match[0]

    def _label_value(self, path: FieldPath, value: object) -> str | None:
        if isinstance(value, str) and _LABEL_VALUE.fullmatch(value):
            return value
        hint = "is no label value; " + ("63 letters, digits, -, _, . at the most" if isinstance(value, str) else "")
        self.fault(path, f"{value!r} {hint}{'' if isinstance(value, str) else 'write it in quotes'}")
        return None
