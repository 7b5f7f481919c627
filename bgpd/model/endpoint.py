"""A pod's interface as policy is enforced on it: whose it is, what it may send as, where the node sees its traffic.

What `cni` finds out and `policy` acts on; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TypeAlias

from bgpd.model.attachment import AttachmentKey, InterfaceKind, PodName
from bgpd.model.prefix import Address


class MacvlanMode(IntEnum):
    """MACVLAN_MODE_* (linux/if_link.h): how macvlans of one parent reach each other."""

    PRIVATE = 1
    VEPA = 2
    BRIDGE = 4
    PASSTHRU = 8
    SOURCE = 16


class IpvlanMode(IntEnum):
    """IPVLAN_MODE_* (linux/if_link.h): how ipvlans of one parent reach each other and the wire."""

    L2 = 0
    L3 = 1
    L3S = 2


@dataclass(frozen=True, slots=True)
class VethLink:
    """The node's end of a veth. `bridge`: the index of the one that it is a port of; None: it is routed."""

    index: int
    name: str
    bridge: int | None

    @property
    def kind(self) -> InterfaceKind:
        return InterfaceKind.VETH


@dataclass(frozen=True, slots=True)
class MacvlanLink:
    """The parent, an interface of the node that every pod behind it shares. `netns`: the cookie of the pod's network
    namespace, by which what it sends is told from what others send; 0: not known.
    """

    parent: int
    name: str
    mode: MacvlanMode
    netns: int = 0

    @property
    def kind(self) -> InterfaceKind:
        return InterfaceKind.MACVLAN


@dataclass(frozen=True, slots=True)
class IpvlanLink:
    """The parent, which every pod behind it shares, and the pod's own interface, where what others of the parent send
    is judged: its index in the network namespace at `place`. `netns` as of a `MacvlanLink`. `reflecting`: what one
    pod sends to another leaves for the switch, which is to give it back (IPVLAN_F_VEPA).
    """

    parent: int
    name: str
    mode: IpvlanMode
    place: Path
    index: int
    netns: int = 0
    reflecting: bool = False

    @property
    def kind(self) -> InterfaceKind:
        return InterfaceKind.IPVLAN


EndpointLink: TypeAlias = VethLink | MacvlanLink | IpvlanLink


def is_bridging(link: EndpointLink) -> bool:
    """Whether the kernel itself hands some of its frames to others, before anybody can judge them."""
    return isinstance(link, MacvlanLink) and link.mode is MacvlanMode.BRIDGE


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One interface of one pod.

    `mac` and `addresses` are what the pod was given, whatever it has on its interface by now: it may send as nothing
    else. `mac` is written 02:00:00:00:00:0a. `pod` None: whoever attached it is no kubelet.
    """

    key: AttachmentKey
    pod: PodName | None
    mac: str
    addresses: tuple[Address, ...]
    link: EndpointLink

    def __str__(self) -> str:
        return f"{self.pod} {self.key.interface}" if self.pod else str(self.key)


Endpoints: TypeAlias = Mapping[AttachmentKey, Endpoint]
