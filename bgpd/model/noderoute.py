"""What node routes are made of: a route to a pod CIDR of another node, and what a VXLAN device needs for its own.

Everything has a key, by which the wanted and the observed are compared, and a value. Keys say in which order things
are made: a device before what lies on it, the most specific route first. Nothing here knows netlink.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import TypeAlias

from bgpd.model.prefix import Address, Prefix, sort_key

DEVICE = "bgpd-vxlan"
MARK = "node-routes"  # a file in `paths.state`: there may be something of ours in the kernel
METRIC = {4: 0, 6: 1024}  # the kernel's defaults: a route as `ip route add` makes it without a metric


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """The device; there is one."""

    @property
    def order(self) -> tuple[int, ...]:
        return (0,)

    def __str__(self) -> str:
        return DEVICE


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` is vxlan for one of ours, whatever it is for one that has our name only.

    `local`, the address that packets leave with and come to, decides over the family of all of them.
    """

    vni: int
    port: int
    local: Address
    mac: str
    mtu: int
    is_up: bool = True
    learns: bool = False
    kind: str = "vxlan"


@dataclass(frozen=True, slots=True)
class OwnAddressKey:
    """An address of the device, alone in its prefix; the value says nothing more."""

    address: Address

    @property
    def order(self) -> tuple[int, ...]:
        return 1, self.address.version, int(self.address)

    def __str__(self) -> str:
        return f"{self.address} on {DEVICE}"


@dataclass(frozen=True, slots=True)
class ForwardingKey:
    """Where frames to the device of another node go; the value is the address of that node."""

    mac: str

    @property
    def order(self) -> tuple[int, ...]:
        return 2, int(self.mac.replace(":", ""), 16)

    def __str__(self) -> str:
        return f"forwarding entry of {self.mac} on {DEVICE}"


@dataclass(frozen=True, slots=True)
class NeighborKey:
    """A gateway on the device; the value is the MAC address of the other node's device."""

    address: Address
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(self.address))

    def __hash__(self) -> int:
        return self._hash

    @property
    def order(self) -> tuple[int, ...]:
        return 3, self.address.version, int(self.address)

    def __str__(self) -> str:
        return f"neighbor {self.address} on {DEVICE}"


@dataclass(frozen=True, slots=True)
class RouteKey:
    """A prefix and the metric that it stands at in the main table.

    Its hash is remembered: every look at 1,000 nodes asks for all, and the prefixes' own is made anew each time.
    """

    prefix: Prefix
    metric: int
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.prefix, self.metric)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(cls, prefix: Prefix) -> RouteKey:
        return cls(prefix, METRIC[prefix.version])

    @property
    def order(self) -> tuple[int, ...]:
        return 4, *sort_key(self.prefix), self.metric

    def __str__(self) -> str:
        return f"route to {self.prefix}"


@dataclass(frozen=True, slots=True)
class Route:
    """`via` None: none that can be compared with, several next hops for one. `onlink`: whatever the subnets say."""

    via: Address | None
    interface: str
    onlink: bool = False


Key: TypeAlias = DeviceKey | OwnAddressKey | ForwardingKey | NeighborKey | RouteKey
Value: TypeAlias = Device | Address | str | Route


@dataclass(frozen=True, slots=True)
class Interface:
    """One that has addresses by which other nodes can be reached; our own device is none of them."""

    index: int
    name: str
    mtu: int
    is_loopback: bool
    addresses: tuple[IPv4Interface | IPv6Interface, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """What the node shows apart from what is ours.

    `foreign`: the routes of others to prefixes that we care for, in words. `flannel`: the signs of a flannel here.
    """

    interfaces: tuple[Interface, ...] = ()
    foreign: dict[Prefix, str] | None = None
    flannel: tuple[str, ...] = ()
