"""A node of the lab that runs the product: the real daemon, its own ExaBGP, a directory of manifests.

This decides where a node's files are and how its two processes are started and ended, as their systemd units
would. It does not decide what is configured: a test gives `bgp` as it would stand in bgpd.yaml. Everything
lies in one directory per node, so that several nodes run side by side.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.fabric.netns import Namespace
from tests.fabric.process import Process, poll
from tests.fabric.topology import ASN, NodePlace, Seed3Fabric

BIN = Path(sys.executable).parent


def node_manifest(
    name: str, pod_cidrs: list[str], *addresses: str, labels: dict[str, str] | None = None
) -> str:
    """A v1 Node as `kubectl get node -o yaml` shows it, without what nobody reads."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
            "spec": {"podCIDR": pod_cidrs[0] if pod_cidrs else "", "podCIDRs": pod_cidrs},
            "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]},
        },
        sort_keys=False,
    )


def seed3_bgp(fabric: Seed3Fabric, **peer: Any) -> dict[str, Any]:
    """The `bgp` section that replaces seed 3's bird.conf: two uplinks, dual stack; `peer` overrides each peer."""
    families = ["ipv4-unicast", "ipv6-unicast"]
    return {
        "localASN": fabric.node_asn,
        "peers": [
            {
                "name": tor.name,
                "peerAddress": tor.loopback,
                "peerASN": fabric.tor_asn,
                "families": families,
                "timers": {"holdTimeSeconds": 9},
                **({} if fabric.tor_asn == ASN else {"ebgpMultihop": 4}),
                **peer,
            }
            for tor in fabric.tors
        ],
        "advertisements": [{"advertisementType": "PodCIDR"}],
        "export": {"allow": ["188.188.0.0/16", "fd00:188:188::/48"]},
    }


class BgpdNode:
    """The product on one node. `start` starts speaker and daemon; each can be ended and started by itself."""

    def __init__(self, namespace: Namespace, name: str, bgp: dict[str, Any], **sections: Any) -> None:
        self.namespace, self.name = namespace, name
        self.directory = namespace.lab.directory / f"{namespace.name}-bgpd"
        self.manifests = self.directory / "manifests"
        self.manifests.mkdir(parents=True)
        self.config_file = self.directory / "bgpd.yaml"
        self.config: dict[str, Any] = {
            "node": {"name": name},
            "paths": {"run": str(self.directory / "run"), "state": str(self.directory / "state")},
            "source": {"manifests": str(self.manifests)},
            "bgp": bgp,
            "metrics": {"listen": "127.0.0.1:9179"},
            **sections,
        }
        self.daemon: Process | None = None
        self.speaker: Process | None = None
        self.write_config()

    @classmethod
    def at(cls, place: NodePlace, bgp: dict[str, Any], *pod_cidrs: str, **sections: Any) -> BgpdNode:
        """A node of the fabric, its Node object written with `pod_cidrs` (default: its first)."""
        node = cls(place.namespace, place.name, bgp, **sections)
        node.allocate(place, *(pod_cidrs or place.pod_cidrs[:1]))
        return node

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "speaker.sock"

    def write_config(self) -> None:
        self._replace(self.config_file, yaml.safe_dump(self.config, sort_keys=False))

    def allocate(self, place: NodePlace, *pod_cidrs: str, labels: dict[str, str] | None = None) -> None:
        """Writes this node's Node object, as the controller manager changes it in a cluster."""
        text = node_manifest(place.name, list(pod_cidrs), place.address, place.address6, labels=labels)
        self._replace(self.manifests / "node.yaml", text)

    def start(self) -> BgpdNode:
        self.start_speaker()
        self.start_daemon()
        return self

    def start_speaker(self) -> None:
        argv = [str(BIN / "bgpd"), "speaker", "run", "--config", str(self.config_file)]
        self.speaker = self.namespace.popen(argv, name="speaker")
        poll(self.socket.exists, 10, lambda: "no bridge: " + self._tail(self.speaker))

    def start_daemon(self) -> None:
        argv = [str(BIN / "bgpd"), "run", "--config", str(self.config_file)]
        self.daemon = self.namespace.popen(argv, name="bgpd")
        status = self.directory / "run" / "status.sock"
        poll(status.exists, 10, lambda: "no daemon: " + self._tail(self.daemon))

    def stop_speaker(self) -> None:
        """As `systemctl stop bgpd-speaker`: withdraw, then SIGTERM."""
        self.bgpd("speaker", "stop")
        assert self.speaker is not None
        self.speaker.stop()

    def restart_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.stop()
        self.start_daemon()

    def bgpd(self, *words: str, check: bool = True) -> str:
        """Runs a `bgpd` command on this node, as an operator would; its standard output."""
        argv = [str(BIN / "bgpd"), *words, "--config", str(self.config_file)]
        return str(self.namespace.run(argv, check=check).stdout)

    def ask(self, *words: str) -> Any:
        """A command's JSON, whatever its exit code."""
        return json.loads(self.bgpd(*words, "-o", "json", check=False))

    def wait_announced(self, prefix: str, peers: int = 2, timeout_s: float = 20.0) -> None:
        """Waits until `bgpd routes` shows this prefix announced to so many peers."""

        def probe() -> bool:
            rows = self.ask("routes")
            return sum(row["prefix"] == prefix and row["announced"] for row in rows) == peers

        poll(probe, timeout_s, lambda: self.bgpd("status", check=False) + self._tail(self.daemon))

    @staticmethod
    def _tail(process: Process | None) -> str:
        return process.log_tail() if process is not None else "(never started)"

    @staticmethod
    def _replace(file: Path, text: str) -> None:
        """As an atomic writer does it: never a half file under the name."""
        temporary = file.with_name(f".{file.name}.new")
        temporary.write_text(text)
        temporary.rename(file)
