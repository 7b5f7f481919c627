"""Where masquerade is measured: a pod, a node and an outside on two cables, as often as there are contenders.

    pod eth0 --- pod0 | node | eth0 --- eth0 outside

This decides how the piece of network is wired and how the daemon runs on its node. It does not decide who masquerades
there (`masq_contenders`). Every contender has such a wire of its own, set up once, so that they can take turns
without one finding what another has left in the kernel.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from tests.fabric.mounts import bpffs_at
from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode, node_manifest
from tests.fabric.process import Process, poll
from tests.files import rewrite

POD, POD_CIDR, CLUSTER = "10.244.1.10", "10.244.1.0/24", "10.244.0.0/16"
POD_GATEWAY = "10.244.1.1"
NODE, OUTSIDE, CABLE = "192.0.2.1", "192.0.2.2", IPv4Network("192.0.2.0/24")
FAR = IPv4Network("198.18.0.0/15")  # all of it is the outside's (RFC 2544)
LISTED = IPv4Network("198.19.0.0/24")  # of these, for who is to have some in his list
ROOM = IPv4Network("192.0.0.0/3")  # where the entries of a long list lie, around everything that is sent to
LENGTHS = (24, 28, 32)
NODE_NAME = "worker1"


@functools.cache
def prefixes(count: int) -> tuple[IPv4Network, ...]:
    """So many that do not overlap, of several lengths, anywhere in `ROOM`; always the same, a longer list goes on."""
    rand = random.Random(1)
    found: dict[int, IPv4Network] = {}
    while len(found) < count:
        prefix = IPv4Network((int(somewhere(rand)), rand.choice(LENGTHS)), strict=False)
        if not any(prefix.overlaps(used) for used in (FAR, CABLE)):
            found.setdefault(int(prefix.network_address) >> 8, prefix)
    return tuple(found.values())


def somewhere(rand: random.Random) -> IPv4Address:
    """An address in `ROOM`."""
    return ROOM[rand.randrange(ROOM.num_addresses)]


class Wire:
    """`name` tells several in one lab apart."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name = lab, name
        self.pod, self.outside = lab.namespace(f"{name}-pod"), lab.namespace(f"{name}-outside")
        self.node = lab.namespace(f"{name}-node", forwarding=True)
        self._wire()

    def _wire(self) -> None:
        lab = self.lab
        lab.link(self.pod, "eth0", self.node, "pod0")
        lab.link(self.node, "eth0", self.outside, "eth0")
        self.pod.add_address("eth0", f"{POD}/24")
        self.pod.add_route("default", via=POD_GATEWAY)
        self.node.add_address("pod0", f"{POD_GATEWAY}/24")
        self.node.add_address("eth0", f"{NODE}/24")
        self.node.add_route(str(FAR), via=OUTSIDE)
        self.outside.add_address("eth0", f"{OUTSIDE}/24")
        self.outside.ip(f"route add local {FAR} dev lo")
        self.outside.add_route(CLUSTER, via=NODE)

    def forget_flows(self) -> None:
        """What conntrack knows of them, so that nobody has to look for an entry among another's."""
        self.node.run(["conntrack", "-F"])

    def flows(self) -> int:
        """How many conntrack knows on the node."""
        return int(self.node.run(["conntrack", "-C"]).stdout)

    def source_seen(self, destination: str) -> str:
        """The source address of a new flow from the pod to `destination`, of UDP."""
        with contextlib.closing(self.outside.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener:
            listener.bind(("", 0))
            listener.settimeout(2.0)
            with contextlib.closing(self.pod.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
                sender.sendto(b"?", (destination, listener.getsockname()[1]))
            return str(listener.recvfrom(64)[1][0])


def bpffs(lab: Lab) -> contextlib.AbstractContextManager[Path]:
    """A mount of its own; with it everything that is pinned there goes."""
    return bpffs_at(lab.directory / "bpffs")


def document(entries: Sequence[IPv4Network]) -> str:
    """As ip-masq-agent reads it; by default it takes 64 entries."""
    return json.dumps({"nonMasqueradeCIDRs": [str(entry) for entry in entries], "cidrLimit": max(1, len(entries))})


class MasqDaemon:
    """The daemon on the node of a wire. `sections` as in bgpd.yaml; Node and document come from files by default."""

    def __init__(self, wire: Wire, pins: Path, config_map: str | None = None, **sections: Any) -> None:
        self.wire = wire
        nobody = {"name": "nobody", "peerAddress": "192.0.2.254", "peerASN": 64512}
        bgp = {"localASN": 64512, "peers": [nobody], "export": {"allow": ["10.0.0.0/8"]}}
        self._document = wire.lab.directory / f"{wire.name}-document" / "ip-masq-agent"
        self._document.parent.mkdir()
        masquerade = {"enabled": True, "config": {"path": str(self._document)}, "clusterCIDRs": [CLUSTER]}
        if config_map is not None:
            masquerade["config"] = {"configMap": config_map}
        self.node = BgpdNode(wire.node, NODE_NAME, bgp, masquerade=masquerade, **sections)
        self.node.config["paths"]["bpf"] = str(pins / wire.name)
        self.node.write_config()
        (self.node.manifests / "node.yaml").write_text(node_manifest(NODE_NAME, [POD_CIDR], NODE))

    @property
    def process(self) -> Process:
        assert self.node.daemon is not None
        return self.node.daemon

    def write(self, entries: Sequence[IPv4Network]) -> None:
        """The document of a daemon that reads a file, as an atomic writer does it."""
        rewrite(self._document, document(entries))

    def start(self, entries: Sequence[IPv4Network] = ()) -> MasqDaemon:
        """With this list; see `wait_masquerades`."""
        self.write(entries)
        self.node.start_daemon()
        self.wait_masquerades()
        return self

    def wait_masquerades(self) -> None:
        """Until the rule is in force; the list is by then, because it comes first."""
        poll(
            lambda: self.wire.source_seen(str(FAR[-2])) == NODE,
            30.0,
            lambda: self.node.bgpd("status", check=False),
            every_s=0.1,
        )
