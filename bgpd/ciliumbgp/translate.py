"""From Cilium's BGP objects to the `bgp` section that means the same on this node. Pure.

A peer of a CiliumBGPClusterConfig becomes an entry of `bgp.peers`, what its CiliumBGPPeerConfig selects becomes
entries of `bgp.advertisements`: raw, as a file would have them, so that one set of rules judges both. Whatever cannot
be had here is refused by name, and all the rest goes on.

One ClusterConfig counts on a node: of several that select it the oldest, then the first by name, as long as nothing
changes. (Cilium: the one that was first.) All its instances share one speaker, whose port and router ID they must
agree on. Several advertisements of pod CIDRs for one peer and family add their communities, and the highest local
preference counts, as in Cilium.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from bgpd.ciliumbgp.advertised import advertised, supported
from bgpd.ciliumbgp.objects import CLUSTER_CONFIG, PEER_CONFIG, Objects, Refused
from bgpd.config import check
from bgpd.config.bgp import Advertisement, Bgp, Peer
from bgpd.config.ciliumbgp import (
    ClusterConfigSpec,
    ClusterPeer,
    Instance,
    InstanceOverride,
    PeerConfigSpec,
    PeerOverride,
)
from bgpd.config.parse import problems_of
from bgpd.model.bgp import Family
from bgpd.model.custom import Custom
from bgpd.model.fault import FieldPath

_LONGEST_NAME = 63  # RFC 1123 label, as `bgp.peers` has names


@dataclass(frozen=True, slots=True)
class Translation:
    """`bgp` has the sessions and advertisements of the objects, and of the file all else.

    `chosen` is the ClusterConfig that counts on this node, empty when none selects it; `others` select it too.
    `secrets` names the Secret of each peer that has one. `failed` are peers that are asked for and refused.
    """

    bgp: Bgp
    chosen: str
    others: tuple[str, ...]
    secrets: Mapping[str, str] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    refused: tuple[Refused, ...] = ()


def translate(base: Bgp, objects: Objects, node: str, labels: Mapping[str, str]) -> Translation:
    """What `objects` mean on the node of this name with these labels. `base` is the section as the file has it."""
    selecting = _selecting(objects, labels)
    if not selecting:
        return Translation(base, "", ())
    chosen, *others = selecting
    found = _Found(objects, chosen)
    override = objects.overrides.get(node)
    overrides = {each.name: each for each in override.spec.bgp_instances} if override and override.spec else {}
    assert chosen.spec is not None
    for index, instance in enumerate(chosen.spec.bgp_instances):
        found.add(("bgpInstances", index), instance, overrides.get(instance.name))
    raw = {"localASN": found.local_asn, "routerID": found.router_id}
    section = Bgp.model_validate({key: value for key, value in raw.items() if value is not None})
    told = {
        "local_asn": section.local_asn,
        "router_id": section.router_id,
        "listen_port": found.listen_port or 0,
        "peers": tuple(found.peers.values()),
        "advertisements": tuple(found.advertisements),
    }
    bgp = base.model_copy(update=told)
    names = tuple(other.name for other in others)
    refused = tuple(dict.fromkeys(found.refused))
    failed = frozenset(found.failed - found.peers.keys())
    return Translation(bgp, chosen.name, names, found.secrets, failed, refused)


def refusals(objects: Objects) -> Iterator[Refused]:
    """What no node has, whatever its labels and its override: each once."""
    told: dict[Refused, None] = {}
    for config in objects.cluster_configs.values():
        found = _Found(objects, config)
        for index, instance in enumerate(config.spec.bgp_instances if config.spec else ()):
            found.add(("bgpInstances", index), instance, None)
        told |= dict.fromkeys(each for each in found.refused if not each.is_local)
    yield from told


def selects(config: Custom[ClusterConfigSpec], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is among those that it is for."""
    spec = config.spec
    return spec is not None and (spec.node_selector is None or spec.node_selector.matches(labels))


def _selecting(objects: Objects, labels: Mapping[str, str]) -> list[Custom[ClusterConfigSpec]]:
    configs = (config for config in objects.cluster_configs.values() if selects(config, labels))
    return sorted(configs, key=lambda config: (config.created, config.name))


@dataclass(slots=True)
class _Found:
    """What comes of one ClusterConfig, instance by instance."""

    objects: Objects
    config: Custom[ClusterConfigSpec]
    local_asn: int | None = None
    router_id: str | None = None
    listen_port: int | None = None
    peers: dict[str, Peer] = field(default_factory=dict)
    advertisements: list[Advertisement] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    refused: list[Refused] = field(default_factory=list)
    named: set[str] = field(default_factory=set)

    def add(self, path: FieldPath, instance: Instance, override: InstanceOverride | None) -> None:
        asn = (override and override.local_asn) or instance.local_asn
        port = (override and override.local_port) or instance.local_port
        router_id = override.router_id if override else None
        names = [self._free_name(instance, peer) for peer in instance.peers]
        why = ""
        if asn is None:
            why = "it has no localASN, and neither has an override for this node; give one"
        elif self.local_asn is not None and (port, router_id) != (self.listen_port, self.router_id):
            why = "its localPort or routerID differs from the first instance's; one speaker has one of each"
        if asn is None or why:
            self.refused.append(Refused(CLUSTER_CONFIG, self.config.name, path, why, is_local=True))
            self.failed |= set(names)
            return
        if self.local_asn is None:
            self.local_asn, self.listen_port, self.router_id = asn, port, router_id
        told = {each.name: each for each in override.peers} if override else {}
        for index, (name, peer) in enumerate(zip(names, instance.peers, strict=True)):
            place = (*path, "peers", index)
            refused = self._add_peer(name, place, asn, peer, told.get(peer.name))
            for inner, reason in refused:
                self._refuse((*place, *inner), reason)
            self.failed |= {name} if refused else set()

    def _add_peer(
        self, name: str, path: FieldPath, asn: int, peer: ClusterPeer, override: PeerOverride | None
    ) -> list[check.Problem]:
        """Returns why it is not to be had; empty when it is."""
        reference = peer.peer_config_ref
        named = self.objects.peer_configs.get(reference.name) if reference else None
        if reference is not None and (named is None or named.spec is None):
            trouble = "there is no usable" if named else "there is no"
            return [(("peerConfigRef",), f"{trouble} {PEER_CONFIG} {reference.name}; create it, or put it right")]
        spec = named.spec if named is not None and named.spec is not None else PeerConfigSpec()
        families = [family.value for each in spec.families if (family := supported(each)) is not None]
        problem = (
            _unsupported(peer) if families else f"no family of {PEER_CONFIG} {named and named.name} is supported"
        )
        if problem:
            return [((), problem)]
        try:
            made = Peer.model_validate(_raw_peer(name, asn, peer, spec, override, families))
        except ValidationError as error:
            return problems_of(error, Peer)
        if in_the_way := list(self._in_the_way(made)):
            return [((), why) for why in in_the_way]
        self.peers[name] = made
        if spec.auth_secret_ref is not None:
            self.secrets[name] = spec.auth_secret_ref
        if named is not None:
            entries, refused = advertised(name, named, self.objects.advertisements)
            self.advertisements += entries
            self.refused += refused
        return []

    def _free_name(self, instance: Instance, peer: ClusterPeer) -> str:
        """The peer's own where it can be; one that an instance before this one has gets the instance's in front.

        Has, or would have: what becomes of a peer renames no other.
        """
        name = _as_label(peer.name)
        name = name if name not in self.named else _as_label(f"{instance.name}-{peer.name}")
        self.named.add(name)
        return name

    def _in_the_way(self, peer: Peer) -> Iterator[str]:
        if peer.name in self.peers:
            yield f"another peer is called {peer.name} here already; rename one of the two"
        wanted = set(check.places(peer))
        for other in self.peers.values():
            for key, place in wanted & set(check.places(other)):
                yield f"peer {other.name} has this {key} already, {place}; a speaker knows a peer by where it is"
        yield from (why for _, why in check.within_peer(peer, self.listen_port))

    def _refuse(self, path: FieldPath, why: str) -> None:
        self.refused.append(Refused(CLUSTER_CONFIG, self.config.name, path, why))


def _unsupported(peer: ClusterPeer) -> str:
    """What of a peer as Cilium has it cannot be had here; empty when all of it can."""
    if peer.peer_asn == 0:
        return "peerASN 0, whatever the peer says, is not supported; give the peer's ASN"
    return ""


def _raw_peer(
    name: str,
    asn: int,
    peer: ClusterPeer,
    spec: PeerConfigSpec,
    override: PeerOverride | None,
    families: list[str],
) -> dict[str, Any]:
    """An entry of `bgp.peers`. How often it dials and sends keepalives ExaBGP decides itself."""
    restart = spec.graceful_restart
    raw: dict[str, Any] = {
        "name": name,
        **_place(peer),
        "families": families,
        "peerASN": peer.peer_asn,
        "peerPort": spec.transport.peer_port,
        "localASN": asn,
        "timers": {"holdTimeSeconds": spec.timers.hold_time_seconds},
        "gracefulRestart": {"enabled": restart.enabled, "restartTimeSeconds": restart.restart_time_seconds},
    }
    if "interface" in raw and len(families) < len(Family):
        raw["extendedNextHop"] = False  # RFC 8950 is about one family by the other
    if spec.ebgp_multihop > 1 and peer.peer_asn != asn:
        raw["ebgpMultihop"] = spec.ebgp_multihop
    if override is not None and override.local_address is not None:
        raw["localAddress"] = override.local_address.strip()
    return raw


def _place(peer: ClusterPeer) -> dict[str, Any]:
    """Where it is, in our words. A peerAddress counts before autoDiscovery, as in Cilium."""
    discovery = peer.auto_discovery
    if peer.peer_address is not None:
        return {"peerAddress": peer.peer_address.strip()}
    if discovery is None:
        return {}
    if discovery.unnumbered is not None:
        return {"interface": discovery.unnumbered.interface}
    family = {"addressFamily": discovery.default_gateway.address_family} if discovery.default_gateway else {}
    return {"autoDiscovery": {"mode": discovery.mode.value, "defaultGateway": family}}


def _as_label(name: str) -> str:
    """A name as commands and metrics have it; Cilium takes any text."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:_LONGEST_NAME].strip("-")
