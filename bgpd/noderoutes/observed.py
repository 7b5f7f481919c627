"""What the kernel shows that concerns node routes, and which of its news do. Messages in, values out; pure.

`read` takes the dumps of one look apart: what is ours by its mark (the routing protocol's number, the device), what
the node shows besides (`Host`). `concerns` says whether a message means that another look is worth its while; on a
node where pods come and go and routing daemons work, hardly any does.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

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
    Value,
)
from bgpd.model.prefix import Prefix
from bgpd.netlink import route as rtnetlink
from bgpd.netlink.link import DELLINK, NEWLINK
from bgpd.netlink.message import Received
from bgpd.netlink.route import FoundLink, FoundRoute

FLANNEL = "flannel"  # its devices begin with it: flannel.1, flannel-v6.1, flannel-wg


class Concern(Enum):
    """What a message means: nothing; the node is another; somebody has touched what is ours."""

    NONE = auto()
    CHANGED = auto()
    TOUCHED = auto()


@dataclass(frozen=True, slots=True)
class Observed:
    """One look. `indexes` are those of interfaces by name, `links` and `addresses` what `Host` was made of."""

    have: Mapping[Key, Value] = field(default_factory=dict)
    host: Host = field(default_factory=Host)
    indexes: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[int, FoundLink] = field(default_factory=dict)
    addresses: frozenset[tuple[int, IPv4Interface | IPv6Interface]] = frozenset()


@dataclass(frozen=True, slots=True)
class Dumps:
    """What was asked for: links, and of all else the bodies; the last two of our device only."""

    links: Sequence[FoundLink]
    addresses: Sequence[bytes]
    routes: Sequence[bytes]
    forwarding: Sequence[bytes] = ()
    neighbors: Sequence[bytes] = ()


def device_of(links: Iterable[FoundLink]) -> FoundLink | None:
    """The one that has our name, if there is any."""
    return next((link for link in links if link.name == DEVICE), None)


def read(dumps: Dumps, prefixes: Container[tuple[int, int, bytes]], flannel: Sequence[str]) -> Observed:
    """`prefixes` we care for, as `rtnetlink.prefix_key` has them. `flannel`: other signs of it than its devices."""
    links = {link.index: link for link in dumps.links}
    found = [address for address in map(rtnetlink.found_address, dumps.addresses) if address is not None]
    names = {index: link.name for index, link in links.items()}
    have: dict[Key, Value] = {}
    foreign: dict[Prefix, str] = {}
    for body in dumps.routes:
        ours = rtnetlink.protocol_of(body) == rtnetlink.PROTOCOL
        if not ours and rtnetlink.prefix_bytes(body) not in prefixes:
            continue
        route = rtnetlink.found_route(body)
        if route is None:
            continue
        if ours:
            have[route.key] = _value(route, names)
        else:
            foreign[route.key.prefix] = route.words(names)
    device = device_of(dumps.links)
    if device is not None:
        have |= _on_device(device, found, dumps)
    signs = (*flannel, *(f"interface {link.name}" for link in links.values() if link.name.startswith(FLANNEL)))
    host = Host(tuple(_interfaces(links, found)), foreign, signs)
    with_addresses = {index: links[index] for index, _ in found if index in links and links[index] is not device}
    indexes = {link.name: link.index for link in links.values()}
    return Observed(have, host, indexes, with_addresses, frozenset(found))


def _value(route: FoundRoute, names: Mapping[int, str]) -> Route:
    return Route(route.via, names.get(route.interface, ""), route.onlink)


def _on_device(
    device: FoundLink, addresses: Iterable[tuple[int, IPv4Interface | IPv6Interface]], dumps: Dumps
) -> dict[Key, Value]:
    """The device, and all that lies on it: whatever that is, it is ours."""
    stranger = Device(0, 0, IPv4Address(0), "", device.mtu, kind=device.kind or "hardware")
    have: dict[Key, Value] = {DeviceKey(): device.device or stranger}
    if device.device is None:
        return have
    have |= {OwnAddressKey(address.ip): "" for index, address in addresses if index == device.index}
    for mac, remote in map(rtnetlink.found_neighbor, dumps.forwarding):
        if remote is not None:
            have[ForwardingKey(mac)] = remote
    for mac, address in map(rtnetlink.found_neighbor, dumps.neighbors):
        if address is not None and mac and not address.is_multicast:
            have[NeighborKey(address)] = mac
    return have


def _interfaces(
    links: Mapping[int, FoundLink], addresses: Sequence[tuple[int, IPv4Interface | IPv6Interface]]
) -> Iterable[Interface]:
    by_index: dict[int, list[IPv4Interface | IPv6Interface]] = {}
    for index, address in addresses:
        by_index.setdefault(index, []).append(address)
    for index, its in by_index.items():
        link = links.get(index)
        if link is not None and link.is_up and link.name != DEVICE:
            yield Interface(index, link.name, link.mtu, link.is_loopback, tuple(its))


# --- news -----------------------------------------------------------------------------------------------------------


def concerns(
    message: Received,
    port: int,
    seen: Observed,
    want: Mapping[Key, Value],
    prefixes: Container[tuple[int, int, bytes]],
) -> Concern:
    """`port`: of our own socket, whose changes are no news. `want`: what is wanted just now."""
    kind, body = message.kind, message.body
    if kind in (rtnetlink.NEWROUTE, rtnetlink.DELROUTE):
        return Concern.NONE if message.port == port else _of_route(kind, body, want, prefixes)
    if kind in (NEWLINK, DELLINK):
        return _of_link(kind, body, seen, want)
    if kind in (rtnetlink.NEWADDR, rtnetlink.DELADDR):
        return _of_address(kind, body, seen, want)
    if kind in (rtnetlink.NEWNEIGH, rtnetlink.DELNEIGH):
        return _of_neighbor(kind, body, seen, want)
    return Concern.NONE


def _of_route(
    kind: int, body: bytes, want: Mapping[Key, Value], prefixes: Container[tuple[int, int, bytes]]
) -> Concern:
    ours = rtnetlink.protocol_of(body) == rtnetlink.PROTOCOL
    if not ours and rtnetlink.prefix_bytes(body) not in prefixes:
        return Concern.NONE
    route = rtnetlink.found_route(body)
    if route is None or (ours and kind == rtnetlink.DELROUTE and route.key not in want):
        return Concern.NONE
    return Concern.TOUCHED if ours else Concern.CHANGED


def _of_link(kind: int, body: bytes, seen: Observed, want: Mapping[Key, Value]) -> Concern:
    link = rtnetlink.found_link(body)
    if link.name == DEVICE:
        wanted = want.get(DeviceKey())
        return Concern.NONE if (link.device if kind == NEWLINK else None) == wanted else Concern.TOUCHED
    if link.name.startswith(FLANNEL):
        known = any(link.name in sign for sign in seen.host.flannel)
        return Concern.NONE if known == (kind == NEWLINK) else Concern.CHANGED
    known_link = seen.links.get(link.index)
    if known_link is None:
        return Concern.NONE
    same = (link.name, link.mtu, link.is_up) == (known_link.name, known_link.mtu, known_link.is_up)
    return Concern.NONE if same and kind == NEWLINK else Concern.CHANGED


def _of_address(kind: int, body: bytes, seen: Observed, want: Mapping[Key, Value]) -> Concern:
    found = rtnetlink.found_address(body)
    if found is None:
        return Concern.NONE
    index, address = found
    if index == seen.indexes.get(DEVICE):
        wanted = OwnAddressKey(address.ip) in want
        return Concern.NONE if wanted == (kind == rtnetlink.NEWADDR) else Concern.TOUCHED
    known = found in seen.addresses
    return Concern.NONE if known == (kind == rtnetlink.NEWADDR) else Concern.CHANGED


def _of_neighbor(kind: int, body: bytes, seen: Observed, want: Mapping[Key, Value]) -> Concern:
    if rtnetlink.neighbor_interface(body) != seen.indexes.get(DEVICE):
        return Concern.NONE
    mac, address = rtnetlink.found_neighbor(body)
    if body[0] == rtnetlink.AF_BRIDGE:
        same = want.get(ForwardingKey(mac)) == address
    else:
        same = address is None or not mac or want.get(NeighborKey(address)) == mac
    if kind == rtnetlink.NEWNEIGH:
        return Concern.NONE if same else Concern.TOUCHED
    gone = ForwardingKey(mac) in want if body[0] == rtnetlink.AF_BRIDGE else address and NeighborKey(address) in want
    return Concern.TOUCHED if gone else Concern.NONE
