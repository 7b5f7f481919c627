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

from bgpd.datapath import layout, links, loader
from bgpd.datapath.features import SCHED_CLS
from bgpd.datapath.layout import PolicyVerdict
from bgpd.datapath.libbpf import check, library
from bgpd.datapath.links import Hook
from bgpd.datapath.loader import Installed
from bgpd.model.outcome import DONE
from bgpd.policy import filters, ipvlans, parents
from bgpd.policy.parents import MACVLAN, Kind, Programs
from bgpd.runtime.diff import Change
from tests.fabric import frames
from tests.fabric.netns import Lab
from tests.fabric.policy_node import link
from tests.fabric.rules_by_hand import verdicts

pytestmark = pytest.mark.needs("mount", "tc")

VLAN, OTHER_VLAN = 100, 101
_VLAN_PUSH = 18  # BPF_FUNC_skb_vlan_push
ABOVE = 4000  # the index that the interface in the VLAN has, as the programs are told
GATEWAY, MAC, BELOW_MAC, NODE_MAC = (b"\x02\0\0\0\0" + bytes([each]) for each in (2, 1, 3, 4))
ABROAD = {4: "192.0.2.1", 6: "2001:db8:ffff::1"}
BEHIND = {4: "203.0.113.7", 6: "2001:db8:7::7"}  # a pod's behind the interface in the VLAN
BELOW = {4: "203.0.113.8", 6: "2001:db8:7::8"}  # of the parent itself
both = pytest.mark.parametrize("version", [4, 6])


class Node:
    """The programs of `kind` are asked at eth0."""

    def __init__(self, lab: Lab, directory: Path, kind: Kind) -> None:
        self.node = lab.namespace("node")
        if not self.node.call(links.has_tcx):
            pytest.skip("this kernel has no tcx: nothing tags frames before a program of ours")
        outside = lab.namespace("outside")
        for each in (self.node, outside):  # nothing leaves or comes but what is sent here
            each.sysctl({f"net/ipv6/conf/{name}/disable_ipv6": "1" for name in ("all", "default")})
        lab.link(self.node, "eth0", outside, "eth0")
        self.parent = link(self.node, "eth0")[0]
        loader.install(loader.shipped("policy"), directory)
        self.installed: Installed = self.node.call(
            lambda: ipvlans.install(directory) if kind is ipvlans.KIND else parents.install(directory)
        )
        target = self.node.call(lambda: filters.actuator(self.installed, directory, kind))
        asked: Programs = {hook: each.id for hook, each in parents.programs(self.installed, kind).items()}
        change = Change(self.parent, asked, None)
        assert self.node.call(lambda: list(asyncio.run(target.apply([change])))) == [DONE]
        self.tag(VLAN)

    def tag(self, vlan: int) -> None:
        """From now on, all that leaves."""
        code = tags(vlan)
        program = check("loading", library().bpf_prog_load(SCHED_CLS, b"tag", b"GPL", code, len(code) // 8, None))
        try:
            self._tagging = self.node.call(lambda: links.attach(program, self.parent, Hook.EGRESS))
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
    protocol, move, call, leave, on = int.from_bytes(b"\x81\x00", sys.byteorder), 0xB4, 0x85, 0x95, -1
    code = [(move, 2, protocol), (move, 3, vlan), (call, 0, _VLAN_PUSH), (move, 0, on), (leave, 0, 0)]
    return b"".join(struct.pack("=BBhi", what, register, 0, value) for what, register, value in code)


@pytest.fixture
def ipvlan(lab: Lab, bpffs: Path) -> Node:
    node = Node(lab, bpffs / "bgpd", ipvlans.KIND)
    for parent, addresses in ((node.parent, BELOW), (ABOVE, BEHIND)):
        for address in addresses.values():
            _own(node.installed, parent, address, pod=parent)
    return node


def _own(installed: Installed, parent: int, address: str, pod: int = 0) -> None:
    key = layout.IPVLAN_ADDRESS_KEY.pack(parent, layout.policy_address(ip_address(address)))
    installed.maps["ipvlan_addresses"].update({key: layout.IPVLAN_OWNER.pack(pod, 0, 0, 0)})


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
