"""A node whose pods have ipvlans of its uplink, and an outside on the same wire.

This decides how the pieces are wired, and how rules are written into the maps by hand. What should become of packets
is for the tests to say. Maps and programs are those of `bgpd.policy.ipvlans`, the shipped ones in a bpffs that goes
with the lab. Few kernels have ipvlan; in a virtual machine a node is a minute's work, so a module has one.

    pod-a, pod-b, pod-c === eth0 of the node --- outside
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bgpd.datapath import loader
from bgpd.model.attachment import AttachmentKey
from bgpd.model.endpoint import Endpoint, IpvlanLink, IpvlanMode
from bgpd.model.outcome import DONE
from bgpd.netlink.links import Links
from bgpd.policy import filters, ipvlans, parents, podhooks
from bgpd.runtime.diff import Change, diff
from tests.fabric import frames
from tests.fabric.frames import MARK, listener, marked
from tests.fabric.mounts import bpffs_at
from tests.fabric.netns import Lab, Namespace, missing
from tests.fabric.parent_node import PLANS, ParentPlace
from tests.fabric.policy_node import link
from tests.fabric.rules_by_hand import RulesByHand

NAMES = ("a", "b", "c")
PROBE = "bgpdt-ipvlan"
SILENCE_S = 0.4
DISCARD = 9  # the port of `frames.udp`


def lacking() -> str:
    """What this machine lacks for ipvlans; empty: nothing."""
    if reason := missing("mount", "tc"):
        return reason
    with Lab() as lab:
        probe = lab.namespace("probe")
        lab.link(probe, "eth0", lab.namespace("peer"), "eth0")
        made = probe.run(["ip", "link", "add", PROBE, "link", "eth0", "type", "ipvlan", "mode", "l2"], check=False)
    return f"this kernel has no ipvlan: {made.stderr.strip()}" if made.returncode else ""


@contextlib.contextmanager
def ipvlan_node(mode: IpvlanMode) -> Iterator[IpvlanNode]:
    """For a fixture; skips what asks for it where it cannot be."""
    if reason := lacking():
        pytest.skip(reason)
    with Lab() as lab, bpffs_at(lab.directory / "bpf") as bpffs:
        yield IpvlanNode(lab, bpffs, mode)


def ipvlan(node: Namespace, owner: Namespace, mode: IpvlanMode, name: str = "eth0") -> None:
    """One of the uplink, in another namespace, up. As the plugin makes it."""
    node.ip(
        f"link add link eth0 name new type ipvlan mode {mode.name.lower()}",
        f"link set new netns {owner.netns_name} name {name}",
    )
    owner.link_up(name)


class IpvlanPlace(ParentPlace):
    """Namespaces and what joins them. In mode L3 the outside has routes to the pods by the node."""

    def __init__(self, lab: Lab, mode: IpvlanMode) -> None:
        self.lab, self.mode = lab, mode
        self.node, self.outside = lab.namespace("node"), lab.namespace("outside")
        self.pods = {name: lab.namespace(f"pod-{name}") for name in NAMES}
        lab.link(self.node, "eth0", self.outside, "eth0")
        for namespace, name in ((self.node, "node"), (self.outside, "outside")):
            namespace.add_address("eth0", *(f"{plan.of(name)}/{plan.length}" for plan in PLANS))
        for name, pod in self.pods.items():
            ipvlan(self.node, pod, mode)
            for plan in PLANS:
                if mode is IpvlanMode.L2:
                    pod.add_address("eth0", f"{plan.of(name)}/{plan.length}")
                    continue
                alone = 32 if plan.version == 4 else 128
                pod.add_address("eth0", f"{plan.of(name)}/{alone}")
                pod.add_route("default" if plan.version == 4 else "::/0", dev="eth0")
                self.outside.add_route(f"{plan.of(name)}/{alone}", via=plan.node)
        self.parent = link(self.node, "eth0")[0]

    def inject(self, name: str, frame: bytes, *, protocol: int | None = None, bypass: bool = True) -> None:
        """`protocol` None: said to be what it is. Of what is said to be nothing, 0, kernels make this or that."""
        told = int.from_bytes(frame[12:14]) if protocol is None else protocol
        frames.send(self.namespace(name), "eth0", frame, told, bypass=bypass)


class IpvlanNode(IpvlanPlace, RulesByHand):
    """Everything open until `isolate`; programs are asked from the beginning on."""

    def __init__(self, lab: Lab, bpffs: Path, mode: IpvlanMode) -> None:
        super().__init__(lab, mode)
        self.directory = bpffs / "bgpd"
        self.policy = loader.install(loader.shipped("policy"), self.directory)
        self.endpoints = {name: self._endpoint(name) for name in NAMES}
        self.numbers = {name: ipvlans.number_of(each, each.link) for name, each in self.endpoints.items()}
        self.removed: list[int] = []
        self.restarted()
        self.open()
        self.tell()
        self.hook()
        self.watch_parent()

    def _endpoint(self, name: str) -> Any:
        def look() -> IpvlanLink:
            with Links() as links:
                found = links.pod(self.pods[name].path, "eth0")
                return IpvlanLink(
                    self.parent, "eth0", self.mode, self.pods[name].path, found.inside.index, found.cookie
                )

        addresses = tuple(ip_address(plan.of(name)) for plan in PLANS)
        key = AttachmentKey("net", name, "eth0")
        return Endpoint(key, None, self.mac(name).hex(":"), addresses, self.node.call(look))

    def restarted(self) -> None:
        """What one daemon had open is gone, and another knows what the kernel has."""
        self.installed = parents.install(self.directory, ipvlans.KIND)
        podhooks.Shared(self.installed, parents.program(self.installed, podhooks.FILTER)).put()
        self.hooks = self.node.call(
            lambda: podhooks.actuator(
                self.installed, self.directory, lambda: ipvlans.places(self.endpoints.values()), self.removed.append
            )
        )
        self.links = self.node.call(lambda: filters.actuator(self.installed, self.directory, ipvlans.KIND))

    # --- maps and programs ------------------------------------------------------------------------------------------

    def tell(self, closed: Collection[str] = ()) -> None:
        """Writes who is behind the parent."""
        neighbors = ipvlans.neighbors(self.installed, self.directory)

        async def write() -> None:
            have = await neighbors.observe()
            numbers = [self.numbers[name] for name in closed]
            want = ipvlans.entries(self.endpoints.values(), neighbors.own, {self.parent}, numbers)
            await neighbors.apply(diff(want, have, str, prune=True))

        self.here(write)

    def hook(self) -> None:
        """The programs in the pods, as the loop does it: what is not there is put there."""
        self._hook(ipvlans.places(self.endpoints.values()))

    def unhook(self) -> None:
        self._hook({})

    def _hook(self, want: Mapping[int, podhooks.Place]) -> None:
        async def put() -> None:
            have = await self.hooks.observe()
            outcomes = await self.hooks.apply(diff(want, have, int, prune=True))
            assert all(each == DONE for each in outcomes), outcomes

        self.here(put)

    def watch_parent(self) -> None:
        asked = {hook: each.id for hook, each in parents.programs(self.installed, ipvlans.KIND).items()}
        outcomes = self.here(lambda: self.links.apply([Change(self.parent, asked, None)]))
        assert list(outcomes) == [DONE], outcomes


def gets(node: IpvlanNode, receiver: str, frame: bytes, sender: str = "a", **how: object) -> bool:
    """Whether it comes to a socket of the pod; from the wire, whether it is on it."""
    if receiver == "outside":
        with listener(node.outside) as wire:
            node.inject(sender, frame, **how)  # type: ignore[arg-type]
            return marked(wire, SILENCE_S) is not None
    family = socket.AF_INET6 if frame[12:14] == frames.IPV6.to_bytes(2) else socket.AF_INET
    with node.namespace(receiver).socket(family, socket.SOCK_DGRAM) as server:
        server.bind(("", DISCARD))
        server.settimeout(SILENCE_S)
        node.inject(sender, frame, **how)  # type: ignore[arg-type]
        with contextlib.suppress(TimeoutError):
            return MARK in server.recv(4096)
    return False


def tells(node: IpvlanNode) -> bool:
    """Whether the kernel tells where a packet was sent: Linux 6.15; that of a pod, 6.18."""
    return "ipvlan_pod" in node.installed.programs and bool(node.endpoints["a"].link.netns)
