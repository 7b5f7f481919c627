"""The programs in pods on ipvlans, by both ways that kernels have: where they are put, found again and taken away.

What the interface is does not matter to that: these are veths, which every kernel has.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpd.datapath import links, loader
from bgpd.model.outcome import DONE, Outcome, Retry
from bgpd.policy import ipvlans, parents, podhooks
from bgpd.policy.podhooks import HookFilters, HookLinks, Place, PodHooks, remove
from bgpd.runtime.diff import Change
from tests.fabric.mounts import bpffs_at
from tests.fabric.netns import Lab, Namespace, missing
from tests.fabric.policy_node import link

WAYS = ("links", "filters")
NUMBER = 0xFFFF_FFFF_0000_0001  # both halves of it are negative, or not, by themselves
OPEN = Path("/proc/self/fd")
ALL = "'1,6 0 0 4294967295' classid 1:1"  # a classic program that takes whatever there is, without a module
FILTERS = ["tc", "filter", "show", "dev", "eth0", "ingress"]


@pytest.fixture(scope="module")
def bpffs() -> Iterator[Path]:
    if reason := missing("mount", "tc"):
        pytest.skip(reason)
    with Lab() as lab, bpffs_at(lab.directory / "bpf") as place:
        loader.install(loader.shipped("policy"), place / "bgpd")
        yield place


class Node:
    """What is wanted in pods, and one daemon's actuator after another."""

    def __init__(self, lab: Lab, directory: Path, way: str) -> None:
        self.lab, self._directory, self._way = lab, directory, way
        self.by_links = way == "links"
        self.node = lab.namespace("node")
        self.wanted: dict[int, Place] = {}
        self.removed: list[int] = []
        self.restart()

    def restart(self) -> None:
        """Another daemon, which puts its program behind those that are in pods."""
        installed = parents.install(self._directory, ipvlans.KIND)
        podhooks.Shared(installed, parents.program(installed, podhooks.FILTER)).put()
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
    if request.param == "links" and not links.has_tcx():
        pytest.skip("this kernel has no tcx")
    with Lab() as lab:
        made = Node(lab, bpffs / "bgpd", request.param)
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


@pytest.mark.parametrize(
    "meddling",
    [
        ["qdisc del dev eth0 clsact", "qdisc add dev eth0 ingress"],
        ["qdisc del dev eth0 clsact", "qdisc add dev eth0 ingress_block 7 clsact"],
        ["filter del dev eth0 ingress", f"filter add dev eth0 ingress pref 1 protocol ip bpf bytecode {ALL}"],
        [f"filter add dev eth0 ingress pref 1 protocol all bpf bytecode {ALL}"],
    ],
    ids=["another qdisc", "another qdisc's block", "another filter", "a filter before it"],
)
def test_what_somebody_puts_in_the_place_of_a_program_goes(node: Node, meddling: list[str]) -> None:
    """By tcx nobody can. Else a pod may do all that with its own interface, and is named for it."""
    pod = node.pod("a")
    node.want(pod)
    for line in meddling:
        pod.run(["tc", *shlex.split(line)], check=not node.by_links)
    assert node.asks(pod) == node.by_links
    assert (node.found() == node.wanted) == node.by_links
    node.want(pod)
    assert node.found() == node.wanted
    assert node.asks(pod)
    assert node.removed == ([] if node.by_links else [NUMBER])


def test_an_interface_in_the_place_of_one_that_went_has_its_program(node: Node) -> None:
    """A namespace of the same name, its interface of the same index: nothing of that tells one from the other."""
    before = node.pod("a")
    index = link(before, "eth0")[0]
    node.want(before)
    node.node.ip("link del veth-a")  # with its other end, at once; a namespace takes its time
    node.lab.remove(before)
    after = node.lab.namespace("a")
    node.node.ip(
        f"link add veth-a type veth peer name eth0 index {index} netns {after.netns_name}", "link set veth-a up"
    )
    after.link_up("eth0")
    assert not node.asks(after)
    node.want(after)
    assert node.asks(after)


def test_the_next_daemon_goes_on_where_one_was_killed(node: Node, bpffs: Path) -> None:
    """Between putting a pin beside the one that it replaces, and the renaming."""
    pod = node.pod("a")
    node.want(pod)
    for pin in (bpffs / "bgpd").glob("ipvlan_pod_at_*"):
        pin.rename(pin.with_name(f"{pin.name}_new"))
    node.restart()
    node.want(pod)
    node.restart()
    assert node.found() == node.wanted
    assert node.asks(pod)
    assert not list((bpffs / "bgpd").glob("*_new"))


def test_another_release_s_program_is_replaced_where_it_is(node: Node, bpffs: Path) -> None:
    """By that of a map that is new: whoever removes the program first lets packets pass meanwhile."""
    pod = node.pod("a")
    node.want(pod)
    before = link_ids(bpffs)
    (bpffs / "bgpd" / "ipvlan_jump").unlink()
    node.restart()
    assert node.found() != node.wanted
    node.want(pod)
    assert node.found() == node.wanted
    assert node.asks(pod)
    assert link_ids(bpffs) == before


def test_nobody_is_blamed_for_what_cannot_be_looked_at(node: Node) -> None:
    """A daemon that has no file left to open has not been meddled with."""
    pod = node.pod("a")
    node.want(pod)

    async def look() -> None:
        with no_more_files(), contextlib.suppress(OSError):  # the whole look may fail
            await node.hooks.observe()

    asyncio.run(look())
    assert node.removed == []
    node.want(pod)
    assert node.found() == node.wanted
    assert node.asks(pod)


def test_what_cannot_be_put_elsewhere_stays_where_it_is(node: Node) -> None:
    """Until it can: no packet passes unasked meanwhile."""
    before, after = node.pod("a"), node.pod("b")
    node.want(before)
    place = Place(after.path, link(after, "eth0")[0])
    node.wanted = {NUMBER: place}
    have = node.found().get(NUMBER)

    async def move() -> list[Outcome]:
        with no_more_files():
            return list(await node.hooks.apply([Change(NUMBER, place, have)]))

    async def scenario() -> list[Outcome]:
        await asyncio.to_thread(lambda: None)  # what a loop and its threads open
        return await move()

    (outcome,) = asyncio.run(scenario())
    assert isinstance(outcome, Retry)
    assert (node.asks(before), node.asks(after)) == (True, False)
    node.want(after)
    assert (node.asks(before), node.asks(after)) == (False, True)
    assert node.removed == []


def test_nothing_stays_open_of_pods_that_ended(node: Node) -> None:
    pod = node.pod("a")
    node.want(pod)
    node.want(None)
    gc.collect()
    before = len(list(OPEN.iterdir()))
    for number in range(1, 6):
        at = Place(pod.path, link(pod, "eth0")[0])
        assert asyncio.run(node.hooks.apply([Change(number, at, None)])) == [DONE]
        assert asyncio.run(node.hooks.apply([Change(number, None, at)])) == [DONE]
    gc.collect()
    assert len(list(OPEN.iterdir())) == before


def link_ids(bpffs: Path) -> list[int]:
    found = [links.pinned(pin) for pin in (bpffs / "bgpd").glob("ipvlan_pod_at_*")]
    return [each.id for each in found if each is not None]


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_filters_go_with_the_product(node: Node) -> None:
    """Those of pods that have ended went with them."""
    pod, ended = node.pod("a"), node.pod("b")
    node.want(pod)
    node.lab.remove(ended)
    there = "bpf" in pod.run(FILTERS).stdout
    assert len(remove([ended.path, pod.path])) == there
    assert node.asks(pod) != there
