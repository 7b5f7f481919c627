"""`bgpd demo`: the real daemon against one peer, on a laptop or in a lab, from a directory that goes away.

Writes a configuration and one Node manifest, starts the daemon with ExaBGP as its child, and says how to look
around. The whole fabric, with ToRs and pods, is `tests/demo` in the source tree.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import yaml

from bgpd.cli.exits import USAGE
from bgpd.model.prefix import Address, PrefixError, parse_address

NODE = "demo"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=179, help="the peer's TCP port (default: 179)")
    parser.add_argument("--asn", type=int, default=64512, help="ours and the peer's ASN (default: 64512)")
    parser.add_argument("--local", metavar="ADDRESS", help="the session's own address (default: the peer's)")
    parser.add_argument("--pod-cidr", default="188.188.0.0/24", metavar="CIDR", help="default: 188.188.0.0/24")


def main(options: argparse.Namespace) -> int:
    """Runs until Ctrl-C; then everything is withdrawn and the directory removed."""
    try:
        peer = parse_address(options.peer)
        local = parse_address(options.local) if options.local else peer
    except PrefixError as error:
        sys.stderr.write(f"bgpd demo: {error}\n")
        return USAGE
    from bgpd.cli import run  # the daemon is not needed for the usage text

    with tempfile.TemporaryDirectory(prefix="bgpd-demo-") as name:
        options.config = _write(Path(name), options, peer, local)
        sys.stderr.write(
            f"peer {peer} port {options.port} AS {options.asn}; the peer must know {local} as a neighbor in that AS\n"
            f"  look:    bgpd --config {options.config} status   (peers, routes, doctor, drain)\n"
            f"  change:  edit {Path(name) / 'manifests' / 'node.yaml'}\n"
            "  end:     Ctrl-C\n"
        )
        return run.main(options)


def _write(directory: Path, options: argparse.Namespace, peer: Address, local: Address) -> Path:
    """The configuration file, beside the manifest it points to."""
    manifests = directory / "manifests"
    manifests.mkdir()
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE},
        "spec": {"podCIDRs": [options.pod_cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": str(local)}]},
    }
    config = {
        "node": {"name": NODE},
        "paths": {name: str(directory / name) for name in ("run", "state", "bpf")},
        "source": {"manifests": str(manifests)},
        "bgp": {
            "localASN": options.asn,
            "routerID": str(local) if local.version == 4 else "192.0.2.1",
            "listenPort": 0,
            "speaker": "managed",
            "peers": [
                {
                    "name": "peer",
                    "peerAddress": str(peer),
                    "peerPort": options.port,
                    "peerASN": options.asn,
                    "localAddress": str(local),
                    "families": ["ipv4-unicast", "ipv6-unicast"],
                }
            ],
            "advertisements": [{"advertisementType": "PodCIDR"}],
            "export": {"allow": [options.pod_cidr]},
        },
        "metrics": {"listen": "127.0.0.1:9179"},
    }
    (manifests / "node.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
    file = directory / "bgpd.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file
