"""Policies that do not fit: whose pods are held back, on what, and that nobody gets through whom no rules let in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bgpd.model.labels import Selector
from bgpd.model.policy import (
    Direction,
    IpBlock,
    NetworkPolicy,
    Overflow,
    PodPeer,
    PolicyRule,
    PortRange,
    Protocol,
    Snapshot,
)
from bgpd.policy.compile import Compiler
from bgpd.policy.entries import PLACES, Contents, entries_in
from bgpd.policy.evaluate import Flow, evaluate
from bgpd.policy.fit import Fate, Fitting, shortage
from tests.unit.policy_cases import FLOWS, NODE, changed, policies, snapshots
from tests.unit.policy_reader import look_up
from tests.unit.test_policy_evaluate import CLIENT, FAR, OTHER, WEB, allow, cluster, into, label

ROOMY = dict.fromkeys(PLACES, 100_000)
LOCAL = ("x/web", "x/other")
FROM_CLIENT = into(allow(IpBlock(ip_network(f"{CLIENT}/32"))), pods=label("app", "web"))


def room(**places: int) -> dict[str, int]:
    return ROOMY | {f"policy_{name}": capacity for name, capacity in places.items()}


def named(name: str, policy: NetworkPolicy) -> NetworkPolicy:
    return replace(policy, name=name, uid=f"uid of {name}")


def ranges(count: int, *peers: Any) -> PolicyRule:
    """So many entries in policy_ranges."""
    return allow(*peers, ports=tuple(PortRange(Protocol.TCP, 4 * each, 4 * each + 1) for each in range(1, count + 1)))


def passes(contents: Contents, client: str, server: str, port: int = 80) -> bool:
    flow = Flow(ip_address(client), ip_address(server), Protocol.TCP, port)
    return look_up(contents, flow, Direction.INGRESS).allowed


class Node:
    """A node as the daemon keeps it: what is planned is programmed, and is there when it plans again."""

    def __init__(self, capacity: Mapping[str, int], overflow: Overflow = Overflow.KEEP) -> None:
        self.fitting, self.overflow, self.capacity = Fitting(capacity), overflow, capacity
        self.have = Contents()

    def see(self, snapshot: Snapshot, *, again: bool = True) -> Contents:
        stages = self.fitting.advance(snapshot, self.have, self.overflow, again=again)
        assert shortage(self.have, stages[-1], self.capacity) is None
        self.have = stages[-1]
        return self.have

    @property
    def misfits(self) -> dict[str, dict[str, Fate]]:
        return {misfit.policy: dict(misfit.pods) for misfit in self.fitting.misfits}


def both(web: NetworkPolicy, *others: NetworkPolicy) -> Snapshot:
    """Two pods of this node, of which `web` has `web`."""
    return cluster(named("web", web), *others, local=LOCAL)


BIG = replace(FROM_CLIENT, ingress=(ranges(9, IpBlock(ip_network(f"{FAR}/32"))),))
SMALL = named("small", into(ranges(3), pods=label("app", "other")))


# --- who is held ----------------------------------------------------------------------------------------------------


def test_what_fits_is_as_the_compiler_has_it() -> None:
    node = Node(room(ranges=12))
    assert node.see(both(BIG, SMALL)) == Compiler().advance(both(BIG, SMALL))[-1]
    assert not node.misfits


def test_an_edit_that_does_not_fit_leaves_its_pods_on_their_last_good_rules_and_nobody_else() -> None:
    """It is named, with what it asks for and where; the policy of another pod that came with it is in force."""
    node = Node(room(ranges=8))
    node.see(both(FROM_CLIENT))
    contents = node.see(both(BIG, SMALL))
    assert (passes(contents, CLIENT, WEB), passes(contents, FAR, WEB, 4)) == (True, False)
    assert (passes(contents, FAR, OTHER, 4), passes(contents, FAR, OTHER, 3)) == (True, False)
    assert node.misfits == {"x/web": {"x/web": Fate.KEPT}}
    (misfit,) = node.fitting.misfits
    assert (misfit.place, misfit.entries, misfit.needed, misfit.capacity) == ("policy_ranges", 9, 12, 8)
    assert misfit.uid == "uid of web"
    assert "x/web keeps its last good rules" in misfit.reason
    assert "Most entries are of x/web (9), x/small (3)" in misfit.reason


def test_to_hold_a_pod_takes_no_room_whatever_its_policies_are_called() -> None:
    """`a` comes before `a-b`, and must when both are held: the first that allows is named for a port."""
    web = label("app", "web")
    good = named("a", into(ranges(5), pods=web)), named("a-b", into(ranges(6), pods=web))
    node = Node(room(ranges=8))
    before = node.see(cluster(*good, local=LOCAL))
    assert len(before.ranges) == 6
    node.see(cluster(*good, named("z", into(ranges(9), pods=web)), local=LOCAL))
    assert node.misfits == {"x/z": {"x/web": Fate.KEPT}}
    assert node.have.ranges == before.ranges


def test_by_the_setting_they_are_closed() -> None:
    node = Node(room(ranges=8), Overflow.CLOSE)
    node.see(both(FROM_CLIENT))
    contents = node.see(both(BIG, SMALL))
    assert not passes(contents, CLIENT, WEB) and not passes(contents, FAR, WEB, 4)
    assert passes(contents, FAR, OTHER, 4)
    assert node.misfits == {"x/web": {"x/web": Fate.CLOSED}}


def test_a_new_pod_is_closed_and_the_others_of_its_policy_go_on() -> None:
    """Be it that one of this name was here before: it has no rules that it ever had."""
    node = Node(room(cidrs_v4=3))
    before = both(FROM_CLIENT)
    wide = named("wide", into(*(allow(IpBlock(ip_network(f"192.0.{it}.0/24"))) for it in range(9))))
    node.see(replace(before, local={"x/web": ()}))
    wide = replace(wide, pods=label("app", "other"))
    contents = node.see(replace(before, policies={**before.policies, "x/wide": wide}))
    assert not passes(contents, CLIENT, OTHER)
    assert passes(contents, CLIENT, WEB)
    assert node.misfits == {"x/wide": {"x/other": Fate.CLOSED}}


def test_a_pod_that_takes_the_name_of_a_kept_one_is_closed() -> None:
    node = Node(room(ranges=8))
    node.see(both(FROM_CLIENT))
    node.see(both(BIG))
    after = both(BIG)
    successor = replace(after.pods["x/web"], uid="another")
    contents = node.see(replace(after, pods={**after.pods, "x/web": successor}), again=False)
    assert not passes(contents, CLIENT, WEB)
    assert node.misfits == {"x/web": {"x/web": Fate.CLOSED}}


def test_who_was_there_first_stays_however_much_it_has() -> None:
    node = Node(room(ranges=10))
    node.see(both(BIG))
    contents = node.see(both(BIG, SMALL))
    assert passes(contents, FAR, WEB, 4)
    assert node.misfits == {"x/small": {"x/other": Fate.KEPT}}
    assert passes(contents, FAR, OTHER, 3), "it was not isolated, and that is how it stays"


def test_what_the_kernel_has_counts_as_first_when_the_daemon_starts() -> None:
    """What the pod had before nobody knows then, so the one that does not fit is closed."""
    node = Node(room(ranges=10))
    node.see(both(BIG))
    node.fitting = Fitting(node.capacity)
    contents = node.see(both(BIG, SMALL))
    assert passes(contents, FAR, WEB, 4)
    assert node.misfits == {"x/small": {"x/other": Fate.CLOSED}}


def test_what_fits_again_is_in_force_by_itself() -> None:
    """Since the policy asks for less, or another one does, or the pod is gone. What goes makes room once gone."""
    node = Node(room(ranges=10))
    node.see(both(FROM_CLIENT, SMALL))
    node.see(both(BIG, SMALL))
    assert node.misfits
    for fitting in (both(replace(BIG, ingress=(ranges(5),)), SMALL), both(BIG), replace(both(BIG, SMALL), local={})):
        node.see(both(FROM_CLIENT, SMALL))
        node.see(both(BIG, SMALL))
        assert node.misfits
        node.see(fitting)
        assert not node.misfits or node.fitting.may_fit(node.have)
        assert node.see(fitting) == Compiler().advance(fitting)[-1]
        assert not node.misfits


def test_what_is_not_tried_again_stays_held() -> None:
    """Whatever else changes, be it another policy of the pod; that may ask for less, and is worth a try."""
    node = Node(room(ranges=8))
    node.see(both(FROM_CLIENT))
    node.see(both(BIG))
    after = both(BIG, SMALL)
    fewer = {key: pod for key, pod in after.pods.items() if key != "y/far"}
    contents = node.see(replace(after, pods=fewer), again=False)
    assert passes(contents, CLIENT, WEB)
    assert passes(contents, CLIENT, OTHER, 4) and not passes(contents, CLIENT, OTHER, 3)
    assert node.misfits == {"x/web": {"x/web": Fate.KEPT}}
    assert not node.fitting.may_fit(node.have)
    contents = node.see(both(BIG, named("more", replace(SMALL, pods=label("app", "web")))), again=False)
    assert passes(contents, CLIENT, WEB) and not passes(contents, FAR, WEB, 4)
    assert node.misfits == {"x/web": {"x/web": Fate.KEPT}}
    assert node.fitting.may_fit(node.have)


def test_what_has_been_changed_itself_is_tried_at_once() -> None:
    """In force if it fits now or is gone, and else it is held as before."""
    for after in (both(FROM_CLIENT), both(replace(BIG, ingress=(ranges(5),))), cluster(local=LOCAL)):
        node = Node(room(ranges=8))
        node.see(both(FROM_CLIENT))
        node.see(both(BIG))
        node.see(both(replace(BIG, ingress=(ranges(10),))), again=False)
        assert node.misfits == {"x/web": {"x/web": Fate.KEPT}}
        assert node.fitting.misfits[0].entries == 10
        assert node.see(after, again=False) == Compiler().advance(after)[-1]
        assert node.fitting.all_fits


def test_a_pod_that_comes_to_what_did_not_fit_is_held_like_those_it_came_to() -> None:
    """And one that leaves it is not."""
    node = Node(room(ranges=8))
    everybody = replace(BIG, pods=Selector())
    node.see(replace(both(FROM_CLIENT), local={"x/web": ()}))
    node.see(replace(both(everybody), local={"x/web": ()}))
    assert node.misfits == {"x/web": {"x/web": Fate.KEPT}}
    contents = node.see(both(everybody), again=False)
    assert node.misfits == {"x/web": {"x/web": Fate.KEPT, "x/other": Fate.CLOSED}}
    assert not passes(contents, CLIENT, OTHER)
    contents = node.see(replace(both(everybody), local={"x/other": ()}), again=False)
    assert node.misfits == {"x/web": {"x/other": Fate.CLOSED}}
    assert not passes(contents, CLIENT, OTHER)
    node.see(replace(both(everybody), local={}), again=False)
    assert node.fitting.all_fits


class Labels(dict[str, str]):
    """Count how often somebody asks them."""

    asked = 0

    def get(self, *of: Any) -> Any:
        self.asked += 1
        return super().get(*of)

    def __getitem__(self, name: str) -> str:
        self.asked += 1
        return super().__getitem__(name)


def test_a_pod_is_not_looked_at_again_because_something_does_not_fit() -> None:
    """Neither when others change meanwhile nor when it is tried again."""
    node, labels = Node(room(ranges=8)), Labels(app="client")
    from_clients = named("other", into(allow(PodPeer(label("app", "client"))), pods=label("app", "other")))
    big = both(replace(BIG, ingress=(ranges(9, PodPeer(Selector(), label("team", "b"))),)), from_clients)
    pods = {**big.pods, "x/client": replace(big.pods["x/client"], labels=labels)}
    node.see(replace(both(FROM_CLIENT, from_clients), pods=pods))
    assert labels.asked, "or this test would see nothing"
    labels.asked = 0
    node.see(replace(big, pods=pods))
    assert node.misfits
    node.see(replace(big, pods=pods, local={"x/web": ()}), again=False)
    node.see(replace(big, pods=pods, local={"x/web": ()}))
    assert node.misfits
    assert not labels.asked


# --- a cluster that grows -------------------------------------------------------------------------------------------


def grown(count: int) -> Snapshot:
    """So many clients that a rule lets in, which is in no way changed."""
    before = both(into(allow(PodPeer(label("app", "client"))), pods=label("app", "web")))
    one = before.pods["x/client"]
    more = [replace(one, name=f"c{each}", ips=(ip_address("10.9.0.0") + each,)) for each in range(count)]
    return replace(before, pods={**before.pods, **{pod.key: pod for pod in more}})


def test_a_cluster_that_outgrows_a_map_leaves_out_who_came_last() -> None:
    """Who was let in still is, who is not is denied; pods of this node have entries in any case."""
    node = Node(room(peers=12))
    node.see(grown(5))
    contents = node.see(grown(20))
    assert len(contents.peers) == 12
    assert all(passes(contents, f"10.9.0.{each}", WEB) for each in range(5))
    assert sum(passes(contents, f"10.9.0.{each}", WEB) for each in range(20)) == 5 + 2
    assert node.misfits == {"x/web": {"x/web": Fate.CUT}}
    held_back = node.see(grown(21), again=False)
    assert held_back == contents
    shrunk = node.see(grown(6))
    assert all(passes(shrunk, f"10.9.0.{each}", WEB) for each in range(6))
    assert not node.misfits


def test_by_the_setting_such_a_policy_closes_its_pods() -> None:
    node = Node(room(peers=10), Overflow.CLOSE)
    node.see(grown(5))
    contents = node.see(grown(20))
    assert not passes(contents, "10.9.0.1", WEB)
    assert node.misfits == {"x/web": {"x/web": Fate.CLOSED}}


def test_pods_that_come_to_this_node_have_room_left_for_them() -> None:
    """One without an entry would be open."""
    capacity = 256
    node = Node(room(peers=capacity))
    node.see(grown(300))
    assert len(node.have.peers) < capacity
    came = grown(300)
    late = replace(came.pods["y/far"], ips=(ip_address("10.200.0.1"),))
    everything = replace(FROM_CLIENT, namespace="y", name="none", pods=Selector(), ingress=())
    came = replace(
        came,
        pods={**came.pods, "y/far": late},
        policies={**came.policies, "y/none": everything},
        local=dict.fromkeys((*LOCAL, "y/far"), ()),
    )
    assert not passes(node.see(came, again=False), CLIENT, "10.200.0.1")


# --- nobody gets through whom no rules let in -----------------------------------------------------------------------


@given(st.data(), st.sampled_from(Overflow), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_passes_that_neither_the_last_good_rules_nor_the_new_ones_allow(
    data: Any, overflow: Overflow, rand: random.Random
) -> None:
    """With a little less room than it takes, in any map; and whoever is not held is judged as if all fitted."""
    before = data.draw(snapshots())
    after = replace(before, policies=data.draw(changed(before)).policies)
    for policy in data.draw(st.lists(policies(), max_size=2)):
        after = replace(after, policies={**after.policies, policy.key: policy})
    capacity = room_between(Compiler().advance(before)[-1], Compiler().advance(after)[-1], rand)
    node = Node(capacity, overflow)
    node.see(before)
    assume(not node.misfits)
    stages = node.fitting.advance(after, node.have, overflow)
    assume(shortage(node.have, stages[-1], capacity) is None)
    held = {pod for misfit in node.fitting.misfits for pod in misfit.pods}
    for flow in rand.sample(FLOWS, 150):
        for direction, pod, allowed in said(before, after, flow):
            passed = look_up(stages[-1], flow, direction).allowed
            assert (not passed or any(allowed)) if pod in held else passed == allowed[-1], (
                flow,
                direction,
                allowed,
                held,
            )


def room_between(before: Contents, after: Contents, rand: random.Random) -> dict[str, int]:
    """Enough for the first; for both at once, or less."""
    capacity = {}
    for place in PLACES:
        one, both_ = entries_in(before, place).keys(), entries_in(before, place).keys() | entries_in(after, place)
        capacity[place] = rand.choice((len(both_), rand.randint(len(one), len(both_))))
    return capacity


def said(before: Snapshot, after: Snapshot, flow: Flow) -> Iterator[tuple[Direction, str, tuple[bool, bool]]]:
    """Of each direction that is asked about: the pod, and what old and new policies say of the new cluster."""
    if NODE in (flow.client, flow.server):
        return
    old, new = (evaluate(replace(after, policies=each.policies), flow) for each in (before, after))
    for direction, was, now in (
        (Direction.EGRESS, old.egress, new.egress),
        (Direction.INGRESS, old.ingress, new.ingress),
    ):
        yield direction, now.pod, (was.allowed, now.allowed)
