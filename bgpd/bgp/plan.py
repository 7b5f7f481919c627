"""Decides which sessions this node keeps and what it announces on each of them. Pure.

Input: the configuration, the node as Kubernetes describes it, candidates besides its pod CIDRs, where peers are
that are not given by address (`places`), where a drain stands. Output: the neighbors to configure and the routes to
announce, each with the reason when something asked for is refused. It knows nothing of ExaBGP and nothing of the
present state of a session.

Advertised are the node's own pod CIDRs, all of them, v4 and v6 (`Node.spec.podCIDRs`), and the candidates that an
advertisement means. Whether a candidate is fit to be announced has been decided before. The *export brake* has the
last word: a default route, a prefix outside `export.allow`, one that would cover a peer's own address, and
everything above `export.maxPrefixes` is refused by name and never announced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address
from types import MappingProxyType

from bgpd.bgp.codec import WELL_KNOWN_COMMUNITIES, community_order
from bgpd.bgp.offers import Offer, Offers, Order, brake
from bgpd.bgp.places import Place, places
from bgpd.config.bgp import Attributes, Bgp, Peer
from bgpd.model.bfd import Wanted
from bgpd.model.bgp import AdvertisementType, Family, LocalEnd, Neighbor, Path, RouteKey, Secret
from bgpd.model.candidate import Candidate
from bgpd.model.node import Node
from bgpd.model.prefix import Address, Prefix
from bgpd.model.uplink import NO_UPLINKS, Uplinks

NOTHING_LOADED: Mapping[str, LocalEnd] = MappingProxyType({})
UNKNOWN_NODE = "Kubernetes has not shown this node yet"
GRACEFUL_SHUTDOWN = WELL_KNOWN_COMMUNITIES["graceful-shutdown"]  # RFC 8326 section 4


class Drain(StrEnum):
    """Where a drain stands: announcing as usual, announcing as going away, announcing nothing."""

    NO = "no"
    SHUTDOWN = "shutdown"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class BgpPlan:
    """`refused`, `withheld`, `unsuited`, `idle_peers` and `unplaced` hold, by object, the reason an operator reads.

    Idle are the peers that this node has no session with. Unplaced are those that it should have one with, and nobody
    knows yet where they are. `places` are all of them, in the order of the configuration.
    Refused is what somebody asked for and does not get. Withheld is what is not fit to be announced now, as when a
    service has no endpoint here: nothing is wrong. Unsuited is what a peer was never meant to get: it takes no
    routes of that family. `remarks` are on routes that are announced all the same.
    """

    places: Sequence[Place]
    neighbors: Mapping[str, Neighbor]
    idle_peers: Mapping[str, str]
    unplaced: Mapping[str, str]
    routes: Mapping[RouteKey, Path]
    refused: Mapping[RouteKey, str]
    withheld: Mapping[RouteKey, str]
    unsuited: Mapping[RouteKey, str]
    remarks: Mapping[RouteKey, str]


def plan(
    bgp: Bgp,
    passwords: Mapping[str, Secret],
    node: Node | None,
    drain: Drain,
    unhealthy: str = "",
    loaded: Mapping[str, LocalEnd] = NOTHING_LOADED,
    candidates: Sequence[Candidate] = (),
    uplinks: Uplinks = NO_UPLINKS,
    offers: Offers | None = None,
) -> BgpPlan:
    """The whole wanted state of BGP. `node` None: Kubernetes has not shown such a node.

    `unhealthy` is why nothing of this node is worth announcing; empty when it is. `loaded` is our end of each
    session that the speaker has: while the node is not known, or shows no address of the family, these stay as
    they are, because they carry what is announced, and the withdrawals if the node does not come back. `offers`
    remembers from plan to plan what would be the same, and changes nothing about it.
    """
    found = _Sessions(places(bgp.peers, uplinks, loaded))
    for place in found.places:
        found.add(place, _neighbor(bgp, place, passwords.get(place.peer.name), node, loaded.get(place.name)))
    silent = "the node is drained; `bgpd undrain` announces again" if drain is Drain.WITHDRAWN else unhealthy
    peers = tuple(sorted((place.name, place.address) for place in found.places if place.address is not None))
    memory = Offers() if offers is None else offers
    meant = memory.meant(bgp, peers, (*_pod_cidrs(node), *candidates))
    braked = brake(bgp, (offer for _, chosen in meant for offer in chosen))
    routes = _Routes(braked, silent, node, drain, memory.path)
    for place in found.places:
        if place.name in found.neighbors:
            for entry, chosen in meant:
                if entry.peers is None or place.peer.name in entry.peers:
                    routes.add(place.peer, found.neighbors[place.name], entry.attributes, chosen)
    return routes.plan(found)


# --- sessions ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sessions:
    """Sorts the peers into those that have a session and, by reason, those that have not."""

    places: Sequence[Place]
    neighbors: dict[str, Neighbor] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)
    unplaced: dict[str, str] = field(default_factory=dict)

    def add(self, place: Place, resolved: Neighbor | str | None) -> None:
        if isinstance(resolved, Neighbor):
            self.neighbors[place.name] = resolved
        elif resolved is None:
            self.unplaced[place.name] = place.why
        else:
            self.idle[place.name] = resolved


def _neighbor(
    bgp: Bgp, place: Place, password: Secret | None, node: Node | None, kept: LocalEnd | None
) -> Neighbor | str | None:
    """The session with every default resolved, or why it cannot be configured on this node. None: it has no place."""
    peer = place.peer
    if peer.node_selector is not None:
        if node is None and kept is None:
            return f"waits for the node's labels: nodeSelector is set and {UNKNOWN_NODE}"
        if node is not None and not peer.node_selector.matches(node.labels):
            return "nodeSelector does not match this node's labels"
    if place.address is None:
        return None
    version = place.address.version
    if kept is not None and kept.address.version != version:
        kept = None  # the peer has moved to the other family since
    shown = UNKNOWN_NODE if node is None else "the node shows no IPv{} InternalIP"
    stays = kept.address if kept is not None and kept.address in place.ours else None  # whatever came beside it
    local_address = peer.local_address or stays or place.local
    if local_address is None and not place.interface:
        local_address = _node_address(node, version) or (kept.address if kept else None)
    if local_address is None:
        on_link = f"{place.interface} has no link-local address"
        return f"no local address: {on_link if place.interface else shown.format(version) + '; set localAddress'}"
    router_id = bgp.router_id or _node_address(node, 4) or (kept.router_id if kept else None)
    if router_id is None and isinstance(local_address, IPv4Address):
        router_id = local_address
    if router_id is None:
        return f"no router id: {shown.format(4)}; set bgp.routerID"
    restart = peer.graceful_restart
    return Neighbor(
        name=place.name,
        peer_address=place.address,
        interface=place.interface,
        peer_asn=peer.peer_asn,
        local_asn=peer.local_asn or bgp.local_asn,
        local_address=local_address,
        router_id=router_id,
        peer_port=peer.peer_port,
        listen_port=bgp.listen_port or None,
        passive=peer.passive,
        families=tuple(sorted(peer.families or (Family.of(place.address),))),
        hold_time_s=peer.timers.hold_time_seconds,
        restart_time_s=restart.restart_time_seconds if restart.enabled else None,
        ttl_security=peer.ttl_security,
        multihop=peer.ebgp_multihop,
        password=password,
        extended_next_hop=peer.extended_next_hop,
        bfd=_bfd(bgp, peer, place.address, local_address, place.interface),
    )


def _bfd(bgp: Bgp, peer: Peer, address: Address, local_address: Address, interface: str) -> Wanted | None:
    if peer.bfd is None:
        return None
    return Wanted(address, local_address, peer.bfd_is_multihop(bgp.local_asn), peer.bfd.timers, interface)


def _node_address(node: Node | None, version: int) -> Address | None:
    addresses = node.internal_ips if node else ()
    return next((address for address in addresses if address.version == version), None)


# --- routes -----------------------------------------------------------------------------------------------


def _pod_cidrs(node: Node | None) -> list[Candidate]:
    prefixes = set(node.pod_cidrs) if node else set()
    return [Candidate(AdvertisementType.POD_CIDR, prefix, "the node") for prefix in prefixes]


@dataclass(slots=True)
class _Routes:
    """Sorts what is to be announced into what is and, by reason, what is not. `silent`: why nothing is; empty.

    `kept` gives an equal path as the object of the last plan.
    """

    braked: Mapping[Order, str]
    silent: str
    node: Node | None
    drain: Drain
    kept: Callable[[Path], Path]
    routes: dict[RouteKey, Path] = field(default_factory=dict)
    refused: dict[RouteKey, str] = field(default_factory=dict)
    withheld: dict[RouteKey, str] = field(default_factory=dict)
    unsuited: dict[RouteKey, str] = field(default_factory=dict)
    remarks: dict[RouteKey, str] = field(default_factory=dict)

    def add(self, peer: Peer, neighbor: Neighbor, attributes: Attributes, offers: Iterable[Offer]) -> None:
        """What an advertisement means for a peer. Several may have one prefix: the first that may be announced is."""
        paths: dict[tuple[object, ...], Path | str] = {}  # most offers differ in nothing but their prefix
        name, families, routes = neighbor.name, neighbor.families, self.routes
        for each in offers:
            offer, key = each.candidate, each.key(name)
            if each.family not in families:
                self.unsuited[key] = f"{name} has no {each.family.value} in families"
            elif key in routes:
                continue
            elif offer.withheld:
                self.withheld.setdefault(key, offer.withheld)
            else:
                like = each.family, offer.med, offer.communities
                path = paths.get(like)
                if path is None:
                    found = _path(peer, neighbor, offer, attributes, self.node, self.drain)
                    path = paths[like] = self.kept(found) if isinstance(found, Path) else found
                verdict = self.braked.get(each.order) or self.silent or path
                if isinstance(verdict, Path):
                    routes[key] = verdict
                    if offer.remark:
                        self.remarks[key] = offer.remark
                else:
                    self.refused.setdefault(key, verdict)

    def plan(self, sessions: _Sessions) -> BgpPlan:
        refused = {key: why for key, why in self.refused.items() if key not in self.routes}
        settled = self.routes.keys() | refused.keys()
        withheld = {key: why for key, why in self.withheld.items() if key not in settled}
        return BgpPlan(
            sessions.places,
            sessions.neighbors,
            sessions.idle,
            sessions.unplaced,
            self.routes,
            refused,
            withheld,
            self.unsuited,
            self.remarks,
        )


def _path(
    peer: Peer, neighbor: Neighbor, offer: Candidate, attributes: Attributes, node: Node | None, drain: Drain
) -> Path | str:
    """What to announce about one prefix, or why not."""
    next_hop = _next_hop(peer, neighbor, offer.prefix, node)
    if next_hop is None:
        version = 6 if neighbor.extended_next_hop else offer.prefix.version
        return f"no IPv{version} next hop: set nextHop.ipv{version} or give the node an IPv{version} InternalIP"
    return _with_attributes(next_hop, neighbor, attributes, offer, drain)


def _next_hop(peer: Peer, neighbor: Neighbor, prefix: Prefix, node: Node | None) -> Address | None:
    """Configured, else the session's own address, else the node's address of that family.

    With extendedNextHop IPv4 prefixes have the next hop of IPv6 ones, unless an IPv4 one is configured.
    """
    version = prefix.version
    if version == 4 and peer.next_hop.ipv4 is None and neighbor.extended_next_hop:
        version = 6
    configured = peer.next_hop.ipv4 if version == 4 else peer.next_hop.ipv6
    if configured is not None:
        return configured
    if neighbor.local_address.version == version:
        return neighbor.local_address
    return _node_address(node, version)


def _with_attributes(
    next_hop: Address, neighbor: Neighbor, attributes: Attributes, offer: Candidate, drain: Drain
) -> Path:
    given = (*attributes.communities, *offer.communities)
    communities = {WELL_KNOWN_COMMUNITIES.get(text, text) for text in given}
    local_preference = attributes.local_preference
    if drain is Drain.SHUTDOWN:
        communities.add(GRACEFUL_SHUTDOWN)
        local_preference = 0  # RFC 8326 section 4.2, for a ToR that has no policy for the community
    as_path = None
    if attributes.as_path_prepend:
        # ExaBGP sends a given path verbatim, so on eBGP our own hop is one more
        as_path = (neighbor.local_asn,) * (attributes.as_path_prepend + (0 if neighbor.internal else 1))
    if not neighbor.internal:
        local_preference = None  # RFC 4271 section 5.1.5: not sent to external peers
    return Path(
        next_hop=next_hop,
        as_path=as_path,
        local_preference=local_preference,
        med=attributes.med if offer.med is None else offer.med,
        communities=tuple(sorted(communities, key=community_order)),
        large_communities=tuple(sorted(set(attributes.large_communities), key=community_order)),
    )
