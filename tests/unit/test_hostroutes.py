"""Which addresses of pods are announced one by one, and that of two nodes with one address just one does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.hostroutes.hostrouting import HostRouting
from bgpd.hostroutes.plan import claims_an_address, plan
from bgpd.model.candidate import Candidate
from bgpd.model.hostroute import Unfit
from bgpd.model.node import Node
from bgpd.model.pod import Pod
from bgpd.runtime.store import Store

NODE = Node("w1", (ip_network("10.1.1.0/24"), ip_network("fd00:1::/64")), (ip_address("192.0.2.1"),))
OTHER = Node("w2", (ip_network("10.1.2.0/24"), ip_network("fd00:2::/64")), (ip_address("192.0.2.2"),))


def pod(name: str, *ips: str, node: str = "w1", **fields: Any) -> Pod:
    made = Pod(
        "shop", name, uid=f"uid-{name}", node=node, ips=tuple(map(ip_address, ips)), created="2026-01-01T00:00:00Z"
    )
    return replace(made, **fields)


class Cluster:
    """What one node makes of these pods; `nodes` are known from the start."""

    def __init__(self, pods: Iterable[Pod] = (), own: Node = NODE) -> None:
        self.nodes: Store[dict[str, Node]] = Store({})
        self.pods: Store[dict[str, Pod]] = Store({})
        self.store: Store[tuple[Candidate, ...]] = Store(())
        self.routing = HostRouting(own.name, self.nodes, self.pods, self.store)  # type: ignore[arg-type]
        self.nodes.publish({own.name: own})
        self.show(pods)

    def show(self, pods: Iterable[Pod]) -> None:
        self.pods.publish({each.key: each for each in pods})

    @property
    def announced(self) -> list[str]:
        return [str(each.prefix) for each in self.store.newest.value if not each.withheld]


@pytest.mark.parametrize(
    ("fields", "announced"),
    [
        ({}, []),  # the pod CIDR leads to it
        ({"host_route": True}, ["10.1.1.5/32", "fd00:1::5/128"]),
        ({"host_route": True, "terminating": True}, ["10.1.1.5/32", "fd00:1::5/128"]),  # it runs until it is gone
        ({"host_route": True, "finished": True}, []),
        ({"host_route": True, "node": "w2"}, []),
        ({"host_route": True, "node": ""}, []),
        ({"host_route": True, "host_network": True}, []),
    ],
)
def test_a_pod_inside_the_pod_cidrs_is_announced_if_annotated(fields: dict[str, Any], announced: list[str]) -> None:
    assert Cluster([pod("a", "10.1.1.5", "fd00:1::5", **fields)]).announced == announced


@pytest.mark.parametrize(
    ("fields", "announced"),
    [
        ({}, ["10.9.0.1/32"]),
        ({"host_route": False}, []),
        ({"host_network": True}, []),
        ({"finished": True}, []),
        ({"node": "w2"}, []),
    ],
)
def test_an_address_outside_the_pod_cidrs_is_announced(fields: dict[str, Any], announced: list[str]) -> None:
    """Only that one: the pod's IPv6 address lies inside."""
    assert Cluster([pod("a", "10.9.0.1", "fd00:1::9", **fields)]).announced == announced


def test_hostnetwork_with_the_annotation_is_told_of() -> None:
    """It was asked for, so it must not be passed over in silence; the address is the node's."""
    cluster = Cluster([pod("a", "192.0.2.1", host_route=True, host_network=True)])
    (problem,) = cluster.routing.problems()
    assert "192.0.2.1 is not announced: Pod shop/a has hostNetwork" in problem
    assert cluster.routing.figures().withheld[Unfit.HOST_NETWORK] == 1


def test_of_two_pods_with_one_address_the_newer_is_announced() -> None:
    """On both nodes alike; the other one's node says why not, and that somebody must act."""
    old, new = pod("old", "10.9.0.1"), pod("new", "10.9.0.1", node="w2", created="2026-01-01T00:00:01Z")
    here, there = Cluster([old, new]), Cluster([old, new], OTHER)
    assert (here.announced, there.announced) == ([], ["10.9.0.1/32"])
    (problem,) = here.routing.problems()
    assert (
        problem
        == "10.9.0.1 is not announced: Pod shop/new on w2, which is newer, has 10.9.0.1 too; delete one of the two"
    )
    assert list(there.routing.problems()) == []
    assert here.routing.figures().withheld[Unfit.CONFLICT] == 1


def test_created_in_one_second_the_uid_decides() -> None:
    pods = [pod("a", "10.9.0.1"), pod("b", "10.9.0.1", node="w2")]
    assert (Cluster(pods).announced, Cluster(pods, OTHER).announced) == ([], ["10.9.0.1/32"])


def test_an_ordinary_pod_elsewhere_counts_too() -> None:
    """A fixed address out of another node's pod CIDR: that node announces it with the CIDR."""
    fixed = pod("fixed", "10.1.2.7")
    ordinary = pod("ordinary", "10.1.2.7", node="w2", created="2026-02-01T00:00:00Z")
    assert Cluster([fixed]).announced == ["10.1.2.7/32"]
    assert Cluster([fixed, ordinary]).announced == []


def test_one_that_is_ending_yields_to_one_that_is_not() -> None:
    """Even to an older one: of a dead node the object stays. Nobody has to act on it."""
    ending = pod("new", "10.9.0.1", created="2026-02-01T00:00:00Z", terminating=True)
    old = pod("old", "10.9.0.1", node="w2")
    here = Cluster([ending, old])
    assert (here.announced, Cluster([ending, old], OTHER).announced) == ([], ["10.9.0.1/32"])
    assert list(here.routing.problems()) == []
    assert "has 10.9.0.1 now" in here.store.newest.value[0].withheld


def test_an_address_that_is_given_to_another_pod_of_the_node() -> None:
    """The object of the first is still there: one candidate may be announced, the other may not."""
    first, second = pod("first", "10.9.0.1", terminating=True), pod("second", "10.9.0.1")
    assert Cluster([first, second]).announced == ["10.9.0.1/32"]


def test_a_pod_moves() -> None:
    """Gone here and made there, in any order of the events."""
    moved = pod("p", "10.9.0.1", node="w2", uid="uid-new")
    here, there = Cluster([pod("p", "10.9.0.1")]), Cluster([pod("p", "10.9.0.1")], OTHER)
    for cluster in (here, there):
        cluster.show([])
        assert cluster.announced == []
        cluster.show([moved])
    assert (here.announced, there.announced) == ([], ["10.9.0.1/32"])


def test_without_its_node_nothing_is_known() -> None:
    """What is announced by a pod CIDR and what is not; it is not complete before both are read."""
    nodes: Store[dict[str, Node]] = Store({})
    pods: Store[dict[str, Pod]] = Store({})
    store: Store[tuple[Candidate, ...]] = Store(())
    HostRouting("w1", nodes, pods, store)  # type: ignore[arg-type]
    pods.publish({"shop/a": pod("a", "10.9.0.1")})
    assert (store.newest.value, store.newest.synced) == ((), False)
    nodes.publish({"w1": NODE})
    assert ([str(it.prefix) for it in store.newest.value], store.newest.synced) == (["10.9.0.1/32"], True)


def test_an_annotation_that_says_neither() -> None:
    """The daemon shows it, for the pods of its node."""
    cluster = Cluster([pod("a", "10.1.1.5", problems=("pod shop/a: it is odd",))])
    assert list(cluster.routing.problems()) == ["pod shop/a: it is odd"]


PODS = st.lists(
    st.builds(
        pod,
        st.sampled_from("abcdef"),
        st.sampled_from(["10.9.0.1", "10.9.0.2", "10.1.1.5", "10.1.2.5"]),
        node=st.sampled_from(["", "w1", "w2"]),
        created=st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"]),
        terminating=st.booleans(),
        finished=st.booleans(),
        host_network=st.booleans(),
        host_route=st.sampled_from([None, True, False]),
    ),
    unique_by=lambda each: each.key,
    max_size=5,
)


@given(st.lists(PODS, min_size=1, max_size=4))
def test_never_two_nodes_and_always_as_from_the_start(history: list[list[Pod]]) -> None:
    """Whatever has happened, one address is announced by one node at most, and what was kept of before is right."""
    here, there = Cluster(), Cluster(own=OTHER)
    for pods in history:
        here.show(pods)
        there.show(pods)
        assert not set(here.announced) & set(there.announced)
        assert len(set(here.announced)) == len(here.announced)
        for cluster, own in ((here, NODE), (there, OTHER)):
            assert cluster.store.newest.value == Cluster(pods, own).store.newest.value


@given(PODS)
def test_an_address_that_may_be_announced_somewhere_is(pods: list[Pod]) -> None:
    """The guard silences no address for good: the highest of those that claim it is never withheld."""
    claims = {
        each: [it for it in pods if claims_an_address(it) and each in it.ips]
        for each in {i for p in pods for i in p.ips}
    }
    for own in (NODE, OTHER):
        found, withheld = plan(own, [it for it in pods if it.node == own.name], lambda address: claims[address])
        assert len(withheld) == sum(bool(each.withheld) for each in found)
        for each in withheld:
            assert each.unfit is Unfit.HOST_NETWORK or len(claims[each.address]) > 1
