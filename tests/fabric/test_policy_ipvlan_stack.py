"""Pods on ipvlans of mode L3 and L3S, whose packets the node's stack routes: translated, and sent past all queues.

What `test_policy_stack` does without ipvlans, and `test_ipvlan_escapes` in mode L2. In mode L3 the node's tables meet
what such a pod sends, but nothing that comes for it, so no answer to the node's address finds it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from bgpd.model.endpoint import IpvlanMode
from tests.fabric import frames
from tests.fabric.ipvlan_node import IpvlanNode, gets, ipvlan_node, tells
from tests.fabric.netns import missing
from tests.fabric.parent_node import PLANS, PORT, Plan
from tests.fabric.reach import ping, source_seen
from tests.fabric.stack_table import StackTable

SILENCE_S = 0.5
NOBODY = 1  # a set without rules
ABROAD = {4: "203.0.113.9", 6: "2001:db8::9"}
GROUPS = {4: ("198.51.100.255", frames.EVERYBODY), 6: ("ff02::1", bytes.fromhex("333300000001"))}
both = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")
receivers = pytest.mark.parametrize("receiver", ["c", "outside"])


@pytest.fixture(scope="module", params=[IpvlanMode.L3, IpvlanMode.L3S], ids=lambda mode: mode.name.lower())
def place(request: pytest.FixtureRequest) -> Iterator[IpvlanNode]:
    if reason := missing("nft"):
        pytest.skip(reason)
    with (
        ipvlan_node(request.param) as made,
        contextlib.closing(StackTable(made.node, made.policy, made.directory)) as table,
    ):
        addresses = [ip_address(plan.of(name)) for plan in PLANS for name in made.pods]
        table.apply(None, table.wanted(addresses, made.parent))
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


def finds(node: IpvlanNode) -> bool:
    """Whether what the node has translated finds a pod."""
    return node.mode is IpvlanMode.L3S


@both
def test_what_is_masqueraded_was_judged_as_the_pod_s(node: IpvlanNode, plan: Plan) -> None:
    """At the parent it would pass for the node's."""
    assert (seen(node, "a", plan), seen(node, "b", plan)) == (plan.node, plan.b)
    node.isolate("a", egress=NOBODY)
    assert (seen(node, "a", plan), seen(node, "b", plan)) == (None, plan.b)
    node.allow(NOBODY, "outside")
    assert seen(node, "a", plan) == plan.node
    node.forbid(NOBODY, "outside")


@both
def test_answers_to_what_was_masqueraded_come_in(node: IpvlanNode, plan: Plan) -> None:
    node.isolate("a", ingress=NOBODY)
    dialed = source_seen(node.pods["a"], node.outside, plan.outside, port=PORT, source=plan.a, timeout_s=SILENCE_S)
    assert dialed == (plan.node if finds(node) else None)


@both
def test_what_a_service_translates_is_judged_as_what_comes_to_the_pod(node: IpvlanNode, plan: Plan) -> None:
    assert ping(node.outside, plan.node, timeout_s=SILENCE_S) is finds(node)
    node.isolate("a", egress=NOBODY)  # answers
    assert ping(node.outside, plan.node, timeout_s=SILENCE_S) is finds(node)
    node.isolate("a", ingress=NOBODY)
    assert not ping(node.outside, plan.node, timeout_s=SILENCE_S)


# --- by a packet socket: of a frame the addresses inside count, and nothing else ------------------------------------


def sends(node: IpvlanNode, source: str, receiver: str, plan: Plan, *, bypass: bool = False) -> bool:
    """Whether it comes when the pod b sends from there. Nothing of it is translated but what is from the pod a.

    On Linux 6.12 ipvlan takes what was sent past its queue for longer than it is, by the Ethernet header, and so the
    kernel cannot translate it.
    """
    frame = frames.udp(node.mac(receiver), node.mac("b"), source, plan.of(receiver))
    return gets(node, receiver, frame, "b", bypass=bypass)


@both
@receivers
def test_a_pod_sends_from_no_address_that_nobody_has(node: IpvlanNode, plan: Plan, receiver: str) -> None:
    assert sends(node, plan.b, receiver, plan)
    assert not sends(node, ABROAD[plan.version], receiver, plan)


@both
@receivers
def test_past_its_own_queue_is_not_past_its_rules(node: IpvlanNode, plan: Plan, receiver: str) -> None:
    node.isolate("b", egress=NOBODY)
    assert not sends(node, plan.b, receiver, plan, bypass=True)
    assert not sends(node, plan.b, receiver, plan)


@both
def test_a_pod_cannot_pass_for_the_node_or_the_outside_to_another(node: IpvlanNode, plan: Plan) -> None:
    for source in (plan.node, plan.outside):
        assert not sends(node, source, "c", plan), source


@both
def test_a_pod_can_pass_for_the_node_at_the_wire_where_nobody_tells_who_sends(node: IpvlanNode, plan: Plan) -> None:
    assert sends(node, plan.node, "outside", plan) is ("ipvlan_egress" not in node.installed.programs)


@both
def test_a_pod_can_pass_for_another_where_nobody_tells_who_sends(node: IpvlanNode, plan: Plan) -> None:
    """By the other's rules. To the wire as one that is masqueraded even where somebody tells."""
    assert sends(node, plan.a, "outside", plan)
    assert sends(node, plan.c, "outside", plan) is not tells(node)
    assert sends(node, plan.a, "c", plan) is not tells(node)
    for name in ("a", "c"):
        node.isolate(name, egress=NOBODY)
        assert not sends(node, plan.of(name), "outside", plan)


@both
@receivers
def test_broadcast_and_multicast_go_by_the_rules(node: IpvlanNode, plan: Plan, receiver: str) -> None:
    """Those of IPv6 reach the wire on Linux 6.12, no other ever."""
    group, mac = GROUPS[plan.version]
    assert not gets(node, receiver, frames.udp(mac, node.mac("b"), ABROAD[plan.version], group), "b")
    node.isolate("b", egress=NOBODY)
    assert not gets(node, receiver, frames.udp(mac, node.mac("b"), plan.b, group), "b")
