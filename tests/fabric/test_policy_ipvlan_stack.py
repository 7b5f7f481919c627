"""Pods on ipvlans of mode L3 and L3S whose packets are translated: what `test_policy_stack` does without ipvlans.

In mode L3 only what such a pod sends is: what comes for it meets no table of the node's, so no answer to the node's
address finds it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from bgpd.model.endpoint import IpvlanMode
from tests.fabric.ipvlan_node import IpvlanNode, ipvlan_node
from tests.fabric.netns import missing
from tests.fabric.parent_node import PLANS, PORT, Plan
from tests.fabric.reach import ping, source_seen
from tests.fabric.stack_table import StackTable

SILENCE_S = 0.5
NOBODY = 1  # a set without rules
only_l3s = pytest.mark.parametrize("place", [IpvlanMode.L3S], ids=["l3s"], indirect=True)
both = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")


@pytest.fixture(scope="module", params=[IpvlanMode.L3, IpvlanMode.L3S], ids=lambda mode: mode.name.lower())
def place(request: pytest.FixtureRequest) -> Iterator[IpvlanNode]:
    if reason := missing("nft"):
        pytest.skip(reason)
    with (
        ipvlan_node(request.param) as made,
        contextlib.closing(StackTable(made.node, made.policy, made.directory)) as table,
    ):
        table.apply(None, table.wanted(ip_address(plan.of(name)) for plan in PLANS for name in made.pods))
        for plan in PLANS:
            table.translate(plan.version, plan.a, plan.node)
        yield made


@pytest.fixture
def node(place: IpvlanNode) -> Iterator[IpvlanNode]:
    yield place
    place.open()


def seen(node: IpvlanNode, name: str, plan: Plan) -> str | None:
    """Whom the outside takes for the sender of the pod's datagram; None: it does not come."""
    family = socket.AF_INET if plan.version == 4 else socket.AF_INET6
    with (
        node.outside.socket(family, socket.SOCK_DGRAM) as server,
        node.namespace(name).socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.bind((plan.outside, PORT))
        server.settimeout(SILENCE_S)
        client.bind((plan.of(name), 0))
        client.sendto(b"x", (plan.outside, PORT))
        with contextlib.suppress(TimeoutError):
            return str(server.recvfrom(16)[1][0])
    return None


@both
def test_what_is_masqueraded_was_judged_as_the_pod_s(node: IpvlanNode, plan: Plan) -> None:
    """At the parent it would pass for the node's."""
    assert (seen(node, "a", plan), seen(node, "b", plan)) == (plan.node, plan.b)
    node.isolate("a", egress=NOBODY)
    assert (seen(node, "a", plan), seen(node, "b", plan)) == (None, plan.b)
    node.allow(NOBODY, "outside")
    assert seen(node, "a", plan) == plan.node
    node.forbid(NOBODY, "outside")


@only_l3s
@both
def test_answers_to_what_was_masqueraded_come_in(node: IpvlanNode, plan: Plan) -> None:
    node.isolate("a", ingress=NOBODY)
    dialed = source_seen(node.pods["a"], node.outside, plan.outside, port=PORT, source=plan.a, timeout_s=SILENCE_S)
    assert dialed == plan.node


@only_l3s
@both
def test_what_a_service_translates_is_judged_as_what_comes_to_the_pod(node: IpvlanNode, plan: Plan) -> None:
    assert ping(node.outside, plan.node, timeout_s=SILENCE_S)
    node.isolate("a", egress=NOBODY)  # answers
    assert ping(node.outside, plan.node, timeout_s=SILENCE_S)
    node.isolate("a", ingress=NOBODY)
    assert not ping(node.outside, plan.node, timeout_s=SILENCE_S)
