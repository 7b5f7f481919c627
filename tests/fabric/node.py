"""A node of the lab that runs the product: the real daemon, its own ExaBGP, a directory of manifests.

This decides where a node's files are and how its two processes are started and ended, as their systemd units
would. It does not decide what is configured: a test gives `bgp` as it would stand in bgpd.yaml. Everything
lies in one directory per node, so that several nodes run side by side.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from bgpd.cli.client import NotReachable, request
from tests.fabric.bgp_wire import BgpMessage
from tests.fabric.netns import Namespace
from tests.fabric.observe import BgpCapture
from tests.fabric.process import Process, poll
from tests.fabric.topology import ASN, CABLE, NodePlace, TwoTorFabric
from tests.files import rewrite

BIN = Path(sys.executable).parent
FIGURE_S = 10.0


def node_manifest(name: str, pod_cidrs: list[str], *addresses: str, labels: dict[str, str] | None = None) -> str:
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


def two_tor_bgp(fabric: TwoTorFabric, **peer: Any) -> dict[str, Any]:
    """The `bgp` section of a node with an uplink to each ToR, dual stack; `peer` overrides each peer."""
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
    """The product on one node. `start` starts speaker and daemon; each can be ended and started by itself.

    `program` is the `bgpd` that the node has installed; `sections` are those of bgpd.yaml.
    """

    def __init__(
        self,
        namespace: Namespace,
        name: str,
        bgp: dict[str, Any],
        *,
        program: Path = BIN / "bgpd",
        **sections: Any,
    ) -> None:
        self.namespace, self.name, self.program = namespace, name, program
        self.directory = self.directory_of(namespace)
        self.manifests = self.directory / "manifests"
        self.manifests.mkdir(parents=True)
        self.config_file = self.directory / "bgpd.yaml"
        self.config: dict[str, Any] = {
            "node": {"name": name},
            "paths": {name: str(self.directory / name) for name in ("run", "state", "bpf")},
            "source": {"manifests": str(self.manifests)},
            "bgp": bgp,
            "metrics": {"listen": "127.0.0.1:9179"},
            **sections,
        }
        self.daemon: Process | None = None
        self.speaker: Process | None = None
        self.bfd: Process | None = None
        self.write_config()

    @classmethod
    def at(cls, place: NodePlace, bgp: dict[str, Any], *pod_cidrs: str, **sections: Any) -> BgpdNode:
        """A node of the fabric, its Node object written with `pod_cidrs` (default: its first)."""
        node = cls(place.namespace, place.name, bgp, **sections)
        node.allocate(place, *(pod_cidrs or place.pod_cidrs[:1]))
        return node

    @staticmethod
    def directory_of(namespace: Namespace) -> Path:
        """Where all of a node lies, for a test that puts something there before it starts."""
        return namespace.lab.directory / f"{namespace.name}-bgpd"

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "speaker.sock"

    def write_config(self) -> None:
        rewrite(self.config_file, yaml.safe_dump(self.config, sort_keys=False))

    def allocate(self, place: NodePlace, *pod_cidrs: str, labels: dict[str, str] | None = None) -> None:
        """Writes this node's Node object, as the controller manager changes it in a cluster."""
        text = node_manifest(place.name, list(pod_cidrs), place.address, place.address6, labels=labels)
        rewrite(self.manifests / "node.yaml", text)

    def start(self) -> BgpdNode:
        self.start_speaker()
        self.start_daemon()
        return self

    def start_speaker(self) -> None:
        argv = [str(self.program), "speaker", "run", "--config", str(self.config_file)]
        self.speaker = self.namespace.popen(argv, name="speaker")
        poll(self.socket.exists, 10, lambda: "no bridge: " + self._tail(self.speaker))

    def start_bfd(self, under: Sequence[str] = ()) -> None:
        """`under`: what runs it, if that is not us."""
        argv = [*under, str(self.program), "bfd", "run", "--config", str(self.config_file)]
        self.bfd = self.namespace.popen(argv, name="bfd")
        control = self.directory / "run" / "bfd" / "bird.ctl"
        poll(control.exists, 10, lambda: "no BIRD: " + self._tail(self.bfd))

    def start_daemon(self) -> None:
        argv = [str(self.program), "run", "--config", str(self.config_file)]
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
        argv = [str(self.program), *words, "--config", str(self.config_file)]
        return str(self.namespace.run(argv, check=check).stdout)

    def try_bgpd(self, *words: str) -> subprocess.CompletedProcess[str]:
        """As `bgpd`, for a test that looks at the exit code and at both outputs."""
        argv = [str(self.program), *words, "--config", str(self.config_file)]
        return self.namespace.run(argv, check=False)

    def status(self) -> dict[str, Any]:
        """What `bgpd status -o json` prints, asked for without the time that a command takes to start."""
        return request(self.directory / "run" / "status.sock", "status", {}, lambda text: None)

    def peer(self, name: str) -> dict[str, Any]:
        """One row of `bgpd peers`."""
        return next(row for row in self.status()["peers"] if row["peer"] == name)

    def wait_status(
        self, what: str, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 20.0
    ) -> dict[str, Any]:
        """The first status for which `wanted` holds; `what` names it if none comes."""

        def probe() -> dict[str, Any] | None:
            try:
                status = self.status()
            except NotReachable:
                return None
            return status if wanted(status) else None

        return poll(probe, timeout_s, lambda: f"{what}; {self.bgpd('status', check=False)}{self._tail(self.daemon)}")

    def wait_problem(self, text: str, timeout_s: float = 20.0) -> str:
        """The problem in `bgpd status` that holds `text`."""
        status = self.wait_status(
            f"no problem names {text!r}", lambda it: any(text in line for line in it["problems"]), timeout_s
        )
        return next(str(line) for line in status["problems"] if text in line)

    def wait_healthy(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Waits until there is no problem, every session is up and carries all its routes and its End-of-RIB."""
        return self.wait_status("not healthy", _is_healthy, timeout_s)

    def metric(self, line: str) -> float:
        """The value of one time series of /metrics, named as there. A daemon that is new may not have it yet."""
        poll(lambda: self._shown(line) is not None, FIGURE_S, lambda: f"no metric {line}")
        value = self._shown(line)
        assert value is not None
        return value

    def _shown(self, line: str) -> float | None:
        with self.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as channel:
            channel.connect(("127.0.0.1", 9179))
            channel.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = channel.makefile().read()
        found = (it.rpartition(" ") for it in text.splitlines())
        return next((float(value) for name, _, value in found if name == line), None)

    def wait_metric(self, line: str, value: float) -> None:
        """Until it has this value: figures are published a moment after what they are of."""
        poll(lambda: self.metric(line) == value, FIGURE_S, lambda: f"{line} is {self.metric(line)}, not {value}")

    def guardian_pid(self) -> int | None:
        """ExaBGP's helper, which keeps the pipes; None while there is none."""
        assert self.speaker is not None
        return _child(self.speaker.pid, b"bgpd-guardian")

    def bridge_pid(self) -> int | None:
        """The bridge, the guardian's child; None while there is none."""
        guardian = self.guardian_pid()
        return None if guardian is None else _child(guardian, b"bridge.py")

    def ask(self, *words: str) -> Any:
        """A command's JSON, whatever its exit code."""
        return json.loads(self.bgpd(*words, "-o", "json", check=False))

    def wait_announced(self, prefix: str, peers: int = 2, timeout_s: float = 20.0) -> None:
        """Waits until `bgpd routes` shows this prefix announced to so many peers."""

        def probe() -> bool:
            rows = self.ask("routes")
            return len([row for row in rows if row["prefix"] == prefix and row["announced"]]) == peers

        poll(probe, timeout_s, lambda: self.bgpd("status", check=False) + self._tail(self.daemon))

    @classmethod
    def announcing(
        cls,
        fabric: TwoTorFabric,
        bgp: dict[str, Any] | None = None,
        *,
        place: NodePlace | None = None,
        **sections: Any,
    ) -> BgpdNode:
        """A node of the fabric (default: its first) with both its pod CIDRs at both ToRs, and nothing left to do."""
        place = place or fabric.nodes[0]
        node = cls.at(place, bgp or two_tor_bgp(fabric), *place.pod_cidrs, **sections)
        if any("bfd" in peer for peer in node.config["bgp"]["peers"]):
            node.start_bfd()
        with BgpCapture(place.namespace, CABLE) as capture:
            if node.config["bgp"].get("speaker") == "managed":
                node.start_daemon()
            else:
                node.start()
            for tor in fabric.tors:
                for prefix in place.pod_cidrs:
                    tor.speaker.wait_route(prefix)
            node.wait_healthy()
            # both sides' End-of-RIB, two families at each ToR: after them nobody has anything left to say
            _wait_messages(capture, lambda it: it.end_of_rib, 4 * len(fabric.tors))
        return node

    @classmethod
    def announcing_nothing(cls, fabric: TwoTorFabric) -> BgpdNode:
        """The fabric's first node, not started, for a test that writes its Node object itself."""
        return cls.at(fabric.nodes[0], two_tor_bgp(fabric))

    @staticmethod
    def _tail(process: Process | None) -> str:
        return process.log_tail() if process is not None else "(never started)"


def _wait_messages(capture: BgpCapture, wanted: Callable[[BgpMessage], bool], count: int) -> None:
    poll(
        lambda: sum(map(wanted, capture.messages())) >= count,
        20,
        lambda: f"not {count} such messages: {[str(it) for it in capture.messages()[-20:]]}",
    )


def _is_healthy(status: dict[str, Any]) -> bool:
    carried = (
        row["state"] == "up"
        and row["announced"] == row["wanted"]
        and sorted(row["endOfRIB"]) == sorted(row["families"])
        for row in status["peers"]
    )
    return not status["problems"] and all(carried)


def _child(parent: int, program: bytes) -> int | None:
    """A child of `parent` whose command line names `program`."""
    try:
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if program in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    except (FileNotFoundError, ProcessLookupError):
        pass  # one of them has just ended
    return None
