"""What a pod on a veth tries with CAP_NET_ADMIN to get past the rules or pass for another.

All that it can change is its own end: judged is on the node. `b` is behind a bridge, `d` is routed. Every attempt is
a frame with a mark; each test says who gets it. Spoofed sources besides: `test_policy_services`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from bgpd.model.outcome import DONE
from bgpd.policy.table import NAME
from tests.fabric import frames
from tests.fabric.frames import listener, marked
from tests.fabric.netns import Lab
from tests.fabric.policy_node import BRIDGED, IPV4, PLANS, Plan, PolicyNode, link

pytestmark = pytest.mark.needs("nft", "mount", "tc")

SILENCE_S = 0.25
NOBODY = 1  # a set without rules
NEIGHBORS = {"b": "a", "d": "c"}
both = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")
pods = pytest.mark.parametrize("pod", NEIGHBORS)

FUTILE = (
    "tc qdisc replace dev eth0 root pfifo",
    "tc qdisc add dev eth0 clsact",
    "tc filter del dev eth0 egress",
    "tc qdisc del dev eth0 clsact",
    "nft flush ruleset",
    "ip link set eth0 promisc on",
    "ip link set eth0 mtu 1280",
    "ip link set eth0 down",
)
"""What a pod may do to its interface, which changes nothing."""

KINDS = ("macvlan mode bridge", "macvlan mode private", "bridge")
"""What a pod may make of its interface, and send by."""


@pytest.fixture(params=[True, False], ids=["br_netfilter", "bridge alone"])
def node(request: pytest.FixtureRequest, lab: Lab, bpffs: Path) -> Iterator[PolicyNode]:
    with contextlib.closing(PolicyNode(lab, bpffs, br_netfilter=request.param)) as made:
        yield made.enforcing()


def gets(
    node: PolicyNode,
    receiver: str,
    pod: str,
    plan: Plan,
    *,
    interface: str = "eth0",
    mac: bytes = b"",
    source: str = "",
    vlans: Iterable[int] = (),
) -> bool:
    """Whether a datagram of the pod arrives: as itself, unless said otherwise."""
    own = mac or link(node.namespace(pod), interface)[1]
    destination = plan.remote_pod if receiver == "outside" else plan.of(receiver)
    frame = frames.udp(hop(node, receiver, pod), own, source or plan.of(pod), destination)
    with listener(node.namespace(receiver)) as wire:
        frames.send(node.namespace(pod), interface, frames.tagged(frame, *vlans))
        return marked(wire, SILENCE_S) is not None


def hop(node: PolicyNode, receiver: str, pod: str) -> bytes:
    """The MAC address that it is sent to: a neighbor's on the bridge, or the gateway's."""
    if {pod, receiver} <= set(BRIDGED):
        return link(node.namespace(receiver), "eth0")[1]
    return link(node.node, "cni0" if pod in BRIDGED else f"port-{pod}")[1]


@both
@pods
def test_what_is_tried_below_would_arrive_if_nothing_stood_in_the_way(node: PolicyNode, plan: Plan, pod: str) -> None:
    assert gets(node, "outside", pod, plan)
    assert gets(node, NEIGHBORS[pod], pod, plan)
    node.isolate(pod, egress=NOBODY)
    assert not gets(node, "outside", pod, plan)
    assert not gets(node, NEIGHBORS[pod], pod, plan)


@pods
def test_nothing_that_a_pod_does_to_its_interface_changes_what_it_may(node: PolicyNode, pod: str) -> None:
    node.isolate(pod, egress=NOBODY)
    for change in FUTILE:
        node.namespace(pod).run(change.split())
        node.namespace(pod).run(["ip", "link", "set", "eth0", "up"])
        for receiver in ("outside", NEIGHBORS[pod]):
            assert not gets(node, receiver, pod, IPV4), change


@pods
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_pod_makes_of_its_interface_gets_no_further(node: PolicyNode, pod: str, kind: str) -> None:
    """Below another interface; the frame is as the pod's own, and as the new interface's."""
    own, owner = link(node.namespace(pod), "eth0")[1], node.namespace(pod)
    if kind == "bridge":
        owner.ip("link add other type bridge", "link set eth0 master other", "link set other up")
    else:
        owner.ip(f"link add link eth0 name other type {kind}", "link set other up")
    node.isolate(pod, egress=NOBODY)
    for mac in {own, link(owner, "other")[1]}:
        for plan in PLANS:
            for receiver in ("outside", NEIGHBORS[pod]):
                assert not gets(node, receiver, pod, plan, interface="other", mac=mac)


@both
@pods
def test_a_pod_that_may_send_cannot_pass_for_another(node: PolicyNode, plan: Plan, pod: str) -> None:
    """By its neighbor's IP address, its MAC address, both, or one of nobody; nor in a VLAN."""
    neighbor = NEIGHBORS[pod]
    theirs = link(node.namespace(neighbor), "eth0")[1]
    assert gets(node, "outside", pod, plan)
    for source, mac in ((plan.of(neighbor), b""), ("", theirs), (plan.of(neighbor), theirs), (plan.service, b"")):
        assert not gets(node, "outside", pod, plan, source=source, mac=mac)
    assert not gets(node, "outside", pod, plan, vlans=[5])
    assert not gets(node, neighbor, pod, plan, vlans=[5])


@both
@pods
def test_a_pod_can_pass_for_another_only_while_its_link_is_not_told_of(
    node: PolicyNode, plan: Plan, pod: str
) -> None:
    """With the first link that is told of the table gets its hook, and with the last it goes."""
    forged = plan.of(NEIGHBORS[pod])
    nobody, everybody = node.wanted(bridged=(), routed=()), node.wanted()
    for want in (nobody, everybody, nobody, everybody):
        assert set(node.apply(want)) == {DONE}
        assert node.observe() == want
        assert gets(node, "outside", pod, plan, source=forged) == (want == nobody)
        assert gets(node, "outside", pod, plan)


@pods
def test_another_mac_address_of_its_interface_cuts_a_pod_off(node: PolicyNode, pod: str) -> None:
    node.namespace(pod).ip("link set eth0 address 02:00:00:00:00:99")
    assert not gets(node, "outside", pod, IPV4)
    assert not gets(node, NEIGHBORS[pod], pod, IPV4)


@both
def test_a_vlan_tag_hides_nothing_from_the_rules(node: PolicyNode, plan: Plan) -> None:
    """br_netfilter passes over such frames. `a` is no pod here but whoever is behind a port of the bridge."""
    node.apply(node.wanted(bridged=["b"]))
    assert gets(node, "b", "a", plan, vlans=[5])
    node.isolate("b", ingress=NOBODY)
    assert not gets(node, "b", "a", plan, vlans=[5])
    node.allow(NOBODY, "a")
    assert gets(node, "b", "a", plan, vlans=[5])


@both
@pytest.mark.parametrize("vlans", [(0, 0), (0, 0, 0), (0, 5), (5, 0)], ids=str)
def test_tags_that_a_receiver_takes_off_hide_nothing(node: PolicyNode, plan: Plan, vlans: tuple[int, ...]) -> None:
    """Those of VLAN 0, and one of a VLAN that it is in. Nobody's link is known: only addresses speak for the pods."""
    node.apply(node.wanted(bridged=()))
    assert gets(node, "b", "a", plan, vlans=vlans)
    node.isolate("b", ingress=NOBODY)
    assert not gets(node, "b", "a", plan, vlans=vlans)
    node.allow(NOBODY, "a")
    assert gets(node, "b", "a", plan, vlans=vlans)
    node.isolate("a", egress=NOBODY + 1)
    assert not gets(node, "b", "a", plan, vlans=vlans)


@both
def test_a_provider_s_frames_are_not_judged(node: PolicyNode, plan: Plan) -> None:
    """IP below two VLANs is of a network where these addresses may be others'. A known pod gets nothing of it."""
    node.apply(node.wanted(bridged=()))
    node.isolate("b", ingress=NOBODY)
    assert gets(node, "b", "a", plan, vlans=(5, 6))
    node.apply(node.wanted(bridged=["b"]))
    assert not gets(node, "b", "a", plan, vlans=(5, 6))


def test_nft_prints_the_table(node: PolicyNode) -> None:
    """Some of its versions end on what they cannot put in words."""
    shown = node.node.run(["nft", "list", "table", "bridge", NAME]).stdout
    assert "goto below_tags" in shown
