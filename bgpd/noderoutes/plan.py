"""Decides how the pods of every other node are reached from this one. Pure.

Input: the mode (`nodeRoutes`), all Nodes, and what this node shows (`Host`). Output: routes, and for those that lead
through the VXLAN device (RFC 7348) that device and what it has to know, which is everything: it neither learns nor
floods. No node tells another anything but what its Node object shows. The MAC address of a node's device follows
from the node's name, the gateway to a pod CIDR is the CIDR's first address, as flannel has it.

A prefix that cannot be had without harm is *held*: nothing is made for it, and what there is of it stays as it is.
So of two nodes with overlapping CIDRs the one that had the route keeps it, whatever order they are seen in.

Which addresses the node announces by BGP is not decided here, nor how routes reach the kernel.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bgpd.config.schema import NodeRoutes, Vxlan
from bgpd.model.node import Node
from bgpd.model.noderoute import (
    DEVICE,
    Device,
    DeviceKey,
    ForwardingKey,
    Host,
    Interface,
    Key,
    NeighborKey,
    OwnAddressKey,
    Route,
    RouteKey,
    Value,
)
from bgpd.model.prefix import Address, Prefix

OVERHEAD = {4: 20 + 8 + 8 + 14, 6: 40 + 8 + 8 + 14}  # IP, UDP, VXLAN, and the Ethernet header within
VERSIONS = (4, 6)


@dataclass(frozen=True, slots=True)
class NodeRoutesPlan:
    """`held`: prefixes that stay as they are, and why. `unreachable`: what of which node gets no route, and why.

    `lapsed`: those nodes of them that show no address at all just now; the routes that there are to them stay.
    `blocked`: why nothing at all may be changed; empty when it may. `others`: how many other nodes there are.
    """

    want: Mapping[Key, Value] = field(default_factory=dict)
    held: Mapping[Prefix, str] = field(default_factory=dict)
    unreachable: Mapping[tuple[str, Prefix], str] = field(default_factory=dict)
    lapsed: frozenset[str] = frozenset()
    blocked: str = ""
    others: int = 0


@dataclass(frozen=True, slots=True)
class _Subnet:
    """One that this node is in, by an interface; the numbers of its first and last address."""

    version: int
    first: int
    last: int
    interface: str


class _Claim(NamedTuple):
    """A pod CIDR, by its numbers, and whose it is. They sort by address, what lies around others before these."""

    version: int
    first: int
    last_negated: int
    node: str
    prefix: Prefix


class Planner:
    """Keeps what it found for each node from one plan to the next: of 1,000 nodes one changes at a time.

    The result depends on the arguments of `plan` alone.
    """

    def __init__(self) -> None:
        self._context: object = None
        self._found: dict[str, tuple[Node, _Ways]] = {}
        self._claims: dict[str, tuple[Node, list[_Claim], list[tuple[int, int]]]] = {}

    def plan(
        self, mode: NodeRoutes, vxlan: Vxlan, own: Node | None, nodes: Mapping[str, Node], host: Host
    ) -> NodeRoutesPlan:
        """`own` None: Kubernetes has not shown this node."""
        blocked = _blocked(own, host)
        if blocked or own is None:
            return NodeRoutesPlan(blocked=blocked)
        local = _local(own)
        subnets = tuple(_subnets(own, host.interfaces))
        context = (mode, local, subnets)
        if context != self._context:
            self._context, self._found = context, {}
        held = self._doubtful(nodes) | dict(host.foreign or {})
        want: dict[Key, Value] = {}
        unreachable: dict[tuple[str, Prefix], str] = {}
        concerned: dict[Prefix, str] = {}
        needs_device = False
        for node in nodes.values():
            if node.name == own.name:
                continue
            ways = self._ways(node, mode, local, subnets)
            if ways.unreachable:
                unreachable |= ways.unreachable
            doubtful = [prefix for prefix in node.pod_cidrs if prefix in held] if held else ()
            concerned |= {prefix: held[prefix] for prefix in doubtful}
            want.update(ways.without(doubtful) if doubtful else ways.entries)
            needs_device = needs_device or ways.tunnels
        if local is not None and needs_device:
            want |= _device(own, local, vxlan, host.interfaces)
        self._forget(nodes)
        lapsed = frozenset(name for name, _ in unreachable if not nodes[name].internal_ips)
        return NodeRoutesPlan(want, concerned, unreachable, lapsed, others=len(nodes) - (own.name in nodes))

    def _doubtful(self, nodes: Mapping[str, Node]) -> dict[Prefix, str]:
        """Prefixes that two nodes claim, or that have a node's address in them."""
        claims: list[_Claim] = []
        numbers: list[tuple[int, int]] = []
        for node in nodes.values():
            known = self._claims.get(node.name)
            if known is None or known[0] is not node:
                claimed = [_claim(prefix, node.name) for prefix in node.pod_cidrs]
                known = node, claimed, [(address.version, int(address)) for address in node.internal_ips]
                self._claims[node.name] = known
            claims += known[1]
            numbers += known[2]
        claims.sort()
        numbers.sort()
        return dict(_overlaps(claims)) | dict(_covering(claims, numbers, nodes))

    def _ways(self, node: Node, mode: NodeRoutes, local: Address | None, subnets: Sequence[_Subnet]) -> _Ways:
        known = self._found.get(node.name)
        if known is None or known[0] is not node:
            known = self._found[node.name] = node, _ways_to(node, mode, local, subnets)
        return known[1]

    def _forget(self, nodes: Mapping[str, Node]) -> None:
        for name in self._claims.keys() - nodes.keys():
            del self._claims[name]
            self._found.pop(name, None)


def plan(
    mode: NodeRoutes, vxlan: Vxlan, own: Node | None, nodes: Mapping[str, Node], host: Host
) -> NodeRoutesPlan:
    """The whole wanted state, once."""
    return Planner().plan(mode, vxlan, own, nodes, host)


def mac_of(node_name: str) -> str:
    """Of a node's VXLAN device: locally administered, unicast, and with 46 bits of the name's digest its own."""
    digest = hashlib.sha256(node_name.encode()).digest()[:6]
    return bytes([digest[0] & 0xFC | 0x02, *digest[1:]]).hex(":")


# --- one node -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ways:
    """`entries` are all that the node takes, `by_prefix` those that one pod CIDR alone takes."""

    entries: Mapping[Key, Value]
    by_prefix: Mapping[Prefix, Collection[Key]]
    unreachable: Mapping[tuple[str, Prefix], str]
    tunnels: bool

    def without(self, prefixes: Iterable[Prefix]) -> dict[Key, Value]:
        left_out = {key for prefix in prefixes for key in self.by_prefix.get(prefix, ())}
        return {key: value for key, value in self.entries.items() if key not in left_out}


def _ways_to(node: Node, mode: NodeRoutes, local: Address | None, subnets: Sequence[_Subnet]) -> _Ways:
    entries: dict[Key, Value] = {}
    by_prefix: dict[Prefix, Collection[Key]] = {}
    unreachable: dict[tuple[str, Prefix], str] = {}
    direct = {} if mode is NodeRoutes.VXLAN else dict(_direct(node, subnets))
    remote = next((it for it in node.internal_ips if local and it.version == local.version), None)
    mac = mac_of(node.name)
    tunnels = False
    for prefix in node.pod_cidrs:
        key = RouteKey.of(prefix)
        route = direct.get(prefix.version)
        if route is not None:
            entries[key] = route
            by_prefix[prefix] = (key,)
        elif mode is NodeRoutes.HOST_GW or remote is None:
            unreachable[node.name, prefix] = _why_not(node, prefix, mode, local)
        else:
            gateway = NeighborKey(prefix.network_address)
            entries |= {ForwardingKey(mac): remote, gateway: mac, key: Route(gateway.address, DEVICE, onlink=True)}
            by_prefix[prefix] = (gateway, key)
            tunnels = True
    return _Ways(entries, by_prefix, unreachable, tunnels)


def _direct(node: Node, subnets: Sequence[_Subnet]) -> Iterator[tuple[int, Route]]:
    """By family, the way through an address of the node that is in a subnet of ours: the smallest, if several."""
    for version in VERSIONS:
        for address in (it for it in node.internal_ips if it.version == version):
            number = int(address)
            shared = [it for it in subnets if it.version == version and it.first <= number <= it.last]
            if shared:
                yield version, Route(address, min(shared, key=lambda it: it.last - it.first).interface)
                break


def _why_not(node: Node, prefix: Prefix, mode: NodeRoutes, local: Address | None) -> str:
    here = [address for address in node.internal_ips if address.version == prefix.version]
    what = f"{prefix} of node {node.name} gets no route: "
    if mode is NodeRoutes.HOST_GW and here:
        return f"{what}{here[0]} is in no subnet of this node; nodeRoutes: auto reaches it"
    if not node.internal_ips:
        return f"{what}its Node shows no InternalIP, so what there is of one stays; see --node-ip of its kubelet"
    if mode is NodeRoutes.HOST_GW:
        return f"{what}its Node shows no IPv{prefix.version} InternalIP; see --node-ip of its kubelet"
    if local is None:
        return f"{what}this node's Node shows no InternalIP for VXLAN to come from"
    return f"{what}VXLAN goes from {local} here, and its Node shows no InternalIP of that family"


# --- this node ------------------------------------------------------------------------------------------------------


def _blocked(own: Node | None, host: Host) -> str:
    if host.flannel:
        remedy = "take flannel out (its DaemonSet, then these), or set nodeRoutes: none"
        return f"flannel sees to routes here ({', '.join(host.flannel)}); {remedy}"
    if own is None:
        return "Kubernetes has not shown this node yet"
    if not own.internal_ips:
        return f"the Node of {own.name} shows no InternalIP; see --node-ip of kubelet"
    here = {address.ip for interface in host.interfaces for address in interface.addresses}
    missing = [address for address in own.internal_ips if address not in here]
    if missing:
        # a moment without the address of an uplink must not send everybody's pods through VXLAN
        return f"no interface that is up has {missing[0]}, the InternalIP of this node; see `ip address`"
    return ""


def _local(own: Node) -> Address | None:
    """Where VXLAN comes from and goes to: the node's first IPv4 InternalIP, IPv6 where it has none."""
    return min(own.internal_ips, key=lambda address: address.version, default=None)


def _subnets(own: Node, interfaces: Iterable[Interface]) -> Iterator[_Subnet]:
    """Those that other nodes can be in: none that this node's pods are in."""
    for interface in interfaces:
        for address in interface.addresses:
            network = address.network
            pods = any(
                prefix.version == network.version and prefix.overlaps(network) for prefix in own.pod_cidrs
            )
            if network.num_addresses > 1 and not interface.is_loopback and not pods:
                first = int(network.network_address)
                yield _Subnet(network.version, first, first + network.num_addresses - 1, interface.name)


def _device(own: Node, local: Address, vxlan: Vxlan, interfaces: Sequence[Interface]) -> dict[Key, Value]:
    """The device, and the addresses that this node itself talks to other nodes' pods with."""
    mtu = vxlan.mtu or _mtu(local, interfaces) - OVERHEAD[local.version]
    device: dict[Key, Value] = {DeviceKey(): Device(vxlan.vni, vxlan.port, local, mac_of(own.name), mtu)}
    return device | {OwnAddressKey(prefix.network_address): "" for prefix in own.pod_cidrs}


def _mtu(local: Address, interfaces: Sequence[Interface]) -> int:
    """Of the interface that has the address; where a loopback has it, the least that it may leave by."""
    own = [it.mtu for it in interfaces if not it.is_loopback and any(local == each.ip for each in it.addresses)]
    return min(own or [it.mtu for it in interfaces if not it.is_loopback] or [1500])


# --- what is held ---------------------------------------------------------------------------------------------------


def _claim(prefix: Prefix, node: str) -> _Claim:
    first = int(prefix.network_address)
    return _Claim(prefix.version, first, 1 - first - prefix.num_addresses, node, prefix)


def _overlaps(claims: Sequence[_Claim]) -> Iterator[tuple[Prefix, str]]:
    """Every prefix that lies within another node's, or has one within it; `claims` are sorted."""
    around: list[_Claim] = []
    for claim in claims:
        version, first = claim[:2]
        while around and (around[-1][0] != version or -around[-1][2] < first):
            around.pop()
        for other in around:
            if other.node != claim.node:
                text = (
                    f"{claim.prefix} of node {claim.node} overlaps {other.prefix} of node {other.node}: "
                    "neither route is made or changed; give one of them another pod CIDR"
                )
                yield claim.prefix, text
                yield other.prefix, text
        around.append(claim)


def _covering(
    claims: Sequence[_Claim], numbers: Sequence[tuple[int, int]], nodes: Mapping[str, Node]
) -> Iterator[tuple[Prefix, str]]:
    """Prefixes with the address of a node in them: a route there would go through itself. Both are sorted."""
    for claim in claims:
        at = bisect_left(numbers, claim[:2])
        if at < len(numbers) and numbers[at][0] == claim.version and numbers[at][1] <= -claim.last_negated:
            inside = (n.name for n in nodes.values() if any(address in claim.prefix for address in n.internal_ips))
            text = f"{claim.prefix} of node {claim.node} has the address of node {min(inside)} in it"
            yield claim.prefix, f"{text}: no route; give it another pod CIDR"


def standing(plan: NodeRoutesPlan, have: Mapping[Key, Value]) -> Mapping[Key, Value]:
    """What is wanted, with all there is of what is held, or leads to a node that shows no address."""
    if not (plan.held or plan.lapsed):
        return plan.want
    want = dict(plan.want)
    prefixes = (*plan.held, *(prefix for name, prefix in plan.unreachable if name in plan.lapsed))
    keys: list[Key] = [ForwardingKey(mac_of(name)) for name in plan.lapsed]
    for prefix in prefixes:
        keys += RouteKey.of(prefix), NeighborKey(prefix.network_address)
    want |= {key: have[key] for key in keys if key in have}
    if DeviceKey() not in want and any(isinstance(it, Route) and it.interface == DEVICE for it in want.values()):
        want |= {key: value for key, value in have.items() if isinstance(key, DeviceKey | OwnAddressKey)}
    return want
