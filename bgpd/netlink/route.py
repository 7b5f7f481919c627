"""Routes, neighbors, addresses and the VXLAN device as rtnetlink has them, both ways. Pure.

Numbers as in linux/rtnetlink.h, neighbour.h, if_addr.h and if_link.h. What is wanted is for the caller to decide; how
messages reach the kernel, for `netlink.rtsocket`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)

from bgpd.model.noderoute import Device, Route, RouteKey
from bgpd.model.prefix import Address, Prefix
from bgpd.netlink import link
from bgpd.netlink.nftmessage import Attributes, attribute, attributes, nest, text

NEWADDR, DELADDR, GETADDR = 20, 21, 22  # RTM_*
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30

PROTOCOL = 179  # of our routes, as `ip route show proto 179`: BGP's port, and nobody's in linux/rtnetlink.h
MAIN = 254  # RT_TABLE_MAIN
FAMILY = {4: 2, 6: 10}  # AF_INET, AF_INET6
AF_BRIDGE = 7

_UNICAST, _UNIVERSE = 1, 0  # RTN_*, RT_SCOPE_*
_ONLINK = 4  # RTNH_F_ONLINK
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH
_UP, _LOOPBACK = 0x1, 0x8  # IFF_*
_PERMANENT = 0x80  # NUD_PERMANENT
_SELF = 0x02  # NTF_SELF
_LINK_SCOPE = 253  # RT_SCOPE_LINK
_NO_ADDRESS_OF_ITS_OWN = 1  # IN6_ADDR_GEN_MODE_NONE

_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, both lengths, tos, table, protocol, scope, type, flags
_NEIGHBOR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type
_ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, length, flags, scope, interface

_DST, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH, _TABLE, _NEXTHOP = 1, 4, 5, 6, 9, 15, 30  # RTA_*
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFLA_ADDRESS, _IFLA_NAME, _IFLA_MTU, _IFLA_INFO, _IFLA_AF_SPEC = 1, 3, 4, 18, 26
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 4, 7, 15, 17
_ADDR_GEN_MODE = 8  # IFLA_INET6_ADDR_GEN_MODE

# as /etc/iproute2/rt_protos has them
_PROTOCOLS = {
    1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp",
    18: "keepalived", 42: "babel", 80: "calico", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip",
    192: "eigrp", 196: "static of FRR",
}  # fmt: skip
_TYPES = {2: "local", 3: "broadcast", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """A route of the main table. `protocol` says whose it is."""

    key: RouteKey
    protocol: int
    type: int
    via: Address | None
    interface: int
    onlink: bool

    def words(self, names: Mapping[int, str]) -> str:
        """As an operator would describe it; `names` are those of interfaces."""
        via = f"via {self.via} " if self.via else ""
        interface = f"dev {names.get(self.interface, self.interface)} " if self.interface else ""
        kind = f"{_TYPES[self.type]} " if self.type in _TYPES else ""
        metric = f" metric {self.key.metric}" if self.key.metric else ""
        return f"{kind}{via}{interface}proto {_PROTOCOLS.get(self.protocol, self.protocol)}{metric}"


@dataclass(frozen=True, slots=True)
class FoundLink:
    """An interface. `device` is what a VXLAN device was made with, where it was made with enough."""

    index: int
    name: str
    kind: str
    mtu: int
    is_up: bool
    is_loopback: bool
    device: Device | None


# --- routes ---------------------------------------------------------------------------------------------------------


def routes_request(version: int) -> bytes:
    """Of the main table, all; the kernel leaves the others out."""
    return _ROUTE.pack(FAMILY[version], 0, 0, 0, MAIN, 0, 0, 0, 0)


def best_request(prefix: Prefix) -> bytes:
    """The entry that the first address of `prefix` would be forwarded by."""
    head = _ROUTE.pack(FAMILY[prefix.version], prefix.max_prefixlen, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    return head + attribute(_DST, prefix.network_address.packed)


def route(key: RouteKey, value: Route, interface: int) -> bytes:
    """The body that makes this route, or takes exactly this one of ours away."""
    prefix = key.prefix
    flags = _ONLINK if value.onlink else 0
    head = _ROUTE.pack(FAMILY[prefix.version], prefix.prefixlen, 0, 0, MAIN, PROTOCOL, _UNIVERSE, _UNICAST, flags)
    gateway = attribute(_GATEWAY, value.via.packed) if value.via is not None else b""
    out = attribute(_OIF, _native(interface)) if interface else b""
    destination = attribute(_DST, prefix.network_address.packed)
    return head + destination + gateway + out + attribute(_PRIORITY, _native(key.metric))


def protocol_of(body: bytes) -> int:
    return body[5]


def prefix_bytes(body: bytes) -> tuple[int, int, bytes]:
    """Family, length and destination of a route: what `prefix_key` says of a prefix, without making one."""
    head, length = body[0], body[1]
    offset = _ROUTE.size
    while length and offset + 4 <= len(body):
        size, number = struct.unpack_from("=HH", body, offset)
        if number == _DST:
            return head, length, body[offset + 4 : offset + size]
        offset += size + -size % 4
    return head, length, b""


def prefix_key(prefix: Prefix) -> tuple[int, int, bytes]:
    """For `prefix_bytes` to be looked up among."""
    packed = prefix.network_address.packed if prefix.prefixlen else b""
    return FAMILY[prefix.version], prefix.prefixlen, packed


def found_route(body: bytes) -> FoundRoute | None:
    """Of a NEWROUTE or DELROUTE; None: it is in another table, or of a family that we do not know."""
    family, length, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])
    if (_unsigned(found, _TABLE) or table) != MAIN or family not in FAMILY.values():
        return None
    several = _MULTIPATH in found or _NEXTHOP in found
    prefix = _prefix(family, found[_DST][0] if _DST in found else b"", length)
    gateway = _address(found[_GATEWAY][0]) if _GATEWAY in found and not several else None
    key = RouteKey(prefix, _unsigned(found, _PRIORITY))
    return FoundRoute(key, protocol, kind, gateway, _unsigned(found, _OIF), bool(flags & _ONLINK))


# --- neighbors and the forwarding database --------------------------------------------------------------------------


def neighbors_request(family: int, interface: int) -> bytes:
    """`AF_BRIDGE` asks for the forwarding database."""
    return _NEIGHBOR.pack(family, 0, 0, 0, 0) + attribute(_NDA_IFINDEX, _native(interface))


def neighbor(address: Address, mac: str, interface: int) -> bytes:
    head = _NEIGHBOR.pack(FAMILY[address.version], interface, _PERMANENT, 0, 0)
    return head + attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, _octets(mac))


def forwarding(mac: str, remote: Address, interface: int) -> bytes:
    head = _NEIGHBOR.pack(AF_BRIDGE, interface, _PERMANENT, _SELF, 0)
    return head + attribute(_NDA_LLADDR, _octets(mac)) + attribute(_NDA_DST, remote.packed)


def neighbor_interface(body: bytes) -> int:
    return int(_NEIGHBOR.unpack_from(body)[1])


def found_neighbor(body: bytes) -> tuple[str, Address | None]:
    """MAC address, "" where there is none, and the address that goes with it."""
    found = attributes(body[_NEIGHBOR.size :])
    mac = found[_NDA_LLADDR][0].hex(":") if _NDA_LLADDR in found else ""
    return mac, _address(found[_NDA_DST][0]) if _NDA_DST in found else None


# --- addresses ------------------------------------------------------------------------------------------------------


def addresses_request() -> bytes:
    return _ADDRESS.pack(0, 0, 0, 0, 0)


def own_address(address: Address, interface: int) -> bytes:
    head = _ADDRESS.pack(FAMILY[address.version], address.max_prefixlen, 0, _UNIVERSE, interface)
    return head + attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)


def found_address(body: bytes) -> tuple[int, IPv4Interface | IPv6Interface] | None:
    """The interface's index, and an address of it with its subnet; None: one that is good on its link only."""
    _, length, _, scope, index = _ADDRESS.unpack_from(body)
    if scope >= _LINK_SCOPE:
        return None
    found = attributes(body[_ADDRESS.size :])
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    return (index, ip_interface((packed[0], length))) if packed else None


def any_address(body: bytes) -> tuple[int, Address] | None:
    """The interface's index, and an address of it, be it good on its link only."""
    index: int = _ADDRESS.unpack_from(body)[4]
    found = attributes(body[_ADDRESS.size :])
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    return (index, _address(packed[0])) if packed else None


# --- interfaces -----------------------------------------------------------------------------------------------------


def device(name: str, value: Device) -> bytes:
    """The body that makes the device, down."""
    local = _VXLAN_LOCAL if value.local.version == 4 else _VXLAN_LOCAL6
    data = (
        attribute(_VXLAN_ID, _native(value.vni)),
        attribute(local, value.local.packed),
        attribute(_VXLAN_PORT, struct.pack(">H", value.port)),
        attribute(_VXLAN_LEARNING, bytes([value.learns])),
    )
    info = nest(_IFLA_INFO, attribute(_INFO_KIND, "vxlan"), nest(_INFO_DATA, *data))
    return link.HEAD.pack(0, 0, 0, 0, 0) + attribute(_IFLA_NAME, name) + _changeable(value, None) + info


def device_settings(name: str, value: Device, have: Device) -> list[bytes]:
    """The bodies that put right what can be changed of a device, the last one making it go up.

    Its MAC address only where it is another: whenever one is set the kernel forgets all neighbors of the device.
    """
    mode = attribute(_ADDR_GEN_MODE, bytes([_NO_ADDRESS_OF_ITS_OWN]))
    ipv6 = nest(_IFLA_AF_SPEC, nest(FAMILY[6], mode))
    named = attribute(_IFLA_NAME, name)
    return [
        link.HEAD.pack(0, 0, 0, 0, 0) + named + ipv6,
        link.HEAD.pack(0, 0, 0, 0, 0) + named + _changeable(value, have),
        link.HEAD.pack(0, 0, 0, _UP, _UP) + named,
    ]


def no_device(name: str) -> bytes:
    return link.HEAD.pack(0, 0, 0, 0, 0) + attribute(_IFLA_NAME, name)


def found_link(body: bytes) -> FoundLink:
    _, _, index, flags, _ = link.HEAD.unpack_from(body)
    found = attributes(body[link.HEAD.size :])
    info = attributes(found[_IFLA_INFO][0]) if _IFLA_INFO in found else {}
    kind, mtu = text(info, _INFO_KIND), _unsigned(found, _IFLA_MTU)
    mac = found[_IFLA_ADDRESS][0].hex(":") if _IFLA_ADDRESS in found else ""
    data = attributes(info[_INFO_DATA][0]) if _INFO_DATA in info else {}
    is_up = bool(flags & _UP)
    made = _device(data, mac, mtu, is_up) if kind == "vxlan" else None
    return FoundLink(index, text(found, _IFLA_NAME), kind, mtu, is_up, bool(flags & _LOOPBACK), made)


def _device(data: Attributes, mac: str, mtu: int, is_up: bool) -> Device | None:
    local = data.get(_VXLAN_LOCAL, data.get(_VXLAN_LOCAL6))
    if local is None or _VXLAN_PORT not in data:
        return None
    port = int.from_bytes(data[_VXLAN_PORT][0], "big")
    learns = _VXLAN_LEARNING in data and data[_VXLAN_LEARNING][0] != b"\0"
    return Device(_unsigned(data, _VXLAN_ID), port, _address(local[0]), mac, mtu, is_up, learns)


def _changeable(value: Device, have: Device | None) -> bytes:
    mac = attribute(_IFLA_ADDRESS, _octets(value.mac)) if have is None or have.mac != value.mac else b""
    return mac + attribute(_IFLA_MTU, _native(value.mtu))


# --- values ---------------------------------------------------------------------------------------------------------


def _native(number: int) -> bytes:
    return struct.pack("=I", number)


def _unsigned(found: Attributes, which: int) -> int:
    """Of 32 bits in the machine's order; 0 where there are none."""
    return int(struct.unpack("=I", found[which][0])[0]) if which in found else 0


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _prefix(family: int, packed: bytes, length: int) -> Prefix:
    if family == FAMILY[4]:
        return IPv4Network((packed or bytes(4), length))
    return IPv6Network((packed or bytes(16), length))
