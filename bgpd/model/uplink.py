"""What this node's kernel shows of where peers may be that are not given by address. Values only.

Who reads it: `bgp.discovery`. What becomes of it: `bgp.places`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from bgpd.model.prefix import Address


@dataclass(frozen=True, slots=True)
class Link:
    """An interface that one peer is expected on. `local` None: it has no link-local address that can be used yet.

    `routers`: who said there that it is a router and has not been found unreachable since (RFC 4861). `peer`: the
    one of them that the session is with; it stays while nobody takes its place, whether it is heard or not.
    `ours`: all addresses that would do in place of `local`.
    """

    is_up: bool
    local: IPv6Address | None
    routers: frozenset[IPv6Address] = frozenset()
    peer: IPv6Address | None = None
    ours: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A next hop of a default route. `interface` as in "fe80::1%eth1", empty for other addresses."""

    address: Address
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """Of one gateway. `local`: our address on its link, None where it has none of that family.

    `gone_at`: since when no default route goes by it, monotonic seconds; None: one does. `ours`: all addresses that
    would do in place of `local`.
    """

    local: Address | None
    gone_at: float | None = None
    ours: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Uplinks:
    """`links` by interface name: those that were asked for and are there. `problem`: why nothing (more) is found.

    `new_to`: all interfaces there are, for a daemon that has not looked long enough yet to have seen what went; None:
    it has.
    """

    links: Mapping[str, Link] = field(default_factory=dict)
    gateways: Mapping[Gateway, Route] = field(default_factory=dict)
    problem: str = ""
    known: bool = True
    new_to: frozenset[str] | None = None


NO_UPLINKS = Uplinks()
NOT_READ = Uplinks(problem="the kernel has not been asked yet", known=False)
