"""Pods on ipvlans of mode L3 and L3S send by the node's stack, where masquerading and services translate.

Few kernels have ipvlan. An address of the node's own stands for a pod's here: what is sent from it passes OUTPUT and
POSTROUTING, what is sent to it PREROUTING and INPUT, which is how packets of such pods go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from bgpd.datapath import features, layout, loader
from bgpd.datapath.layout import ORIGIN_STACK, OwnerFlag, Peer
from bgpd.model.outcome import DONE
from bgpd.netlink.links import own_cookie
from bgpd.policy import filters, ipvlans, parents
from bgpd.policy.parents import Programs
from bgpd.policy.table import Table
from bgpd.runtime.diff import Change
from tests.fabric.masq_node import alone
from tests.fabric.netns import Lab
from tests.fabric.policy_node import link
from tests.fabric.reach import ping
from tests.fabric.stack_table import StackTable

pytestmark = pytest.mark.needs("mount", "nft")

NOBODY = 1  # a set without rules
SILENCE_S = 0.25


@dataclass(frozen=True)
class Plan:
    """The outside has no route to the pod: only masquerading leads back."""

    version: int
    pod: str
    node: str
    outside: str
    length: int


PLANS = (
    Plan(4, "10.244.7.10", "192.0.2.1", "192.0.2.2", 24),
    Plan(6, "fd44:7::10", "2001:db8::1", "2001:db8::2", 64),
)
both = pytest.mark.parametrize("plan", PLANS, ids=["IPv4", "IPv6"])


class Node:
    def __init__(self, lab: Lab, bpffs: Path) -> None:
        self.node, self.outside = lab.namespace("node"), lab.namespace("outside")
        self.directory = bpffs / "bgpd"
        self.installed = loader.install(loader.shipped("policy"), self.directory)
        lab.link(self.node, "eth0", self.outside, "eth0")
        self.table = StackTable(self.node, self.installed, self.directory)
        for plan in PLANS:
            self.node.add_address("lo", alone(plan.pod))
            self.node.add_address("eth0", f"{plan.node}/{plan.length}")
            self.outside.add_address("eth0", f"{plan.outside}/{plan.length}")
            self.table.translate(plan.version, plan.pod, plan.node)
        self.isolate()

    def isolate(self, egress: int = 0, ingress: int = 0) -> None:
        value = layout.PEER.pack(*Peer(101, egress, ingress))
        keys = [layout.policy_address(ip_address(plan.pod)) for plan in PLANS]
        self.installed.maps["policy_peers"].update(dict.fromkeys(keys, value))

    def wanted(self, *plans: Plan, parent: str = "eth0") -> Table:
        return self.table.wanted([ip_address(plan.pod) for plan in plans], link(self.node, parent)[0])

    def sends(self, plan: Plan) -> bool:
        return ping(self.node, plan.outside, source=plan.pod, timeout_s=SILENCE_S)

    def serves(self, plan: Plan) -> bool:
        """By the node's address."""
        return ping(self.outside, plan.node, timeout_s=SILENCE_S)


@pytest.fixture
def telling(lab: Lab) -> None:
    """A kernel that does. It is asked before there is a node, which is a while's work where a kernel is emulated."""
    del lab  # only here so that privileges are looked at first
    if not features.can_tell_netns():
        pytest.skip("this kernel does not tell a program where a packet was sent: Linux 6.15 does")


@pytest.fixture
def node(lab: Lab, bpffs: Path) -> Iterator[Node]:
    made = Node(lab, bpffs)
    yield made
    made.table.close()


def test_rules_are_asked_before_masquerading_and_after_services(node: Node) -> None:
    """Answers are let through, to both: a flow is known from either side."""
    node.table.apply(None, node.wanted(*PLANS))
    for plan in PLANS:
        assert (node.sends(plan), node.serves(plan)) == (True, True)
    node.isolate(egress=NOBODY)
    for plan in PLANS:
        assert (node.sends(plan), node.serves(plan)) == (False, True)
    node.isolate(ingress=NOBODY)
    for plan in PLANS:
        assert (node.sends(plan), node.serves(plan)) == (True, False)


def test_the_rules_are_there_as_long_as_such_pods_are(node: Node) -> None:
    """From an earlier table too, and back."""
    tables = [node.wanted(), node.wanted(PLANS[0]), node.wanted(*PLANS), node.wanted()]
    node.isolate(egress=NOBODY)
    for have, want in zip([None, *tables], tables, strict=False):
        node.table.apply(have, want)
        asked = [not want.sets[f"stack{plan.version}"] for plan in PLANS]
        assert [node.sends(plan) for plan in PLANS] == asked


@both
def test_what_leaves_by_no_parent_says_nothing_to_its_queue(node: Node, plan: Plan) -> None:
    """Queues sort by the same word that tells a parent of a verdict."""
    told = f"meta priority {ORIGIN_STACK >> 16:x}:{ORIGIN_STACK & 0xFFFF:x} drop"
    chain = f"chain leaving {{ type filter hook postrouting priority srcnat + 1; {told}; }}"
    node.node.run(["nft", "-f", "-"], stdin=f"table inet uplink {{\n{chain}\n}}")
    node.table.apply(None, node.wanted(*PLANS))
    assert not node.sends(plan)
    node.table.apply(node.wanted(*PLANS), node.wanted(*PLANS, parent="lo"))
    assert node.sends(plan)


@pytest.mark.usefixtures("telling")
@both
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_what_was_masqueraded_is_not_taken_for_a_forgery(node: Node, plan: Plan, known: bool) -> None:
    """Where the kernel tells who sends, it tells that it was not the node; in mode L2 that is so. There may be
    no room for the address, or the node does not have it.
    """
    parent = link(node.node, "eth0")[0]
    installed = node.node.call(lambda: parents.install(node.directory, ipvlans.KIND))
    elsewhere = node.node.call(own_cookie) + 1  # than where the packets of this test come from

    def tell(address: str, flags: int) -> None:
        key = layout.IPVLAN_ADDRESS_KEY.pack(parent, layout.policy_address(ip_address(address)))
        installed.maps["ipvlan_addresses"].update({key: layout.IPVLAN_OWNER.pack(0, elsewhere, flags, 0)})

    assert node.sends(plan)  # and the neighbor is known
    if known:
        tell(plan.node, 0)
    tell("::", OwnerFlag.STACK)
    target = node.node.call(lambda: filters.actuator(installed, node.directory, ipvlans.KIND))
    asked: Programs = {hook: each.id for hook, each in parents.programs(installed, ipvlans.KIND).items()}
    assert node.node.call(lambda: list(asyncio.run(target.apply([Change(parent, asked, None)])))) == [DONE]
    assert not node.sends(plan)
    node.table.apply(None, node.wanted(*PLANS))
    assert node.sends(plan)
    tell("::", 0)
    assert not node.sends(plan)
