"""`bgpd check`: reads the configuration with the daemon's own parser and prints what would come of it.

With a manifest source the node is read too, and the plan is the real one. With the API server the plan is
shown for a node that is not known: `check` needs no credentials and touches nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from bgpd.bgp.plan import BgpPlan, Drain, plan
from bgpd.cli.exits import FINE, USAGE
from bgpd.cli.output import print_json, table
from bgpd.cli.settings import configuration
from bgpd.config.load import Loaded
from bgpd.kube.feed import Feed
from bgpd.kube.manifests import ManifestSource
from bgpd.kube.parse import NODE
from bgpd.model.node import Node
from bgpd.runtime.store import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    """Exit 2, with every fault on stderr, when the daemon would refuse the file."""
    loaded = configuration(options)
    node, faults, missing = _node(loaded)
    planned = plan(loaded.config.bgp, loaded.passwords, node, Drain.NO)
    shown = _plan(planned)
    if options.output == "json":
        print_json({"warnings": list(map(str, loaded.warnings)), "faults": faults, **shown})
    else:
        for warning in loaded.warnings:
            sys.stderr.write(f"warning: {warning}\n")
        for fault in faults:
            sys.stderr.write(f"{fault}\n")
        fine = "fine, but its manifests are not" if faults else "fine"
        sys.stdout.write(f"{options.config}: {fine}\n" + _render(missing, shown))
    return USAGE if faults else FINE


def _node(loaded: Loaded) -> tuple[Node | None, list[str], str]:
    """Our node from the manifests, what is wrong with them, and why there is no node; empty when there is."""
    directory = loaded.config.source.manifests
    if directory is None:
        return None, [], "the node is not known here, only to the API server"
    nodes: Store[Mapping[str, Node]] = Store({})
    source = ManifestSource(directory, [Feed(NODE, nodes, loaded.config.node.name)])
    source.read()
    status = source.status.newest.value
    faults = [str(fault) for fault in status.faults]
    if not nodes.newest.synced and not faults:
        faults.append(status.last_error)
    node = nodes.newest.value.get(loaded.config.node.name)
    return node, faults, "" if node else status.warning or "the node cannot be read"


def _plan(planned: BgpPlan) -> dict[str, Any]:
    neighbors = [
        {
            "peer": neighbor.name,
            "peerAddress": str(neighbor.peer_address),
            "peerASN": neighbor.peer_asn,
            "localAddress": str(neighbor.local_address),
            "localASN": neighbor.local_asn,
            "families": [family.value for family in neighbor.families],
        }
        for neighbor in planned.neighbors.values()
    ]
    return {
        "neighbors": neighbors,
        "idlePeers": [{"peer": name, "why": why} for name, why in planned.idle_peers.items()],
        "routes": [
            {"prefix": str(key.prefix), "peer": key.peer, "nextHop": str(path.next_hop)}
            for key, path in planned.routes.items()
        ],
        "refused": [
            {"prefix": str(key.prefix), "peer": key.peer, "why": why} for key, why in planned.refused.items()
        ],
    }


def _render(missing: str, shown: dict[str, Any]) -> str:
    parts = [f"{missing}; pod CIDRs and addresses that come from the node are left out\n"] if missing else []
    headings = {
        "neighbors": ("sessions", {"peer": "PEER", "peerAddress": "ADDRESS", "peerASN": "ASN",
                                   "localAddress": "FROM", "localASN": "AS", "families": "FAMILIES"}),
        "idlePeers": ("no session", {"peer": "PEER", "why": "WHY"}),
        "routes": ("would announce", {"prefix": "PREFIX", "peer": "PEER", "nextHop": "NEXT HOP"}),
        "refused": ("would refuse", {"prefix": "PREFIX", "peer": "PEER", "why": "WHY"}),
    }  # fmt: skip
    for key, (title, columns) in headings.items():
        if shown[key]:
            parts.append(f"\n{title}:\n{table(shown[key], columns)}")
    return "".join(parts)
