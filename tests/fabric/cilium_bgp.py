"""Cilium's BGP objects for a node of the two-ToR fabric, as mappings for a file or for an API server."""

from __future__ import annotations

from typing import Any

from tests.fabric.topology import TwoTorFabric

Manifest = dict[str, Any]

API_VERSION = "cilium.io/v2"
INSTANCE = "fabric"
PEER_CONFIG = "tor"
LABELS = {"advertise": "bgp"}
SECTION: dict[str, Any] = {  # of bgpd.yaml
    "peersFrom": "cilium",
    "export": {"allow": ["188.188.0.0/16", "fd00:188:188::/48"]},
}


def cluster_config(fabric: TwoTorFabric, name: str = "racks", **spec: Any) -> Manifest:
    """A session with each ToR; `spec` overrides."""
    peers = [
        {
            "name": tor.name,
            "peerAddress": tor.loopback,
            "peerASN": fabric.tor_asn,
            "peerConfigRef": {"name": PEER_CONFIG},
        }
        for tor in fabric.tors
    ]
    instance = {"name": INSTANCE, "localASN": fabric.node_asn, "localPort": 179, "peers": peers}
    return _object("CiliumBGPClusterConfig", name, {"bgpInstances": [instance], **spec})


def peer_config(name: str = PEER_CONFIG, **spec: Any) -> Manifest:
    """Both families, graceful restart, and what `LABELS` selects; `spec` overrides."""
    families = [
        {"afi": afi, "safi": "unicast", "advertisements": {"matchLabels": LABELS}} for afi in ("ipv4", "ipv6")
    ]
    base = {"timers": {"holdTimeSeconds": 9, "keepAliveTimeSeconds": 3}, "gracefulRestart": {"enabled": True}}
    return _object("CiliumBGPPeerConfig", name, {**base, "families": families, **spec})


def advertisement(*things: dict[str, Any], name: str = "pod-cidrs") -> Manifest:
    """Of pod CIDRs when no thing is given."""
    made = _object("CiliumBGPAdvertisement", name, {"advertisements": list(things) or [pod_cidrs()]})
    made["metadata"]["labels"] = LABELS
    return made


def pod_cidrs(*communities: str, **attributes: Any) -> dict[str, Any]:
    standard = {"communities": {"standard": list(communities)}} if communities else {}
    return {"advertisementType": "PodCIDR", "attributes": {**standard, **attributes}}


def override(node: str, **instance: Any) -> Manifest:
    return _object("CiliumBGPNodeConfigOverride", node, {"bgpInstances": [{"name": INSTANCE, **instance}]})


def _object(kind: str, name: str, spec: dict[str, Any]) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
