"""Who is measured: the daemon, and two things an operator would use in its place, a node each.

This decides how each of them is set up for the same job: announce the pod CIDRs that the API server shows for
one Node to both ToRs, with a hold time of 9 s. It does not decide what is measured. All use the same rights and
the same token; the two scripts are `watch_script`, on a BIRD and a GoBGP of their own.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from pathlib import Path

from tests.benchmarks import watch_script
from tests.benchmarks.stage import Stage
from tests.fabric.bird import Bird
from tests.fabric.gobgp import Gobgp
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.peer import Neighbor, Options
from tests.fabric.process import Process
from tests.fabric.topology import NodePlace, TwoTorFabric


class Contender(ABC):
    """Something that announces the pod CIDRs of `place`."""

    name: str

    def __init__(self, stage: Stage, place: NodePlace) -> None:
        self.stage, self.place = stage, place

    @abstractmethod
    def start(self) -> None:
        """Starts everything; the Node need not exist yet."""

    @abstractmethod
    def pids(self) -> dict[str, list[int]]:
        """The processes by what they are: the speaker of BGP, and what follows the API server."""


class Ours(Contender):
    name = "bgpd"

    def start(self) -> None:
        source = {"kubernetes": {"kubeconfig": str(self.stage.kubeconfig)}}
        bgp = two_tor_bgp(self.stage.fabric)
        self.node = BgpdNode(self.place.namespace, self.place.name, bgp, source=source).start()

    def pids(self) -> dict[str, list[int]]:
        assert self.node.daemon is not None
        return {"daemon": [self.node.daemon.pid], "speaker": speaker_pids(self.node)}


class BirdScript(Contender):
    name = "bird+script"

    def start(self) -> None:
        self.speaker = Bird(self.place.namespace, bgp_options(self.stage.fabric, self.place)).start()
        files = ["--file", str(self.speaker.directory / "originate4.conf")]
        self.script = run_script(self, "bird", *files, "--control", str(self.speaker.control_path))

    def pids(self) -> dict[str, list[int]]:
        assert self.speaker.process is not None
        return {"daemon": [self.script.pid], "speaker": [self.speaker.process.pid]}


class GobgpScript(Contender):
    name = "gobgp+script"

    def start(self) -> None:
        self.speaker = Gobgp(self.place.namespace, bgp_options(self.stage.fabric, self.place)).start()
        target = f"unix://{self.speaker.directory}/api"
        self.script = run_script(self, "gobgp", "--target", target, "--next-hop", self.place.address)

    def pids(self) -> dict[str, list[int]]:
        assert self.speaker.process is not None
        return {"daemon": [self.script.pid], "speaker": [self.speaker.process.pid]}


def bgp_options(fabric: TwoTorFabric, place: NodePlace) -> Options:
    """A speaker on a node of the two-ToR fabric: two uplinks."""
    neighbors = tuple(
        Neighbor(address=tor.loopback, asn=fabric.tor_asn, local_address=place.address) for tor in fabric.tors
    )
    return Options(asn=fabric.node_asn, router_id=place.address, neighbors=neighbors)


def run_script(contender: Contender, daemon: str, *options: str) -> Process:
    stage, place = contender.stage, contender.place
    common = ["--ca", str(stage.control_plane.certificate_authority), "--token", str(stage.token)]
    server = f"{stage.control_plane.address}:{stage.control_plane.port}"
    argv = [sys.executable, str(Path(watch_script.__file__)), daemon, "--node", place.name]
    return place.namespace.popen([*argv, "--server", server, *common, *options], name="script")


def speaker_pids(node: BgpdNode) -> list[int]:
    """ExaBGP, the guardian it starts, and the guardian's bridge."""
    assert node.speaker is not None
    guardian, bridge = node.guardian_pid(), node.bridge_pid()
    assert guardian is not None and bridge is not None
    return [node.speaker.pid, guardian, bridge]
