"""Whether the values of a configuration fit together: contradictions, and what is worth a warning. Pure.

Each value is acceptable by itself already (`field`). What depends on the node or on its Kubernetes object, a
missing next hop say, is not decided here but by the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bgpd.config.bgp import Advertisement, Bgp, GatewayFamily, Peer, PeersFrom
from bgpd.config.document import Path, spell
from bgpd.config.field import did_you_mean
from bgpd.config.masquerade import Masquerade, SnatAddress
from bgpd.config.schema import Config
from bgpd.model.bfd import Timers, fastest
from bgpd.model.bgp import AdvertisementType, Family
from bgpd.model.masq import Compat
from bgpd.model.prefix import Address, family_of

Problem = tuple[Path, str]
"""A key path, and what is wrong there."""

MISSING = "it is missing and has no default"
_REQUIRED = ("localASN", "peers")
_FROM_CLUSTER = ("localASN", "routerID", "listenPort", "peers", "advertisements")  # with peersFrom: cilium


@dataclass(frozen=True, slots=True)
class Sound:
    """The entries of `bgp` that are valid by themselves, by their position in the file.

    The others are left out, so that one fault does not hide the contradictions between the rest. `peer_names`
    are those of all peers. `listen_port` None: it is not valid itself. `local_asn` 0: it is not. `given` are the keys
    that the section has.
    """

    peers: Mapping[int, Peer]
    peer_names: frozenset[str]
    advertisements: Mapping[int, Advertisement]
    listen_port: int | None
    local_asn: int
    given: frozenset[str] = frozenset()
    peers_from: PeersFrom = PeersFrom.FILE


def contradictions(sound: Sound) -> Iterator[Problem]:
    """Everything that cannot be meant, in no particular order."""
    yield from _said_by_another(sound)
    for index, peer in sound.peers.items():
        for key, problem in within_peer(peer, sound.listen_port):
            yield ("bgp", "peers", index, *key), problem
    yield from _same_twice(sound.peers)
    yield from _bfd_multipliers(sound)
    yield from _unknown_peers(sound)
    yield from _announced_twice(sound)


def warnings(bgp: Bgp) -> Iterator[Problem]:
    """What may be meant, and often is not."""
    if bgp.export.allow is None:
        yield (
            ("bgp", "export", "allow"),
            "not given: whatever the cluster says is a podCIDR is announced, but for a default route; "
            "list the prefixes that pod addresses come from",
        )
    if not bgp.advertisements and bgp.peers_from is PeersFrom.FILE:
        yield ("bgp", "advertisements"), "not given: sessions are kept, and nothing is announced on them"
    yield from _prepended_inside(bgp)
    yield from _bfd_intervals(bgp)


def masquerade_warnings(masquerade: Masquerade) -> Iterator[Problem]:
    """Settings that are not there, or that have no effect beside others."""
    if not masquerade.enabled:
        return
    if masquerade.translates:
        if not masquerade.cluster_cidrs:
            yield (
                ("masquerade", "clusterCIDRs"),
                "not given: pods of other nodes see this node's address, unless the document lists theirs; "
                "give what kube-controller-manager has in --cluster-cidr",
            )
    else:
        for key, given in (
            ("clusterCIDRs", bool(masquerade.cluster_cidrs)),
            ("snatAddress", masquerade.snat_address != SnatAddress()),
        ):
            if given:
                yield ("masquerade", key), "it has no effect: with map: cilium its datapath decides that; remove it"
    if masquerade.nomasq_all_reserved_ranges and masquerade.compat is Compat.CILIUM:
        yield ("masquerade", "nomasqAllReservedRanges"), "it is always so with compat: cilium; remove it"


def cni_warnings(config: Config) -> Iterator[Problem]:
    """Settings of the plugin that have no effect."""
    if config.cni.chaining_mode is not None and not config.policy.enabled:
        yield ("cni", "chainingMode"), "it has no effect while policy.enabled is false; set that, or remove it"


def virtual_server_warnings(config: Config) -> Iterator[Problem]:
    """One half of what it takes to serve virtual servers."""
    announced = config.bgp.announces(AdvertisementType.VIRTUAL_SERVER)
    if config.virtual_servers.enabled and not announced:
        remedy = "add advertisementType: VirtualServer to bgp.advertisements"
        if config.bgp.peers_from is PeersFrom.CILIUM:
            remedy = "Cilium's objects know none of this kind, so it takes bgp.peersFrom: file"
        text = f"their addresses are announced to nobody; {remedy}"
        yield ("virtualServers", "enabled"), text
    if announced and not config.virtual_servers.enabled:
        text = "advertisementType VirtualServer announces nothing while virtualServers.enabled is false"
        yield ("bgp", "advertisements"), text


def _said_by_another(sound: Sound) -> Iterator[Problem]:
    """One of the two says it, never both: nobody could tell which counts."""
    if sound.peers_from is PeersFrom.FILE:
        yield from ((("bgp", key), MISSING) for key in _REQUIRED if key not in sound.given)
        if "authSecrets" in sound.given:
            yield ("bgp", "authSecrets"), "it is for peersFrom: cilium; a peer of this file has authPasswordFile"
        return
    for key in _FROM_CLUSTER:
        if key in sound.given:
            yield ("bgp", key), "peersFrom: cilium takes it from the cluster's objects; remove one of the two"


def within_peer(peer: Peer, listen_port: int | None) -> Iterator[Problem]:
    """What does not go together in one peer, by the path from there."""
    hold, keepalive = peer.timers.hold_time_seconds, peer.timers.keep_alive_time_seconds
    if peer.ttl_security and peer.ebgp_multihop is not None:
        yield (
            ("ttlSecurity",),
            "it wants a peer without routers in between, ebgpMultihop the opposite; remove one",
        )
    if keepalive is not None and keepalive != hold // 3:
        yield (
            ("timers", "keepAliveTimeSeconds"),
            f"found {keepalive}; ExaBGP always sends keepalives at a third of the hold time: "
            f"give {hold // 3} to go with holdTimeSeconds {hold}, or leave the key out",
        )
    if peer.local_address is not None:
        yield from _local_address(peer.local_address, peer.peer_address)
    yield from _beyond_the_link(peer)
    if peer.extended_next_hop and set(peer.families) != set(Family):
        yield (
            ("extendedNextHop",),
            "ExaBGP offers it where both families are on the session: give families: [ipv4-unicast, ipv6-unicast]",
        )
    if peer.ttl_security and peer.bfd is not None and peer.bfd.multihop:
        yield ("bfd", "multihop"), "ttlSecurity wants a peer without routers in between; remove one"
    if peer.passive and listen_port == 0:
        yield ("passive",), "it waits for the peer to dial, but bgp.listenPort is 0; give a port or dial"


def _local_address(ours: Address, theirs: Address | None) -> Iterator[Problem]:
    if theirs is None:
        yield ("localAddress",), "a peer that is found has a link with addresses of its own; remove it"
    elif ours.version != theirs.version:
        yield (
            ("localAddress",),
            f"it is {family_of(ours)} and peerAddress is {family_of(theirs)}; one session needs both of one family",
        )


def _beyond_the_link(peer: Peer) -> Iterator[Problem]:
    """What is meant for a peer behind routers, of one that is on our own link."""
    if peer.peer_address is not None:
        return
    if peer.ebgp_multihop is not None:
        yield ("ebgpMultihop",), "a peer that is found is on our own link; remove it"
    if peer.bfd is not None and peer.bfd.multihop:
        yield ("bfd", "multihop"), "a peer that is found is on our own link; remove it"


def _same_twice(peers: Mapping[int, Peer]) -> Iterator[Problem]:
    names: dict[str, int] = {}
    held: dict[object, int] = {}
    for index, peer in peers.items():
        first = names.setdefault(peer.name, index)
        if first != index:
            yield ("bgp", "peers", index, "name"), f"{_peer(first)} has the name '{peer.name}' already"
        for key, place in places(peer):
            first = held.setdefault(place, index)
            if first != index:  # ports do not tell sessions apart: ExaBGP and we know a peer by its address
                where = "finds those gateways" if key == "autoDiscovery" else f"is at {place}"
                yield ("bgp", "peers", index, key), f"{_peer(first)} {where} already"


def places(peer: Peer) -> Iterator[tuple[str, object]]:
    """What no two peers may have in common, by its key."""
    if peer.peer_address is not None:
        yield "peerAddress", peer.peer_address
    if peer.interface is not None:
        yield "interface", peer.interface
    if peer.auto_discovery is not None:
        family = peer.auto_discovery.default_gateway.address_family
        yield from (("autoDiscovery", it) for it in GatewayFamily if family in (None, it))


def _bfd_multipliers(sound: Sound) -> Iterator[Problem]:
    """BIRD has one for all single-hop sessions and one for all multihop sessions, and no peer can change it."""
    firsts: dict[bool, int] = {}
    for index, peer in sound.peers.items():
        if peer.bfd is None:
            continue
        multihop = peer.bfd_is_multihop(sound.local_asn)
        first = firsts.setdefault(multihop, index)
        other = sound.peers[first].bfd
        if other is not None and other.detect_multiplier != peer.bfd.detect_multiplier:
            yield (
                ("bgp", "peers", index, "bfd", "detectMultiplier"),
                f"{_peer(first)} has {other.detect_multiplier}; BIRD has one for all {_kind(multihop)} sessions: "
                "give both the same",
            )


def _bfd_intervals(bgp: Bgp) -> Iterator[Problem]:
    """BIRD has one set of timers for each kind too; it gets the shortest, and the slower of both ends counts."""
    kinds: dict[bool, list[tuple[int, Timers]]] = {}
    for index, peer in enumerate(bgp.peers):
        if peer.bfd is not None:
            kinds.setdefault(peer.bfd_is_multihop(bgp.local_asn), []).append((index, peer.bfd.timers))
    for multihop, each in kinds.items():
        shared = fastest(timers for _, timers in each)
        for index, timers in each:
            if timers != shared:
                yield (
                    ("bgp", "peers", index, "bfd"),
                    f"{timers.transmit_ms} and {timers.receive_ms} ms hold if '{bgp.peers[index].name}' has them "
                    f"too: for all {_kind(multihop)} sessions BIRD has the shortest intervals of any, "
                    f"{shared.transmit_ms} and {shared.receive_ms} ms, and the slower of both ends counts",
                )


def _kind(multihop: bool) -> str:
    return "multihop" if multihop else "single-hop"


def _unknown_peers(sound: Sound) -> Iterator[Problem]:
    for index, advertisement in sound.advertisements.items():
        for position, name in enumerate(advertisement.peers or ()):
            if name not in sound.peer_names:
                hint = did_you_mean(name, sound.peer_names)
                yield (
                    ("bgp", "advertisements", index, "peers", position),
                    f"no peer has the name '{name}'{hint}",
                )


def _announced_twice(sound: Sound) -> Iterator[Problem]:
    """Two entries for one peer and family would leave open whose attributes count. Of Services the first that means
    one does.
    """
    seen: dict[tuple[AdvertisementType, Family, str], int] = {}
    for index, advertisement in sound.advertisements.items():
        kind = advertisement.advertisement_type
        if kind is AdvertisementType.SERVICE:
            continue
        names = sorted(sound.peer_names) if advertisement.peers is None else advertisement.peers
        families = advertisement.families or tuple(Family)
        both = [(name, seen.setdefault((kind, family, name), index)) for name in names for family in families]
        twice = [(name, first) for name, first in both if first != index]
        if twice:
            name, first = twice[0]
            other = spell(("bgp", "advertisements", first))
            yield (
                ("bgp", "advertisements", index),
                f"{other} announces {kind.value} to '{name}' already; one set of attributes must do",
            )


def _prepended_inside(bgp: Bgp) -> Iterator[Problem]:
    """RFC 4271 section 9.1.2: BIRD, FRR and GoBGP drop such a route unless told otherwise, and nobody sees why."""
    inside = {peer.name for peer in bgp.peers if peer.peer_asn == (peer.local_asn or bgp.local_asn)}
    for index, advertisement in enumerate(bgp.advertisements):
        meant = inside if advertisement.peers is None else inside & set(advertisement.peers)
        if advertisement.attributes.as_path_prepend and meant:
            yield (
                ("bgp", "advertisements", index, "attributes", "asPathPrepend"),
                f"'{min(meant)}' is an internal peer: it takes its own ASN in the path for a loop and drops the "
                "route unless told otherwise there (allowas-in); localPreference is the way to say it inside",
            )


def _peer(index: int) -> str:
    return spell(("bgp", "peers", index))
