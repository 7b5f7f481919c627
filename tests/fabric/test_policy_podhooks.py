"""The programs in pods on ipvlans, by both ways that kernels have: where they are put, found again and taken away.

What the interface is does not matter to that: these are veths, which every kernel has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpd.datapath import links, loader
from bgpd.model.outcome import DONE
from bgpd.policy import ipvlans
from bgpd.policy.podhooks import HookFilters, HookLinks, Place, PodHooks, remove
from bgpd.runtime.diff import Change
from tests.fabric.ipvlan_node import mounted
from tests.fabric.netns import Lab, Namespace, missing
from tests.fabric.policy_node import link

WAYS = ("links", "filters")
NUMBER = 0xFFFF_FFFF_0000_0001  # both halves of it are negative, or not, by themselves
FILTERS = ["tc", "filter", "show", "dev", "eth0", "ingress"]


@pytest.fixture(scope="module")
def bpffs() -> Iterator[Path]:
    if reason := missing("mount", "tc"):
        pytest.skip(reason)
    with Lab() as lab, mounted(lab) as place:
        loader.install(loader.shipped("policy"), place / "bgpd")
        yield place


class Node:
    """What is wanted in pods, and one daemon's actuator after another."""

    def __init__(self, lab: Lab, directory: Path, way: str) -> None:
        self.lab, self._directory, self._way = lab, directory, way
        self.node = lab.namespace("node")
        self.wanted: dict[int, Place] = {}
        self.removed: list[int] = []
        self.restart()

    def restart(self) -> None:
        """Another daemon, which puts its program behind those that are in pods."""
        installed = ipvlans.install(self._directory)
        self.hooks: PodHooks = (
            HookLinks(installed, self._directory, lambda: self.wanted)
            if self._way == "links"
            else HookFilters(installed, lambda: self.wanted, self.removed.append)
        )

    def pod(self, name: str) -> Namespace:
        pod = self.lab.namespace(name)
        self.lab.link(self.node, f"veth-{name}", pod, "eth0")
        return pod

    def want(self, pod: Namespace | None) -> None:
        """The program in this one, by way of what there is, as a loop does it."""
        place = None if pod is None else Place(pod.path, link(pod, "eth0")[0])
        self.wanted = {} if place is None else {NUMBER: place}
        have = self.found()
        if have != self.wanted:
            assert asyncio.run(self.hooks.apply([Change(NUMBER, place, have.get(NUMBER))])) == [DONE]

    def found(self) -> dict[int, Place]:
        return dict(asyncio.run(self.hooks.observe()))

    def asks(self, pod: Namespace) -> bool:
        """Whether a program is asked there, whatever anybody believes. A packet is dropped: it is of no known pod."""
        before = self._received(pod)
        self.node.ip(f"neigh replace 192.0.2.2 lladdr {link(pod, 'eth0')[1].hex(':')} dev veth-{pod.name}")
        self.node.run(["ping", "-c1", "-W1", "-I", f"veth-{pod.name}", "192.0.2.2"], check=False)
        return self._received(pod) == before

    def _received(self, pod: Namespace) -> int:
        lines = pod.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
        names, values = (line.split() for line in lines if line.startswith("Ip:"))
        return int(values[names.index("InReceives")])


@pytest.fixture(params=WAYS)
def node(request: pytest.FixtureRequest, bpffs: Path) -> Iterator[Node]:
    with Lab() as lab:
        made = Node(lab, bpffs / "bgpd", request.param)
        if request.param == "links" and not made.node.call(links.has_tcx):
            pytest.skip("this kernel has no tcx")
        made.node.ip("addr add 192.0.2.1/24 dev lo")
        yield made
        made.want(None)


def test_the_next_daemon_finds_what_is_there(node: Node, bpffs: Path) -> None:
    pod = node.pod("a")
    assert not node.asks(pod)
    node.want(pod)
    assert node.asks(pod)
    pins = [pin.stat().st_ino for pin in bpffs.glob("bgpd/ipvlan_pod_at_*")]
    node.restart()
    assert node.found() == node.wanted
    assert node.asks(pod)
    assert [pin.stat().st_ino for pin in bpffs.glob("bgpd/ipvlan_pod_at_*")] == pins
    node.want(None)
    assert not node.asks(pod)
    assert (node.found(), node.removed) == ({}, [])


@pytest.mark.parametrize("gone", [False, True], ids=["there", "gone"])
def test_a_pod_that_comes_back_in_another_namespace_has_its_program_there(node: Node, gone: bool) -> None:
    """One of a StatefulSet has its address again, and so its number; nobody has removed anything."""
    before, after = node.pod("a"), node.pod("b")
    node.want(before)
    if gone:
        node.lab.remove(before)
    node.want(after)
    assert node.asks(after)
    assert node.found() == node.wanted
    assert gone or not node.asks(before)
    assert node.removed == []


def test_what_ends_by_itself_is_nobody_s_doing(node: Node) -> None:
    """Until its endpoint goes it is as good as there."""
    first, second = node.pod("a"), node.pod("b")
    node.want(first)
    first.ip("link del eth0")
    assert node.found() == node.wanted
    node.want(second)
    node.lab.remove(second)
    assert node.found() == node.wanted
    node.want(None)
    assert (node.found(), node.removed) == ({}, [])


def test_what_somebody_removes_is_put_back(node: Node, bpffs: Path) -> None:
    """A pin only the node can remove, and its pod is policed on; a filter the pod can, and is named for it."""
    pod = node.pod("a")
    node.want(pod)
    pins = list((bpffs / "bgpd").glob("ipvlan_pod_at_*"))
    for pin in pins:
        pin.unlink()
    pod.run(["tc", "filter", "del", "dev", "eth0", "ingress"], check=False)
    assert node.asks(pod) == bool(pins)
    assert node.found() != node.wanted
    node.want(pod)
    assert node.found() == node.wanted
    assert node.asks(pod)
    assert [pin.exists() for pin in pins] == [True] * len(pins)
    assert node.removed == ([] if pins else [NUMBER])


def test_filters_go_with_the_product(node: Node) -> None:
    """Those of pods that have ended went with them."""
    pod, ended = node.pod("a"), node.pod("b")
    node.want(pod)
    node.lab.remove(ended)
    there = "bpf" in pod.run(FILTERS).stdout
    assert len(remove([ended.path, pod.path])) == there
    assert node.asks(pod) != there
