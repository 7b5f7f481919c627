"""The whole daemon on the node of `masq_node`: where its document and its maps are, and what the outside sees of it.

This decides how the daemon is configured, how the document is written and how the kernel is looked at behind the
daemon's back. It does not decide what should be there.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from bgpd.datapath import layout, pins
from bgpd.datapath.loader import Program
from bgpd.datapath.maps import Map
from bgpd.masq.masquerading import PROGRAM
from bgpd.model import masq
from bgpd.model.lpm import LpmKey
from tests.fabric.masq_node import PLANS, MasqPlace, echoed, speaks, tcp_stream, udp_client, udp_echo
from tests.fabric.netns import Lab, Namespace
from tests.fabric.node import BIN, BgpdNode, node_manifest
from tests.fabric.process import poll
from tests.fabric.reach import source_seen
from tests.files import rewrite

LINK_LOCAL: Mapping[int, set[LpmKey]] = {each.version: {LpmKey.of(each)} for each in masq.LINK_LOCAL}


class MasqSite:
    """`pins` is where the daemon pins; `place` the network around it."""

    def __init__(self, lab: Lab, bpffs: Path) -> None:
        self.place = MasqPlace(lab)
        self.pins = bpffs / "own"
        self.document = lab.directory / "document" / "ip-masq-agent"
        self.document.parent.mkdir()
        nobody = {"name": "nobody", "peerAddress": "192.0.2.254", "peerASN": 64512}
        bgp = {"localASN": 64512, "peers": [nobody], "export": {"allow": ["10.0.0.0/8"]}}
        masquerade = {
            "enabled": True,
            "ipv6": True,
            "config": {"path": str(self.document)},
            "clusterCIDRs": [plan.cluster for plan in PLANS],
        }
        self.node = BgpdNode(self.place.node, "worker1", bgp, masquerade=masquerade)
        self.node.config["paths"]["bpf"] = str(self.pins)
        self.node.write_config()
        addresses = [plan.node for plan in PLANS]
        manifest = node_manifest("worker1", [plan.pods for plan in PLANS], *addresses)
        (self.node.manifests / "node.yaml").write_text(manifest)

    def start(self) -> MasqSite:
        """With `listed` of each family listed, and in force."""
        self.write(*(plan.listed for plan in PLANS))
        self.node.start_daemon()
        self.wait_in_force()
        return self

    def write(self, *entries: str, resync: str = "60s") -> None:
        """The document; a mere address is taken for the prefix that holds it alone."""
        prefixes = [entry if "/" in entry else str(ip_network(entry)) for entry in entries]
        document = {"nonMasqueradeCIDRs": prefixes, "resyncInterval": resync, "cidrLimit": layout.IPMASQ_ENTRIES}
        rewrite(self.document, json.dumps(document))

    # --- seen from outside ----------------------------------------------------------------------------------------

    def seen(self, destination: str) -> str | None:
        """The source address of a new flow from a pod to `destination`."""
        return source_seen(self.place.pod_a, self.place.outside, destination)

    def wait_seen(self, address: str, destination: str) -> None:
        poll(lambda: self.seen(destination) == address, 10, lambda: self.node.bgpd("status", check=False))

    def wait_in_force(self) -> None:
        """Until `unlisted` sees the node. The list comes before the rule, so `listed` sees the pod then."""
        for plan in PLANS:
            self.wait_seen(plan.node, plan.unlisted)

    def check_in_force(self) -> None:
        """`listed` sees the pod and `unlisted` the node, now."""
        for plan in PLANS:
            assert (self.seen(plan.listed), self.seen(plan.unlisted)) == (plan.pod_a, plan.node)

    # --- what the daemon says -------------------------------------------------------------------------------------

    def listed(self) -> list[str]:
        return self.node.bgpd("masq", "list").splitlines()

    def tested(self, address: str) -> dict[str, Any]:
        return dict(json.loads(self.node.bgpd("masq", "test", address, "-o", "json")))

    def drift(self, loop: str) -> float:
        """How many differences nobody asked for this loop has found so far."""
        return self.node.metric(f'bgpd_reconcile_drift_total{{subsystem="{loop}"}}')

    def wait_drift(self, loop: str, count: int) -> None:
        poll(lambda: self.drift(loop) >= count, 10, lambda: f"{loop}: drift is {self.drift(loop)}, not {count}")
        assert self.drift(loop) == count

    # --- what is in the kernel ------------------------------------------------------------------------------------

    def map(self, name: str) -> Map:
        """A map that is pinned by the daemon."""
        found = pins.open_map(self.pins / name, layout.MAPS[name])
        assert found is not None, f"{name} is not pinned"
        return found

    def pinned(self) -> dict[str, int]:
        """The kernel's numbers of the maps and of the program that are pinned, by name."""
        found = {}
        for path in self.pins.iterdir() if self.pins.is_dir() else ():
            is_program = path.name.startswith(PROGRAM)
            fd = pins.get(path, "prog" if is_program else "map")
            if fd is not None:
                found[path.name] = Program(fd, path, replaced=False).id if is_program else Map(fd).id
        return found

    def entries(self, version: int = 4) -> set[LpmKey]:
        """The list that the program asks."""
        return listed_in(self.map(f"ipmasq_v{version}"), version)

    def wait_entries(self, wanted: set[LpmKey], version: int = 4) -> None:
        poll(lambda: self.entries(version) == wanted, 10, lambda: f"the list is {[*map(str, self.entries(version))]}")


def keys(*prefixes: str) -> set[LpmKey]:
    """As a list map has them."""
    return {LpmKey.of(ip_network(each)) for each in prefixes}


def listed_in(target: Map, version: int) -> set[LpmKey]:
    """Without the link-local range that is always in it."""
    return set(map(LpmKey.read, target.entries())) - LINK_LOCAL[version]


def with_bpffs(bpffs: Path) -> Path:
    """A `bgpd` that finds `bpffs` where a node has its own, and Cilium its pins. It has its own mounts."""
    mount = shlex.join(["mount", "--bind", str(bpffs), str(pins.BPFFS)])
    wrapper = bpffs.with_name("bgpd-with-bpffs")
    inner = f'{mount} && exec {BIN / "bgpd"} "$@"'
    wrapper.write_text(f'#!/bin/sh\nexec unshare --mount sh -ec {shlex.quote(inner)} sh "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


class OpenFlows:
    """A TCP stream and a UDP flow of each family, from a pod to `unlisted`."""

    def __init__(self, client: Namespace, server: Namespace, stack: contextlib.ExitStack) -> None:
        self._streams, self._flows = [], []
        for plan in PLANS:
            self._streams.append(stack.enter_context(tcp_stream(client, server, plan.unlisted)))
            seen = stack.enter_context(udp_echo(server, plan.unlisted))
            dialer = stack.enter_context(udp_client(client, plan.unlisted))
            echoed(dialer)
            self._flows.append((dialer, seen))
        self.sources = [server.getpeername()[0] for _, server in self._streams]
        assert [seen[0][0] for _, seen in self._flows] == self.sources

    def check(self) -> None:
        """All of them work, and the server has seen but one source, address and port, of each."""
        for stream in self._streams:
            assert speaks(*stream)
        for dialer, seen in self._flows:
            assert echoed(dialer) == b"x"
            assert len(set(seen)) == 1


@contextlib.contextmanager
def open_flows(site: MasqSite) -> Iterator[OpenFlows]:
    """Checked at the end too."""
    with contextlib.ExitStack() as stack:
        flows = OpenFlows(site.place.pod_a, site.place.outside, stack)
        yield flows
        flows.check()
