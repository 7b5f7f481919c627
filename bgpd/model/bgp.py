"""BGP as this node speaks it: the neighbors it wants, the paths it announces, the sessions it has.

Values only. Who computes them: `bgp.plan`. How ExaBGP is told: `bgp.render`, `bgp.codec`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, TypeAlias

from bgpd.model.bfd import Wanted
from bgpd.model.prefix import Address, Prefix

ASN = NewType("ASN", int)


class Family(StrEnum):
    """Address families (AFI/SAFI) by the name the configuration uses."""

    IPV4 = "ipv4-unicast"
    IPV6 = "ipv6-unicast"

    @classmethod
    def of(cls, value: Address | Prefix) -> Family:
        return cls.IPV4 if value.version == 4 else cls.IPV6


class AdvertisementType(StrEnum):
    """What is announced."""

    POD_CIDR = "PodCIDR"
    POD_IP = "PodIP"
    SERVICE = "Service"
    VIRTUAL_SERVER = "VirtualServer"


class Secret(str):
    """A password that no log line, traceback or repr shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __str__(self) -> str:
        return "***"

    def reveal(self) -> str:
        return str.__str__(self)


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One BGP session as it should be configured, every default resolved for this node.

    `interface` is that of a link-local `peer_address`, else empty. `extended_next_hop` offers RFC 8950.
    `listen_port` None: never accept a connection. `ttl_security` is RFC 5082 with a minimum TTL of 255;
    `multihop` is the TTL to send with, None for 1 to an external peer and for the system's to an internal one.
    `restart_time_s` None: no graceful restart. `bfd` None: no BFD; ExaBGP knows nothing of it either way.
    """

    name: str
    peer_address: Address
    peer_asn: ASN
    local_asn: ASN
    local_address: Address
    router_id: Address
    peer_port: int
    listen_port: int | None
    passive: bool
    families: tuple[Family, ...]
    hold_time_s: int
    restart_time_s: int | None
    ttl_security: bool
    multihop: int | None
    password: Secret | None
    interface: str = ""
    extended_next_hop: bool = False
    bfd: Wanted | None = None

    @property
    def internal(self) -> bool:
        """Whether the session is iBGP (RFC 4271 section 1.1)."""
        return self.peer_asn == self.local_asn


@dataclass(frozen=True, slots=True)
class LocalEnd:
    """Our end of a session, as the speaker has it loaded, and where the `peer` is."""

    address: Address
    router_id: Address
    peer: Address


@dataclass(frozen=True, slots=True)
class Path:
    """What is announced about one prefix. Communities are sorted, so that equal paths compare equal.

    `as_path` is what ExaBGP is to send verbatim; None leaves it to ExaBGP (empty on iBGP, our ASN on eBGP).
    """

    next_hop: Address
    as_path: tuple[ASN, ...] | None = None
    local_preference: int | None = None
    med: int | None = None
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteKey:
    """One prefix at one peer: the unit that is announced and withdrawn.

    The hash is worked out once: that of a prefix takes the standard library microseconds, and every round looks up
    every key several times.
    """

    peer: str
    prefix: Prefix
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        prefix = self.prefix
        object.__setattr__(self, "_hash", hash((self.peer, int(prefix.network_address), prefix.prefixlen)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class EndOfRibKey:
    """The marker that a peer's table is complete for a family (RFC 4724 section 2)."""

    peer: str
    family: Family


@dataclass(frozen=True, slots=True)
class EndOfRib:
    """End-of-RIB has no content; that it is there is all there is to know."""


Announcement: TypeAlias = Path | EndOfRib
AnnouncementKey: TypeAlias = RouteKey | EndOfRibKey


@dataclass(frozen=True, slots=True)
class Session:
    """A session as the speaker last saw it. `since` is monotonic seconds; `ups` counts the times it came up.

    `extended_next_hop`: both sides offered IPv6 next hops for IPv4 prefixes (RFC 8950).
    """

    up: bool
    since: float
    reason: str = ""
    ups: int = 0
    end_of_rib: frozenset[Family] = frozenset()
    hold_time_s: int | None = None
    families: tuple[Family, ...] = ()
    extended_next_hop: bool = False

    def takes(self, prefix: Prefix, next_hop: Address) -> bool:
        """Whether a route may be sent on this session: its family, and a next hop of another one, were negotiated."""
        same = prefix.version == next_hop.version
        return Family.of(prefix) in self.families and (same or self.extended_next_hop)


@dataclass(frozen=True, slots=True)
class SpeakerState:
    """`connected` False: the bridge is not reachable and `sessions` is what was last known."""

    connected: bool = False
    reason: str = "not connected yet"
    sessions: dict[Address, Session] = field(default_factory=dict)
