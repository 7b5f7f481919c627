"""Says where each peer is: at a configured address, behind an interface, at the gateway of a default route. Pure.

    peerAddress     known for certain
    interface       the one router that is heard on that link, at its link-local address (unnumbered)
    autoDiscovery   a peer for each gateway of a default route, v4 and v6, of all default routes in the main table

A gateway's peer is called after its entry and its address ("auto-192.0.2.1", "auto-fe80::1%eth1"), so that it has
the same name again after it was away. A gateway that is a peer by itself already is not one twice.

What was there and is not any more stays for a while (`after`): a default route that is replaced is away for a moment
without any traffic being lost, and its session must not be either. A daemon that has just started has not seen what
was there; it takes it from the sessions that the speaker has.

ExaBGP and we know a peer by its address alone. Two links may well have the same one at their far ends; the second
has to wait, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from bgpd.config.bgp import Peer
from bgpd.model.bgp import LocalEnd
from bgpd.model.prefix import Address, family_of
from bgpd.model.uplink import Gateway, Link, Route, Uplinks

_DOWN = "{} is down, or has no carrier"
NOTHING_LOADED: Mapping[str, LocalEnd] = MappingProxyType({})
HOLD_S = 300.0
"""How long a gateway without a default route stays a peer: DHCP and network managers take a minute at worst to put a
route back, and a session that should have ended does no harm meanwhile."""


@dataclass(frozen=True, slots=True)
class Place:
    """One session that is wanted. `address` None: nobody knows yet where, and `why` says what is missing.

    `interface` is that of a link-local `address`. `local`: our address on its link; None: not known, or not asked.
    `ours`: all that would do in its place, so that a session that has one of them keeps it.
    `remark` is what an operator should know although there is a session.
    """

    name: str
    peer: Peer
    address: Address | None
    interface: str = ""
    local: Address | None = None
    why: str = ""
    remark: str = ""
    ours: frozenset[Address] = frozenset()

    @property
    def shown(self) -> str | None:
        """The address as an operator writes it (RFC 4007 section 11)."""
        if self.address is None:
            return None
        return f"{self.address}%{self.interface}" if self.interface else str(self.address)


def interfaces(peers: Sequence[Peer]) -> frozenset[str]:
    """Those that peers are expected on."""
    return frozenset(peer.interface for peer in peers if peer.interface is not None)


def places(
    peers: Sequence[Peer], uplinks: Uplinks, loaded: Mapping[str, LocalEnd] = NOTHING_LOADED
) -> tuple[Place, ...]:
    """In the order of the configuration, gateways in that of their addresses.

    `loaded`: our ends of the speaker's sessions. A daemon that has just started knows by that who of several routers
    was there first, and which gateways were peers that no default route goes by.
    """
    found: list[Place] = []
    given = {peer.peer_address for peer in peers if peer.peer_address is not None}
    behind = interfaces(peers)
    for peer in peers:
        if peer.peer_address is not None:
            found.append(Place(peer.name, peer, peer.peer_address))
        elif peer.interface is not None:
            found.append(_behind(peer, peer.interface, uplinks, loaded.get(peer.name)))
        else:
            gateways = _gateways(peer, uplinks, loaded)
            theirs = [it for it in gateways if it.address not in given and it.interface not in behind]
            found += theirs or [Place(peer.name, peer, None, why=_no_gateway(peer, uplinks))]
    return tuple(_told_apart(found))


def after(before: Uplinks, seen: Uplinks, now: float) -> Uplinks:
    """`seen`, and what of `before` stays. `now` is monotonic seconds."""
    links = {name: _settled(before.links.get(name), link) for name, link in seen.links.items()}
    gateways = dict(seen.gateways)
    for gateway, route in before.gateways.items():
        if gateway.interface and gateway.interface not in seen.links:
            continue  # there is no way to it any more, and never will be
        gone_at = now if route.gone_at is None else route.gone_at
        if gateway not in gateways and now - gone_at < HOLD_S:
            gateways[gateway] = replace(route, gone_at=gone_at)
    return replace(seen, links=links, gateways=gateways)


def _settled(before: Link | None, link: Link) -> Link:
    """Who the session is with stays, unless somebody else alone is there."""
    known = before.peer if before is not None else None
    if before is not None and link.local is None:  # an interface that is down has none, and as a rule gets it back
        link = replace(link, local=before.local, ours=before.ours)
    elif before is not None and before.local in link.ours:
        link = replace(link, local=before.local)
    if known in link.routers or not link.routers:
        return replace(link, peer=known)
    return replace(link, peer=next(iter(link.routers)) if len(link.routers) == 1 else known)


def _behind(peer: Peer, interface: str, uplinks: Uplinks, loaded: LocalEnd | None) -> Place:
    link = uplinks.links.get(interface)
    if link is not None and link.peer is None and loaded is not None:
        link = replace(link, peer=next((router for router in link.routers if router == loaded.peer), None))
    place = Place(peer.name, peer, None, interface)
    if link is None:
        return replace(place, why=f"there is no interface {interface}" if uplinks.known else uplinks.problem)
    if link.local is None:
        no_address = f"{interface} has no link-local IPv6 address (is IPv6 off there?)"
        return replace(place, why=no_address if link.is_up else _DOWN.format(interface))
    if link.peer is None:
        return replace(place, why=uplinks.problem or _nobody(interface, link))
    return replace(place, address=link.peer, local=link.local, remark=_remark(interface, link), ours=link.ours)


def _remark(interface: str, link: Link) -> str:
    others = ", ".join(map(str, sorted(link.routers - {link.peer})))
    if link.is_up and others:
        return f"{interface} has other routers too ({others}), and one peer alone must be there"
    return "" if link.is_up else _DOWN.format(interface)


def _nobody(interface: str, link: Link) -> str:
    if not link.is_up:
        return _DOWN.format(interface)
    if link.routers:
        several = ", ".join(map(str, sorted(link.routers)))
        alone = "and one peer alone must be there; else number the link and give peerAddress"
        return f"{interface} has several routers ({several}), {alone}"
    return f"nobody on {interface} says that it is a router: does the peer send router advertisements there?"


def _gateways(peer: Peer, uplinks: Uplinks, loaded: Mapping[str, LocalEnd]) -> Iterator[Place]:
    assert peer.auto_discovery is not None
    family = peer.auto_discovery.default_gateway.address_family
    gateways = {**dict(_lost_before(peer, uplinks, loaded)), **uplinks.gateways}
    for gateway, route in sorted(gateways.items(), key=_order):
        if family is not None and family != family_of(gateway.address):
            continue
        remark = "" if route.gone_at is None else "no default route goes by it any more: it is kept for now"
        place = Place(peer.name, peer, gateway.address, gateway.interface, route.local, remark=remark)
        yield replace(place, name=f"{peer.name}-{place.shown}", ours=route.ours)


def _lost_before(peer: Peer, uplinks: Uplinks, loaded: Mapping[str, LocalEnd]) -> Iterator[tuple[Gateway, Route]]:
    """The gateways that the speaker has sessions with and that may have lost their routes before we looked."""
    for name, end in loaded.items():
        shown, _, interface = name.removeprefix(f"{peer.name}-").partition("%")
        is_ours = name.startswith(f"{peer.name}-") and shown == str(end.peer)
        if is_ours and uplinks.new_to is not None and (not interface or interface in uplinks.new_to):
            yield Gateway(end.peer, interface), Route(end.address, -math.inf, frozenset({end.address}))


def _order(entry: tuple[Gateway, Route]) -> tuple[int, int, str]:
    gateway = entry[0]
    return gateway.address.version, int(gateway.address), gateway.interface


def _no_gateway(peer: Peer, uplinks: Uplinks) -> str:
    assert peer.auto_discovery is not None
    family = peer.auto_discovery.default_gateway.address_family
    which = f"{family.words} " if family is not None else ""
    wanted = f"this node has no {which}default route with a gateway that is not a peer already; see `ip route`"
    return uplinks.problem or wanted


def _told_apart(found: Sequence[Place]) -> Iterator[Place]:
    firsts: dict[Address, Place] = {}
    for place in found:
        first = firsts.setdefault(place.address, place) if place.address is not None else place
        if first is place:
            yield place
        else:
            taken = f"{first.name} on {first.interface} has the address {place.address} too"
            why = f"{taken}, and sessions are told apart by their addresses: give one of the switches another"
            yield replace(place, address=None, why=why)


def by_address(found: Sequence[Place]) -> Mapping[Address, str]:
    """Names of peers by where they are."""
    return {place.address: place.name for place in found if place.address is not None}
