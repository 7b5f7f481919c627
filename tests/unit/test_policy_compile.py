"""What the compiler puts into the maps says the same as the reference, at the end of every change and on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgpd.model.labels import Selector
from bgpd.model.pod import Pod
from bgpd.model.policy import Direction, IpBlock, NetworkPolicy, PolicyRule, Snapshot
from bgpd.model.prefix import Address
from bgpd.policy.compile import Compiler
from bgpd.policy.entries import Contents
from bgpd.policy.evaluate import Decision, Flow, Reason, evaluate, owner
from bgpd.policy.transition import changes
from tests.unit.policy_cases import FLOWS, NODE, changed, snapshots
from tests.unit.policy_reader import Maps, look_up

SOME = 150  # flows of each example, drawn anew for each


@given(snapshots(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_maps_say_what_the_reference_says(snapshot: Snapshot, rand: random.Random) -> None:
    """The same verdict for each direction, and a rule that allows is one that allows."""
    contents = Compiler().advance(snapshot)[-1]
    for flow in rand.sample(FLOWS, SOME):
        for direction, decision in judged(snapshot, flow):
            found = look_up(contents, flow, direction)
            assert found.allowed == decision.allowed, (flow, direction, decision)
            if decision.reason is Reason.RULE:
                assert contents.cookies[found.cookie] in decision.rules


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_the_compiler_remembers_changes_nothing(data: Any) -> None:
    """After any changes the contents are, to the number, those of a compiler that sees only the last snapshot."""
    compiler, snapshot = Compiler(), data.draw(snapshots())
    compiler.advance(snapshot)
    for _ in range(4):
        snapshot = data.draw(changed(snapshot))
        assert compiler.advance(snapshot)[-1] == Compiler().advance(snapshot)[-1]
    assert compiler.advance(replace(snapshot, pods=dict(snapshot.pods))) == (Compiler().advance(snapshot)[-1],)


@given(st.data(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_moment_of_a_change_is_neither_old_nor_new(data: Any, rand: random.Random) -> None:
    """After each single write, each direction says what it said before, or what it says after.

    With several changes at once, each end of a flow may be seen as it was or as it is.
    """
    compiler, before = Compiler(), data.draw(snapshots())
    contents = compiler.advance(before)[-1]
    after = data.draw(changed(before))
    some = [
        (
            flow,
            direction,
            readings((before, after), flow, direction),
        )
        for flow in rand.sample(FLOWS, 60)
        if NODE not in (flow.client, flow.server)
        for direction in Direction
    ]
    maps = Maps.of(contents)
    for stage in compiler.advance(after):
        for write in changes(contents, stage):
            maps.apply(write)
            for flow, direction, allowed in some:
                assert look_up(maps, flow, direction).allowed in allowed, (flow, direction, write)
        contents = stage
    assert list(changes(contents, compiler.advance(after)[-1])) == []
    assert maps == Maps.of(contents)


def judged(snapshot: Snapshot, flow: Flow) -> Iterator[tuple[Direction, Decision]]:
    """What the maps are asked about: traffic between a pod and its node never comes to a hook."""
    if NODE not in (flow.client, flow.server):
        told = evaluate(snapshot, flow)
        yield Direction.EGRESS, told.egress
        yield Direction.INGRESS, told.ingress


def readings(moments: tuple[Snapshot, Snapshot], flow: Flow, direction: Direction) -> set[bool]:
    """What the direction may say while one moment becomes the other."""
    return {mixed(here, there, flow, direction) for here in moments for there in moments}


def mixed(here: Snapshot, there: Snapshot, flow: Flow, direction: Direction) -> bool:
    """What the pod at one end, as one snapshot has it and its policies, says of the other end as another has it."""
    own, other = (flow.client, flow.server) if direction is Direction.EGRESS else (flow.server, flow.client)
    key, peer = owner(here, own), owner(there, other)
    if key is None or key not in here.local or own == other:
        return True
    pods = {} if key not in here.pods else {key: replace(here.pods[key], ips=(own,), host_network=False)}
    if peer is not None and peer in there.pods:
        pods["peer"] = replace(there.pods[peer], ips=(other,), host_network=False, finished=False)
    told = evaluate(Snapshot(pods, there.namespaces, here.policies, {key: (own,)}), flow)
    return told.egress.allowed if direction is Direction.EGRESS else told.ingress.allowed


def test_an_empty_node_has_nothing() -> None:
    """No pod here, no entry: whatever the cluster has is none of this node's business."""
    nothing = Snapshot({}, {}, {}, {})
    assert Compiler().advance(nothing) == (Contents(),)


def test_an_address_forgets_a_block_with_the_pod_that_showed_it_too() -> None:
    """The policy goes with the other pod's address, in one change."""
    address = (IPv4Address("10.0.0.2"),)
    rule = PolicyRule((IpBlock(IPv4Network("10.0.0.0/8"), ()),), None)
    policy = NetworkPolicy("x", "p", "", Selector(), (rule,), None)
    mine, selected, other = Pod("y", "k", ips=address), Pod("x", "k"), Pod("z", "k", ips=address)
    pods = {each.key: each for each in (mine, selected, other)}
    local: dict[str, tuple[Address, ...]] = {mine.key: (), selected.key: (IPv4Address("10.0.0.3"),)}
    compiler = Compiler()
    compiler.advance(Snapshot(pods, {}, {policy.key: policy}, local))
    after = Snapshot({**pods, other.key: replace(other, ips=())}, {}, {}, local)
    assert compiler.advance(after)[-1] == Compiler().advance(after)[-1]
