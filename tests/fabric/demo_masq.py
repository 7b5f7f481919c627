"""The demo's part about masquerade: who sees a pod's own address, who sees the node's, and a change while it runs.

This decides which document the nodes read, who dials whom, and what must be seen; `demo` decides when. Every node
has a /sys/fs/bpf of its own (`mounts`). On a machine that cannot masquerade (`bgpd doctor` says so) the nodes run
without, and one line says why.
"""

from __future__ import annotations

import time
from socket import socket

from bgpd.masq.source import SETTLE_S
from tests.fabric.masq_node import speaks, tcp_stream
from tests.fabric.mounts import BPFFS, BpfMounts
from tests.fabric.netns import Lab, Namespace
from tests.fabric.node import BIN, BgpdNode
from tests.fabric.process import poll
from tests.fabric.reach import source_seen
from tests.fabric.screen import Screen
from tests.fabric.topology import F5_SNAT, F5_SNAT6, GATEWAY, POD_SUPERNETS, STRANGER, STRANGER6, TwoTorFabric
from tests.files import rewrite

POD, POD6 = "188.188.0.10", "fd00:188:188::10"
BRIDGED_POD = "188.188.1.10"
ADDED = "198.51.100.0/24"
F5_POOLS = "11.8.37.4/30", "fd00:11:8:37::4/126"
_LIST = f"""\
nonMasqueradeCIDRs:
- {F5_POOLS[0]}            # SNAT pools of the F5
- {F5_POOLS[1]}
- 11.11.248.0/21          # where health checks come from
"""
_AFTERWARDS = 20  # connections from the pod's own address that are waited for
_PATIENCE_S = 15.0


class MasqueradePart:
    """Made before the daemons start. `absent` says why there is no masquerade here, or is empty."""

    def __init__(self, lab: Lab, screen: Screen, fabric: TwoTorFabric) -> None:
        self.screen, self.fabric = screen, fabric
        self.document = lab.directory / "ip-masq-agent" / "config"  # a directory, as a ConfigMap is mounted
        self.document.parent.mkdir()
        self.absent = ""
        self._mounts: list[BpfMounts] = []
        rewrite(self.document, _LIST)

    # --- before the daemons start -------------------------------------------------------------------------

    def configure(self, nodes: list[BgpdNode]) -> None:
        """Turns it on in every node's bgpd.yaml, unless this machine cannot."""
        try:
            self._mounts = [BpfMounts() for _ in nodes]
        except OSError as problem:
            self.absent = str(problem.strerror or problem)
            return
        for node, mounts in zip(nodes, self._mounts, strict=True):
            node.program = mounts.wrap(BIN / "bgpd", node.directory / "bin" / "bgpd")
            node.config["paths"]["bpf"] = f"{BPFFS}/bgpd"
            node.config["masquerade"] = {
                "enabled": True,
                "ipv6": True,
                "config": {"path": str(self.document.parent)},
                "clusterCIDRs": list(POD_SUPERNETS),
            }
            node.write_config()
        findings = [it for it in nodes[0].ask("doctor") if it["what"].startswith("masquerade: ")]
        self.absent = "; ".join(it["text"] for it in findings if it["state"] == "bad")
        if self.absent:
            for node in nodes:
                node.config["masquerade"]["enabled"] = False
                node.write_config()

    # --- chapters -----------------------------------------------------------------------------------------

    def show_who_sees_whom(self, node: BgpdNode, pod: Namespace) -> None:
        """The F5 and the pods of the cluster see the pod, all others the node, both families."""
        screen, outside = self.screen, self.fabric.outside
        screen.title("Masquerade: who sees the pod's own address, and who the node's")
        if self.absent:
            screen.note(f"not shown, this machine cannot do it: {self.absent}")
            return
        screen.shell(node.namespace.name, f"cat {self.document}", self.document.read_text())
        show(screen, node, "masq", "test", F5_SNAT)
        show(screen, node, "masq", "test", STRANGER)
        place = self.fabric.nodes[0]
        with screen.step(f"an F5, {F5_SNAT}; a pod behind a bridge of node2, {BRIDGED_POD}"):
            f5 = self.fabric.add_f5()
            self.bridged = self.fabric.add_bridged_pod(self.fabric.nodes[1], BRIDGED_POD, "pod2")
        with screen.step(f"until {node.namespace.name} has the rule for the pod CIDR that it was given just now"):
            poll(
                lambda: source_seen(pod, outside, STRANGER6) == place.address6,
                _PATIENCE_S,
                lambda: node.bgpd("status", check=False),
            )
        for ours, theirs in ((POD, F5_SNAT), (POD6, F5_SNAT6)):
            self._check(f"the F5 dials {ours}: the pod answers, and sees {theirs}", f5, pod, ours, theirs)
            self._check(f"the pod dials the F5: it sees {ours}, the pod", pod, f5, theirs, ours)
        for theirs, seen in ((STRANGER, place.address), (STRANGER6, place.address6)):
            self._check(f"the pod dials {theirs}, not listed: it sees {seen}, the node", pod, outside, theirs, seen)
        text = f"{STRANGER} dials {POD}: answered by that address, replies are left alone"
        self._check(text, outside, pod, POD, STRANGER, source=STRANGER)
        text = f"the pod dials {BRIDGED_POD}, a pod of node2: it sees {POD}, the pod"
        self._check(text, pod, self.bridged, BRIDGED_POD, POD)

    def change_document(self, node: BgpdNode, pod: Namespace) -> None:
        """A CIDR is added while a stream is open: new connections follow, the stream stays as it is."""
        if self.absent:
            return
        screen, place, outside = self.screen, self.fabric.nodes[0], self.fabric.outside
        screen.title(f"{ADDED} is added to the list while the pod has a stream open to {STRANGER}")
        with tcp_stream(pod, outside, STRANGER) as (client, server):
            began_as = server.getpeername()[0]
            seen, first_s, alive = self._edit(pod, client, server)
        before = seen.count(place.address)
        rests = f"a file counts once it has rested for {1000 * SETTLE_S:g} ms"
        screen.table(
            [
                ("0.0 ms", f"the document is renamed into place; {rests}"),
                (f"{1000 * first_s:.1f} ms", f"the first new connection that comes from {POD}"),
            ]
        )
        text = f"new connections: {before} from {place.address}, from then on all from {POD}"
        followed = seen == [place.address] * before + [POD] * _AFTERWARDS
        screen.check(text, followed, f"they came from {seen}")
        text = f"the open stream ran on all the while, its source still {place.address}"
        screen.check(text, alive and began_as == place.address, f"it began as {began_as}, runs on: {alive}")
        text = f"{STRANGER6}, still not listed, sees {place.address6}"
        self._check(text, pod, outside, STRANGER6, place.address6)
        show(screen, node, "masq", "test", STRANGER)
        hits = _hits(show(screen, node, "masq", "list", "--hits"))
        used = {entry: hits.get(entry, 0) for entry in (*F5_POOLS, ADDED)}
        screen.check(f"hits are counted for {', '.join(used)}", all(used.values()), str(used))

    def check_without_daemon(self) -> None:
        """On node2, whose daemon is dead at the moment."""
        if not self.absent:
            seen = self.fabric.nodes[1].address
            text = f"meanwhile its pod dials {GATEWAY}, not listed: it sees {seen}, the node"
            self._check(text, self.bridged, self.fabric.fabric, GATEWAY, seen)

    # --- how ----------------------------------------------------------------------------------------------

    def _check(
        self, text: str, client: Namespace, server: Namespace, address: str, wanted: str, source: str | None = None
    ) -> None:
        """That `server` sees `wanted` when `client` dials its `address`."""
        seen = source_seen(client, server, address, source=source)
        self.screen.check(text, seen == wanted, f"it saw {seen}")

    def _edit(self, pod: Namespace, client: socket, server: socket) -> tuple[list[str | None], float, bool]:
        """Changes the document and dials on until it counts, the stream in use all the while.

        Whom the connections came from, when the first came from the pod, and whether the stream lives.
        """
        seen: list[str | None] = []
        alive, first_s, began = True, 0.0, time.monotonic()
        rewrite(self.document, f"{_LIST}- {ADDED}\n")
        while seen.count(POD) < _AFTERWARDS and time.monotonic() - began < _PATIENCE_S:
            alive = alive and speaks(client, server)
            seen.append(source_seen(pod, self.fabric.outside, STRANGER))
            if not first_s and seen[-1] == POD:
                first_s = time.monotonic() - began
        return seen, first_s, alive and speaks(client, server)


def show(screen: Screen, node: BgpdNode, *words: str) -> str:
    """Runs a `bgpd` command on the node and shows it with its output."""
    said = node.bgpd(*words, check=False)
    screen.shell(node.namespace.name, f"bgpd {' '.join(words)}", said)
    return said


def _hits(listing: str) -> dict[str, int]:
    """The table of `bgpd masq list --hits`."""
    rows = [line.split() for line in listing.splitlines()[1:]]
    return {row[0]: int(row[-1]) for row in rows if row[-1].isdigit()}
