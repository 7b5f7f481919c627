"""What leaves by a parent with the tag of a VLAN: of the node's interfaces there, and of nobody else.

Not every kernel has interfaces in VLANs. A program that tags frames before ours are asked stands for one here, as it
would in a pod, and ours are told that there is one; what the node has is told by values in the unit tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from bgpd.datapath import features, layout, links, loader
from bgpd.datapath.features import SCHED_CLS
from bgpd.datapath.layout import ORIGIN_STACK, OwnerFlag, PolicyVerdict, StationFlag
from bgpd.datapath.libbpf import check, library
from bgpd.datapath.links import Hook
from bgpd.datapath.loader import Installed
from bgpd.model.outcome import DONE
from bgpd.netlink.links import own_cookie
from bgpd.policy import filters, ipvlans, parents
from bgpd.policy.parents import MACVLAN, Kind, Programs
from bgpd.runtime.diff import Change
from tests.fabric import frames
from tests.fabric.netns import Lab, Namespace
from tests.fabric.policy_node import link
from tests.fabric.rules_by_hand import verdicts

pytestmark = pytest.mark.needs("mount", "tc")

VLAN, OTHER_VLAN = 100, 101
_VLAN_PUSH, _REDIRECT = 18, 23  # BPF_FUNC_skb_vlan_push, BPF_FUNC_redirect
_MOVE, _STORE, _CALL, _EXIT = 0xB4, 0x63, 0x85, 0x95
_PRIORITY_AT = 32  # offsetof(struct __sk_buff, priority), linux/bpf.h
ABOVE = 4000  # the index that the interface in the VLAN has, as the programs are told
GATEWAY, MAC, BELOW_MAC, NODE_MAC = (b"\x02\0\0\0\0" + bytes([each]) for each in (2, 1, 3, 4))
ABROAD = {4: "192.0.2.1", 6: "2001:db8:ffff::1"}
BEHIND = {4: "203.0.113.7", 6: "2001:db8:7::7"}  # a pod's behind the interface in the VLAN
BELOW = {4: "203.0.113.8", 6: "2001:db8:7::8"}  # of the parent itself
NODE = {4: "203.0.113.1", 6: "2001:db8:7::1"}
TUNNEL, SILENCE_S = 4789, 0.5
both = pytest.mark.parametrize("version", [4, 6])


class Node:
    """The programs of `kind` are asked at eth0."""

    def __init__(self, lab: Lab, directory: Path, kind: Kind) -> None:
        self.node, self.kind, self.directory = lab.namespace("node"), kind, directory
        if not self.node.call(links.has_tcx):
            pytest.skip("this kernel has no tcx: nothing tags frames before a program of ours")
        self.outside = lab.namespace("outside")
        for each in (self.node, self.outside):  # nothing leaves or comes but what is sent here
            each.sysctl({f"net/ipv6/conf/{name}/disable_ipv6": "1" for name in ("all", "default")})
        lab.link(self.node, "eth0", self.outside, "eth0")
        self.parent = link(self.node, "eth0")[0]
        loader.install(loader.shipped("policy"), directory)
        self.installed: Installed = self.node.call(lambda: parents.install(directory, kind))
        self._target = self.node.call(lambda: filters.actuator(self.installed, directory, kind))
        self._links: list[links.Link] = []
        self.watch(self.parent)
        self.first(tags(VLAN), self.parent, Hook.EGRESS)

    def watch(self, ifindex: int) -> None:
        """Asks our programs there."""
        asked: Programs = {hook: each.id for hook, each in parents.programs(self.installed, self.kind).items()}
        change = Change(ifindex, asked, None)
        assert self.node.call(lambda: list(asyncio.run(self._target.apply([change])))) == [DONE]

    def first(self, code: bytes, ifindex: int, hook: Hook) -> None:
        """A program that is asked before ours."""
        program = check("loading", library().bpf_prog_load(SCHED_CLS, b"first", b"GPL", code, len(code) // 8, None))
        try:
            self._links.append(self.node.call(lambda: links.attach(program, ifindex, hook)))
        finally:
            os.close(program)

    def has_vlan(self, above: int, vlan: int = VLAN, protocol: bytes = b"\x81\x00") -> None:
        (name,) = (name for name in self.installed.maps if name.endswith("_vlans"))
        key = layout.VLAN_KEY.pack(self.parent, vlan, protocol)
        self.installed.maps[name].update({key: layout.VLAN.pack(above)})

    def said(self, version: int, address: str, mac: bytes = MAC) -> PolicyVerdict:
        """Of a datagram from there, which leaves tagged."""
        before = verdicts(self.installed.maps["policy_verdicts"])
        with self.node.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            with contextlib.suppress(OSError):  # what is dropped on the way out is told
                wire.send(frames.udp(GATEWAY, mac, address, ABROAD[version]))
        ((verdict, _),) = verdicts(self.installed.maps["policy_verdicts"]).items() - before.items()
        return verdict


def tags(vlan: int) -> bytes:
    """bpf_skb_vlan_push(packet, 802.1Q, vlan), and on to the next program."""
    protocol, on = int.from_bytes(b"\x81\x00", sys.byteorder), -1
    return _code((_MOVE, 2, protocol), (_MOVE, 3, vlan), (_CALL, 0, _VLAN_PUSH), (_MOVE, 0, on), (_EXIT, 0, 0))


def hands_on(ifindex: int, priority: int) -> bytes:
    """skb->priority = priority, and bpf_redirect(ifindex), to leave there."""
    said = (_MOVE, 2, priority), (_STORE, 2 << 4 | 1, 0, _PRIORITY_AT)
    return _code(*said, (_MOVE, 1, ifindex), (_MOVE, 2, 0), (_CALL, 0, _REDIRECT), (_EXIT, 0, 0))


def _code(*instructions: tuple[int, ...]) -> bytes:
    """Of each what it does, the registers, a constant, and an offset if there is one."""
    told = ((*each, 0) if len(each) == 3 else each for each in instructions)
    return b"".join(struct.pack("=BBhi", what, registers, offset, value) for what, registers, value, offset in told)


@pytest.fixture
def ipvlan(lab: Lab, bpffs: Path) -> Node:
    node = Node(lab, bpffs / "bgpd", ipvlans.KIND)
    for parent, addresses in ((node.parent, BELOW), (ABOVE, BEHIND)):
        for address in addresses.values():
            _own(node.installed, parent, address, pod=parent)
    return node


def _own(installed: Installed, parent: int, address: str, pod: int = 0, netns: int = 0, flags: int = 0) -> None:
    key = layout.IPVLAN_ADDRESS_KEY.pack(parent, layout.policy_address(ip_address(address)))
    installed.maps["ipvlan_addresses"].update({key: layout.IPVLAN_OWNER.pack(pod, netns, flags, 0)})


@both
def test_what_a_pod_behind_a_vlan_of_the_node_s_sends_leaves(ipvlan: Node, version: int) -> None:
    """It has been judged there; not what a pod of the parent sends with that tag."""
    assert ipvlan.said(version, BEHIND[version]) is PolicyVerdict.SPOOFED
    _own(ipvlan.installed, ABOVE, "::")
    ipvlan.has_vlan(ABOVE)
    assert ipvlan.said(version, BEHIND[version]) is PolicyVerdict.NOT_ISOLATED
    assert ipvlan.said(version, BELOW[version]) is PolicyVerdict.SPOOFED


@both
def test_what_else_the_node_has_in_a_vlan_sends_there_but_no_pod_of_the_parent(ipvlan: Node, version: int) -> None:
    ipvlan.has_vlan(0)
    assert ipvlan.said(version, BEHIND[version]) is PolicyVerdict.NOT_ISOLATED
    assert ipvlan.said(version, BELOW[version]) is PolicyVerdict.NOT_IP


@both
def test_a_vlan_that_the_node_has_not_is_nobody_s(ipvlan: Node, version: int) -> None:
    """By its number or by the kind of its tag."""
    ipvlan.has_vlan(0, protocol=b"\x88\xa8")
    assert ipvlan.said(version, BEHIND[version]) is PolicyVerdict.SPOOFED
    assert ipvlan.said(version, BELOW[version]) is PolicyVerdict.NOT_IP
    ipvlan.has_vlan(0, vlan=OTHER_VLAN)
    assert ipvlan.said(version, BEHIND[version]) is PolicyVerdict.SPOOFED


@both
def test_stations_behind_a_vlan_of_the_node_s(lab: Lab, bpffs: Path, version: int) -> None:
    """The same at a parent of macvlans, where pods are told by their MAC addresses."""
    node = Node(lab, bpffs / "bgpd", MACVLAN)
    for parent, mac, flags in ((node.parent, BELOW_MAC, 0), (ABOVE, MAC, 0)):
        key = layout.STATION_KEY.pack(parent, mac, bytes(2))
        station = layout.STATION.pack(bytes(16), bytes(16), 0, mac, flags)
        node.installed.maps["macvlan_stations"].update({key: station})
    assert node.said(version, BEHIND[version]) is PolicyVerdict.STRANGER
    node.has_vlan(ABOVE)
    assert node.said(version, BEHIND[version]) is PolicyVerdict.NOT_ISOLATED
    assert node.said(version, BELOW[version], BELOW_MAC) is PolicyVerdict.STRANGER
    node.has_vlan(0)
    assert node.said(version, BEHIND[version], NODE_MAC) is PolicyVerdict.NOT_ISOLATED
    assert node.said(version, BELOW[version], BELOW_MAC) is PolicyVerdict.NOT_IP


# --- where the kernel tells in which namespace a packet was sent ----------------------------------------------------


class Above(Node):
    """With an interface of the node's whose frames leave by eth0, where they are tagged: as one in a VLAN, it is a
    parent too. What a pod sends a program hands on, as the node's stack would: with the pod's socket.
    """

    def __init__(self, lab: Lab, directory: Path, kind: Kind) -> None:
        if not features.can_tell_netns():
            pytest.skip("this kernel does not tell a program where a packet was sent: Linux 6.15 does")
        super().__init__(lab, directory, kind)
        self._lab = lab
        self.node.ip("link add link eth0 name above type macvlan mode private", "link set above up")
        self.above = link(self.node, "above")[0]
        self.has_vlan(self.above)
        self.watch(self.above)
        netns = self.node.call(own_cookie)
        for parent, flags in ((self.parent, 0), (self.above, OwnerFlag.STACK)):
            if kind is MACVLAN:
                value = layout.STATION.pack(bytes(16), bytes(16), netns, NODE_MAC, StationFlag.NODE)
                key = layout.STATION_KEY.pack(parent, NODE_MAC, bytes(2))
                self.installed.maps["macvlan_stations"].update({key: value})
                continue
            for address in ("::", *NODE.values()):
                _own(self.installed, parent, address, netns=netns, flags=flags)

    def pod(self, name: str, to: int, priority: int = 0) -> Namespace:
        """All that it sends leaves by the interface `to`."""
        pod = self._lab.namespace(name)
        pod.sysctl({f"net/ipv6/conf/{each}/disable_ipv6": "1" for each in ("all", "default")})
        self._lab.link(pod, "eth0", self.node, name)
        self.first(hands_on(to, priority), link(self.node, name)[0], Hook.INGRESS)
        return pod

    def passes(self, sender: Namespace, source: str, port: int = 9) -> bool:
        """Whether a datagram from there gets to the wire."""
        frame = frames.udp(GATEWAY, NODE_MAC, source, ABROAD[ip_address(source).version], port)
        with frames.listener(self.outside) as wire:
            frames.send(sender, "eth0", frame, int.from_bytes(frame[12:14]))
            return frames.marked(wire, SILENCE_S) is not None


@both
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_what_a_parent_in_a_vlan_knows_to_be_masqueraded_leaves(
    lab: Lab, bpffs: Path, version: int, known: bool
) -> None:
    """From an address of the node's, or one that the maps do not have. What a pod of the parent below says counts
    for nothing, and what is not masqueraded is a forgery as before.
    """
    node = Above(lab, bpffs / "bgpd", ipvlans.KIND)
    source = NODE[version] if known else BEHIND[version]
    below = node.pod("below", node.parent, ORIGIN_STACK)
    assert not node.passes(below, source)
    assert not node.passes(node.pod("forger", node.above), source)
    assert node.passes(node.pod("masked", node.above, ORIGIN_STACK), source)
    assert not node.passes(below, source)


@both
def test_who_is_masqueraded_in_a_vlan_is_no_other_pod_there(lab: Lab, bpffs: Path, version: int) -> None:
    """Not even if it had an interface of the parent below, too, and could tag its frames."""
    node = Above(lab, bpffs / "bgpd", ipvlans.KIND)
    masked = node.pod("masked", node.above, ORIGIN_STACK)
    assert node.passes(masked, NODE[version])
    node.first(hands_on(node.parent, 0), link(node.node, "masked")[0], Hook.INGRESS)
    assert node.passes(masked, BEHIND[version])
    _own(node.installed, node.above, BEHIND[version], pod=7, netns=7)
    assert not node.passes(masked, BEHIND[version])


@both
@pytest.mark.parametrize("kind", [ipvlans.KIND, MACVLAN], ids=lambda kind: kind.object)
def test_a_tunnel_by_a_parent_in_a_vlan_leaves(lab: Lab, bpffs: Path, kind: Kind, version: int) -> None:
    node = Above(lab, bpffs / "bgpd", kind)
    pod = node.pod("pod", node.above)
    assert not node.passes(pod, NODE[version], TUNNEL)
    node.installed.maps[f"{kind.object}_tunnels"].update({layout.transport_port(TUNNEL): layout.PRESENT})
    assert node.passes(pod, NODE[version], TUNNEL)
    assert not node.passes(pod, NODE[version], TUNNEL + 1)
    assert not node.passes(node.pod("below", node.parent), NODE[version], TUNNEL + 1)
