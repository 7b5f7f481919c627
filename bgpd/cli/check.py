"""`bgpd check`: reads the configuration with the daemon's own parser and prints what would come of it.

With a manifest source everything is read that the daemon would follow there, and the plan is the real one. With the
API server the plan is shown for a node that is not known: `check` needs no credentials and touches nothing. The
masquerade document is read where it is a file, or a ConfigMap among the manifests. Peers that are not given by
address are looked for on this machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bgpd.bgp import bird, discovery
from bgpd.bgp.plan import BgpPlan, Drain, plan
from bgpd.cli.exits import DEGRADED, FINE, USAGE
from bgpd.cli.output import print_json, show, table
from bgpd.cli.settings import configuration
from bgpd.config.bgp import PeersFrom
from bgpd.config.field import SnatSource
from bgpd.config.load import Loaded
from bgpd.config.masquerade import Masquerade
from bgpd.config.schema import Config, NodeRoutes
from bgpd.kube.manifests import ManifestSource
from bgpd.model.bfd import Wanted
from bgpd.model.bgp import AdvertisementType
from bgpd.model.brief import brief
from bgpd.model.candidate import Candidate
from bgpd.model.node import Node
from bgpd.parts import Cluster, ConfigMaps, cilium_bgp_stores, derived, feeds
from bgpd.runtime.store import Store

BFD = "BFD"
OBJECTS = "CiliumBGP objects"
MANIFESTS = "manifests"
VIRTUAL_SERVERS = "virtual servers"
SEVERAL = (MANIFESTS, OBJECTS, VIRTUAL_SERVERS)  # each is a plural


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


@dataclass(slots=True)
class _Report:
    """What is told. `faults` by what they are in; `notes` say what is not known here, or taken for granted."""

    warnings: list[str]
    faults: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)

    @property
    def faulty(self) -> list[str]:
        """What has faults."""
        return [what for what, faults in self.faults.items() if faults]

    @property
    def verdict(self) -> str:
        parts = self.faulty
        verb = "are" if len(parts) > 1 or parts[0:1] in ([name] for name in SEVERAL) else "is"
        return f"fine, but its {' and its '.join(parts)} {verb} not" if parts else "fine"


def main(options: argparse.Namespace) -> int:
    """Exit 2, with every fault on stderr, when the daemon would refuse the file, or what it reads because of it.

    4 when all that is missing is BIRD for BFD: BGP runs without.
    """
    loaded = configuration(options)
    report = _Report(list(map(str, loaded.warnings)))
    read = _manifests(loaded, report)
    node = read.node(loaded.config.node.name) if read else None
    if read is not None and read.cluster.cilium_bgp is not None:
        loaded = _with_cilium_bgp(loaded, read, report)
    found = _candidates(loaded.config, read) if read else ()
    uplinks = discovery.now(loaded.config.bgp.peers)
    planned = plan(loaded.config.bgp, loaded.passwords, node, Drain.NO, candidates=found, uplinks=uplinks)
    report.shown = {**_plan(planned), "masquerade": None, "policies": None, "nodeRoutes": None}
    if loaded.config.node_routes is not NodeRoutes.NONE and read is not None:
        report.shown["nodeRoutes"] = _node_routes(loaded.config, node, read)
    if any(peer.bfd for peer in loaded.config.bgp.peers) and bird.program() is None:
        report.faults[BFD] = [f"bgp.peers: bfd is given; {bird.MISSING}; BGP runs without it until then"]
    if loaded.config.masquerade.enabled:
        _masquerade(loaded.config.masquerade, node, read.cluster.masquerade if read else None, planned, report)
    if loaded.config.policy.enabled and read is not None:
        report.shown["policies"] = _policies(loaded.config, read, report)
    if loaded.config.virtual_servers.enabled and read is not None:
        _virtual_servers(read.cluster.virtual_servers, report)
    faults = [fault for each in report.faults.values() for fault in each]
    if options.output == "json":
        print_json({"warnings": report.warnings, "faults": faults, **report.shown})
    else:
        for warning in report.warnings:
            sys.stderr.write(f"warning: {warning}\n")
        for fault in faults:
            sys.stderr.write(f"{fault}\n")
        show(f"{options.config}: {report.verdict}\n" + _render(report))
    if report.faulty == [BFD]:
        return DEGRADED
    return USAGE if faults else FINE


@dataclass(frozen=True, slots=True)
class _Read:
    """What the manifests have of what a daemon would follow."""

    nodes: Store[Mapping[str, Node]]
    cluster: Cluster

    def node(self, name: str) -> Node | None:
        return self.nodes.newest.value.get(name)


def _manifests(loaded: Loaded, report: _Report) -> _Read | None:
    """None: only the API server knows."""
    config, left_out = loaded.config, "pod CIDRs and addresses that come from the node are left out"
    if config.source.manifests is None:
        report.notes.append(f"the node is not known here, only to the API server; {left_out}")
        if config.policy.enabled:
            report.notes.append("nor are pods and policies: `bgpd policy list` shows what the daemon makes of them")
        if config.bgp.announces(AdvertisementType.SERVICE):
            report.notes.append("nor are Services: `bgpd routes` shows which of their addresses are announced")
        if config.bgp.announces(AdvertisementType.POD_IP):
            report.notes.append("nor are pods to announce one by one: `bgpd routes` shows them")
        if config.virtual_servers.enabled:
            report.notes.append("nor are virtual servers: `bgpd virtualservers list` shows which are served")
        if config.node_routes is not NodeRoutes.NONE:
            report.notes.append("nor are other nodes: `bgpd noderoutes list` shows how their pods are reached")
        if config.bgp.peers_from is PeersFrom.CILIUM:
            report.notes.append("nor are Cilium's objects: `bgpd peers` shows what the daemon makes of them")
        return None
    read = _Read(Store({}), Cluster(cilium_bgp=cilium_bgp_stores(config)))
    source = ManifestSource(config.source.manifests, list(feeds(config, read.nodes, read.cluster)))
    source.read()
    status = source.status.newest.value
    faults = [str(fault) for fault in status.faults]
    node = read.node(config.node.name)
    faults += node.problems if node else ()
    if not read.nodes.newest.synced and not faults:
        faults.append(status.last_error)
    report.faults[MANIFESTS] = faults
    if node is None:
        report.notes.append(f"{status.warning or 'the node cannot be read'}; {left_out}")
    return read


def _candidates(config: Config, read: _Read) -> tuple[Candidate, ...]:
    """What the manifests have to announce besides the node's pod CIDRs. A node that has none of it does without."""
    found: tuple[Candidate, ...] = ()
    if config.bgp.announces(AdvertisementType.POD_IP):
        from bgpd.hostroutes.hostrouting import HostRouting

        found += HostRouting(config.node.name, read.nodes, read.cluster.pods, Store(())).candidates
    if config.bgp.announces(AdvertisementType.SERVICE):
        from bgpd.services.preview import preview

        found += preview(config, read.cluster.services.newest.value, read.cluster.slices.newest.value)
    return found


def _virtual_servers(config_maps: ConfigMaps, report: _Report) -> None:
    """Their faults and warnings. Which pods serve them is up to monitors, which only the daemon runs."""
    from bgpd.virtualservers.parse import parse  # a node without virtual servers does without

    readings = [parse(each) for _, each in sorted(config_maps.newest.value.items())]
    report.warnings += [str(warning) for reading in readings for warning in reading.warnings]
    report.faults[VIRTUAL_SERVERS] = [str(fault) for reading in readings for fault in reading.faults]
    served = sum(reading.server is not None for reading in readings)
    report.notes.append(f"virtual servers that can be served: {served}; `bgpd virtualservers list` says by whom")


def _with_cilium_bgp(loaded: Loaded, read: _Read, report: _Report) -> Loaded:
    """The configuration that a daemon on this node would have in effect."""
    file = Store(loaded)
    file.publish(loaded)
    found = derived(loaded.config, file, read.nodes, read.cluster.cilium_bgp)
    assert found is not None
    report.faults[OBJECTS] = list(found.problems())
    if not found.status()["clusterConfig"] and not report.faults[OBJECTS]:
        report.notes.append("sessions are not known while a file cannot be read: it may hold CiliumBGP objects")
    return found.effective.newest.value


def _policies(config: Config, read: _Read, report: _Report) -> list[dict[str, Any]]:
    """Those that select a pod of this node, as a daemon would have them that starts with empty maps."""
    from bgpd.policy.entries import Contents  # a node without policy does without
    from bgpd.policy.fit import CAPACITY, Fitting
    from bgpd.policy.report import policies
    from bgpd.policy.view import Objects, View

    cluster = read.cluster
    objects = Objects(read.nodes, cluster.pods, cluster.namespaces, cluster.policies)
    found, fitting = View(config.node.name, objects).look({}), Fitting(CAPACITY)
    contents = fitting.advance(found, Contents(), config.policy.on_overflow)[-1]
    report.warnings += brief(fitting.misfits, lambda misfit: misfit.reason)
    return policies(found, contents, fitting.misfits)


def _node_routes(config: Config, node: Node | None, read: _Read) -> list[dict[str, Any]]:
    """What the manifests come to on the interfaces that are here now; nothing when this is not that node."""
    from bgpd.noderoutes.preview import preview  # a node without node routes does without

    return preview(config, node, read.nodes.newest.value)


def _masquerade(
    masquerade: Masquerade, node: Node | None, config_maps: ConfigMaps | None, planned: BgpPlan, report: _Report
) -> None:
    from bgpd.masq.preview import preview  # a node that does not masquerade does without

    found = preview(masquerade, node, config_maps, {key.prefix for key in planned.routes})
    report.warnings += brief(found.findings)
    report.faults["masquerade document"] = list(found.faults)
    report.notes += filter(None, [found.note])
    report.shown["masquerade"] = {
        "document": found.document.origin if found.document else None,
        "keeps": [{"prefix": str(prefix)} for prefix in found.listed],
        "masquerades": [
            {
                "pods": list(map(str, rule.sources)),
                "snatTo": str(rule.snat_to or SnatSource.UPLINK.value),
                "alsoKept": [str(prefix) for prefix in rule.pod_cidrs if prefix not in rule.sources],
            }
            for rule in found.rules
        ],
        "blocked": [{"why": why} for why in found.blocked],
    }


def _plan(planned: BgpPlan) -> dict[str, Any]:
    shown = {place.name: place.shown for place in planned.places}
    neighbors = [
        {
            "peer": neighbor.name,
            "peerAddress": shown[neighbor.name],
            "peerASN": neighbor.peer_asn,
            "localAddress": str(neighbor.local_address),
            "localASN": neighbor.local_asn,
            "families": [family.value for family in neighbor.families],
            "bfd": _bfd(neighbor.bfd) if neighbor.bfd else None,
        }
        for neighbor in planned.neighbors.values()
    ]
    return {
        "neighbors": neighbors,
        "idlePeers": [
            {"peer": name, "why": why} for name, why in (*planned.idle_peers.items(), *planned.unplaced.items())
        ],
        "routes": [
            {"prefix": str(key.prefix), "peer": key.peer, "nextHop": str(path.next_hop)}
            for key, path in planned.routes.items()
        ],
        "refused": [
            {"prefix": str(key.prefix), "peer": key.peer, "why": why} for key, why in planned.refused.items()
        ],
        "withheld": [
            {"prefix": str(key.prefix), "peer": key.peer, "why": why} for key, why in planned.withheld.items()
        ],
    }


def _bfd(wanted: Wanted) -> dict[str, Any]:
    timers = wanted.timers
    return {
        "multihop": wanted.multihop,
        "transmitInterval_ms": timers.transmit_ms,
        "receiveInterval_ms": timers.receive_ms,
        "detectMultiplier": timers.multiplier,
    }


def _render(report: _Report) -> str:
    parts = [f"{note}\n" for note in report.notes]
    headings = {
        "neighbors": ("sessions", {"peer": "PEER", "peerAddress": "ADDRESS", "peerASN": "ASN",
                                   "localAddress": "FROM", "localASN": "AS", "families": "FAMILIES"}),
        "idlePeers": ("no session", {"peer": "PEER", "why": "WHY"}),
        "routes": ("would announce", {"prefix": "PREFIX", "peer": "PEER", "nextHop": "NEXT HOP"}),
        "refused": ("would refuse", {"prefix": "PREFIX", "peer": "PEER", "why": "WHY"}),
        "withheld": ("would not announce now", {"prefix": "PREFIX", "peer": "PEER", "why": "WHY"}),
        "keeps": ("pods would keep their addresses towards", {"prefix": "IP PREFIX/ADDRESS"}),
        "masquerades": ("would masquerade all else", {"pods": "PODS", "snatTo": "AS",
                                                      "alsoKept": "BUT NOT TOWARDS PODS OF"}),
        "blocked": ("would not masquerade", {"why": "WHY"}),
        "nodeRoutes": ("would reach pods of other nodes", {"prefix": "PREFIX", "node": "NODE", "via": "VIA",
                                                           "interface": "INTERFACE", "why": "WHY NOT"}),
        "policies": ("would isolate", {"policy": "POLICY", "entries": "ENTRIES", "pods": "PODS"}),
    }  # fmt: skip
    shown = report.shown | (report.shown["masquerade"] or {})
    for key, (title, columns) in headings.items():
        if shown.get(key):
            parts.append(f"\n{title}:\n{table(shown[key], columns)}")
    return "".join(parts)
