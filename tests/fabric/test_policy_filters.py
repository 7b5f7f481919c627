"""The programs at a macvlan's parent by clsact, as on kernels without tcx; any kernel can do it."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from bgpd.datapath.links import Hook
from bgpd.model.outcome import DONE, Blocked, Retry
from bgpd.policy import filters, parents
from bgpd.policy.filters import ParentFilters
from bgpd.policy.parents import Programs
from bgpd.runtime.reconcile import Desired, Reconciler, Round
from tests.fabric.macvlan_node import MacvlanNode
from tests.fabric.netns import Lab
from tests.fabric.parent_node import PLANS
from tests.fabric.reach import ping

pytestmark = pytest.mark.needs("mount", "tc")

NOBODY = 1  # a set without rules
SILENCE_S = 0.25
SOON_S = 5.0  # on a busy machine; the loop looks by itself after a minute
SIDES = ("ingress", "egress")


@pytest.fixture
def node(lab: Lab, bpffs: Path) -> MacvlanNode:
    made = MacvlanNode(lab, bpffs)
    made.links = ParentFilters(made.installed)
    made.isolate("b", ingress=NOBODY)
    return made.enforcing()


def closed(node: MacvlanNode) -> list[bool]:
    """Whether nobody on the wire reaches the isolated pod, by family."""
    return [not ping(node.outside, plan.b, source=plan.outside, timeout_s=SILENCE_S) for plan in PLANS]


def tc(node: MacvlanNode, line: str) -> str:
    return node.node.run(["tc", *line.split()]).stdout


def filters_of(node: MacvlanNode, side: str) -> list[str]:
    shown = tc(node, f"filter show dev eth0 {side}")
    return [line for line in shown.splitlines() if "handle" in line]


def test_what_is_wanted_is_there_and_wanting_it_again_changes_nothing(node: MacvlanNode) -> None:
    assert (node.observe(), closed(node)) == ({node.parent: node.wanted()}, [True, True])
    before = [filters_of(node, side) for side in SIDES]
    assert list(node.apply(node.wanted())) == [DONE]
    assert [filters_of(node, side) for side in SIDES] == before
    assert [len(each) for each in before] == [1, 1]
    for plan in PLANS:
        assert ping(node.pods["b"], plan.outside, source=plan.b, timeout_s=2)


def test_the_next_daemon_finds_it(node: MacvlanNode) -> None:
    assert node.observe(ParentFilters(node.installed)) == {node.parent: node.wanted()}


def test_a_filter_that_somebody_removed_is_missed_and_put_back(node: MacvlanNode) -> None:
    tc(node, "filter del dev eth0 ingress")
    assert node.observe() == {node.parent: {Hook.EGRESS: node.wanted()[Hook.EGRESS]}}
    assert closed(node) == [False, False]
    node.apply(node.wanted())
    assert (node.observe(), closed(node)) == ({node.parent: node.wanted()}, [True, True])
    tc(node, "qdisc del dev eth0 clsact")
    assert node.observe() == {}
    node.apply(node.wanted())
    assert (node.observe(), closed(node)) == ({node.parent: node.wanted()}, [True, True])


@pytest.mark.parametrize("removal", ["filter del dev eth0 ingress", "qdisc del dev eth0 clsact"])
def test_a_removal_is_noticed_and_mended_at_once_and_counts_as_drift(node: MacvlanNode, removal: str) -> None:
    """Not only when the loop looks again by itself."""
    rounds: asyncio.Queue[Round] = asyncio.Queue()
    want = Desired({node.parent: node.wanted()}, complete=True)
    loop: Reconciler[int, Programs] = Reconciler("policy_parents", lambda: want, node.links, int, rounds.put_nowait)

    async def removed() -> Round:
        tasks = [asyncio.ensure_future(each) for each in (loop.run(), filters.watch(lambda: loop.have, loop.suspect))]
        try:
            assert await loop.wait_until(loop.kick(), SOON_S)
            await asyncio.to_thread(subprocess.run, ["tc", *removal.split()], check=True)
            async with asyncio.timeout(SOON_S):
                return await rounds.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    assert node.here(removed).drift == 1
    assert (node.observe(), closed(node)) == ({node.parent: node.wanted()}, [True, True])


def test_a_filter_of_somebody_else_neither_comes_first_nor_goes(node: MacvlanNode) -> None:
    """One that lets everything pass, at the preference that ours has."""
    node.apply(None)
    for side in SIDES:
        argv = ["tc", *f"filter add dev eth0 {side} protocol all pref 1 handle 7 bpf direct-action bytecode".split()]
        node.node.run([*argv, "1,6 0 0 0"])  # BPF_RET 0, which is TC_ACT_OK
    assert closed(node) == [False, False]
    node.apply(node.wanted())
    assert closed(node) == [True, True]
    node.apply(None)
    assert node.observe() == {}
    assert [len(filters_of(node, side)) for side in SIDES] == [1, 1]


def test_a_program_that_is_not_the_wanted_one_is_replaced(node: MacvlanNode) -> None:
    """As after an upgrade: the object is loaded anew, and nothing is open in between."""
    before = node.wanted()
    for pin in node.directory.glob("macvlan_*gress*"):
        pin.unlink()
    node.installed = parents.install(node.directory)
    node.links = ParentFilters(node.installed)
    assert node.observe() == {node.parent: before} != {node.parent: node.wanted()}
    node.apply(node.wanted())
    assert (node.observe(), closed(node)) == ({node.parent: node.wanted()}, [True, True])
    assert [len(filters_of(node, side)) for side in SIDES] == [1, 1]


def test_taking_it_away_leaves_nothing_of_ours(node: MacvlanNode) -> None:
    removed = node.node.call(lambda: filters.remove([parents.MACVLAN]))
    assert sorted(removed) == [
        f"clsact {name} at interface {node.parent}" for name in ("macvlan_egress", "macvlan_ingress")
    ]
    assert (node.observe(), closed(node)) == ({}, [False, False])
    assert node.node.call(lambda: filters.remove([parents.MACVLAN])) == []
    assert list(node.apply(None)) == [DONE]


def test_an_interface_that_is_gone_is_tried_again_and_one_with_another_qdisc_waits(node: MacvlanNode) -> None:
    node.apply(None)
    tc(node, "qdisc del dev eth0 clsact")
    tc(node, "qdisc add dev eth0 ingress")
    (outcome,) = node.apply(node.wanted())
    assert isinstance(outcome, Blocked) and "another qdisc" in outcome.reason
    node.node.ip("link del eth0")
    (outcome,) = node.apply(node.wanted())
    assert isinstance(outcome, Retry) and "No such device" in outcome.reason
    assert list(node.apply(None)) == [DONE]
