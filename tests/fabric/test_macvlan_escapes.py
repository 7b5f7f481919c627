"""What a pod on a macvlan tries, with CAP_NET_RAW and with CAP_NET_ADMIN, to send as another or past the rules.

Every attempt is a frame with a mark; each test says who gets it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bgpd.datapath.layout import PolicyVerdict
from bgpd.model.endpoint import MacvlanMode
from tests.fabric import frames
from tests.fabric.frames import EVERYBODY, listener, marked
from tests.fabric.macvlan_node import MacvlanNode
from tests.fabric.netns import Lab
from tests.fabric.parent_node import PLANS, Plan
from tests.fabric.policy_node import link
from tests.fabric.reach import ping

pytestmark = pytest.mark.needs("mount", "tc")

SILENCE_S = 0.25
NOBODY = 1  # a set without rules
FOREIGN = bytes.fromhex("020000000099")
V4, V6 = PLANS
ROUTER_ADVERTISEMENT, ADVERTISEMENT, REDIRECT, SOLICITATION = 134, 136, 137, 135
NO_ADDRESS = "0.0.0.0"  # noqa: S104 - in a frame
ABROAD = {4: "203.0.113.9", 6: "2001:db8::9"}
both = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")
receivers = pytest.mark.parametrize("receiver", ["b", "outside"])


@pytest.fixture(params=[MacvlanMode.VEPA, MacvlanMode.BRIDGE], ids=["vepa", "bridge"])
def node(request: pytest.FixtureRequest, lab: Lab, bpffs: Path) -> MacvlanNode:
    return MacvlanNode(lab, bpffs, request.param).enforcing()


def gets(node: MacvlanNode, receiver: str, frame: bytes, sender: str = "a", **how: object) -> bool:
    """Whether the receiver sees the frame."""
    with listener(node.namespace(receiver)) as wire:
        node.inject(sender, frame, **how)  # type: ignore[arg-type]
        return marked(wire, SILENCE_S) is not None


@both
@receivers
def test_a_pod_sends_as_itself_only(node: MacvlanNode, plan: Plan, receiver: str) -> None:
    """By its MAC address with another's IP address: another pod's, the node's, one of the world."""
    to, own, at = node.mac(receiver), node.mac("a"), plan.of(receiver)
    assert gets(node, receiver, frames.udp(to, own, plan.a, at))
    for source in (plan.c, plan.node, ABROAD[plan.version]):
        assert not gets(node, receiver, frames.udp(to, own, source, at)), source


@both
@receivers
def test_its_address_needs_its_mac_address(node: MacvlanNode, plan: Plan, receiver: str) -> None:
    """By a MAC address that nobody has: at the wire no frame is let out, and to a pod none with a pod's address."""
    assert not gets(node, receiver, frames.udp(node.mac(receiver), FOREIGN, plan.a, plan.of(receiver)))
    assert not gets(node, receiver, frames.udp(node.mac(receiver), node.mac("c"), plan.a, plan.of(receiver)))


@both
def test_a_pod_cannot_pass_for_another(node: MacvlanNode, plan: Plan) -> None:
    """By its MAC address and its address both; in bridge mode other pods of that mode are what it can deceive."""
    if not node.cookie("a") or "macvlan_egress" not in node.installed.programs:
        pytest.skip("this kernel does not tell where a frame was sent")
    for receiver in ("outside", "b"):
        frame = frames.udp(node.mac(receiver), node.mac("c"), plan.c, plan.of(receiver))
        assert gets(node, receiver, frame, sender="c")
        assert gets(node, receiver, frame) is (receiver == "b" and node.mode is MacvlanMode.BRIDGE)


@both
def test_nobody_leaves_by_a_mac_address_that_is_not_known(node: MacvlanNode, plan: Plan) -> None:
    before = node.verdicts().get(PolicyVerdict.STRANGER, 0)
    assert not gets(node, "outside", frames.udp(node.mac("outside"), FOREIGN, ABROAD[plan.version], plan.outside))
    assert node.verdicts()[PolicyVerdict.STRANGER] > before


@both
def test_a_pod_cannot_pass_for_the_node(node: MacvlanNode, plan: Plan) -> None:
    """The kernel tells in which namespace a frame was sent, from Linux 6.15 on."""
    if "macvlan_egress" not in node.installed.programs:
        pytest.skip("this kernel does not tell it")
    frame = frames.udp(node.mac("outside"), node.mac("node"), plan.node, plan.outside)
    assert not gets(node, "outside", frame)
    assert gets(node, "outside", frame, sender="node")


@both
def test_the_wire_cannot_pass_for_a_pod(node: MacvlanNode, plan: Plan) -> None:
    frame = frames.udp(node.mac("b"), node.mac("outside"), plan.a, plan.b)
    assert not gets(node, "b", frame, sender="outside")


def test_a_frame_that_says_of_itself_it_is_another_protocol_is_not_let_out(node: MacvlanNode) -> None:
    """The type that a packet socket gives, and the one in the frame, which is what the wire sees."""
    node.isolate("a", egress=NOBODY)
    frame = frames.udp(node.mac("outside"), node.mac("a"), V4.a, V4.outside)
    for told in (frames.ARP, frames.IPV6, frames.VLAN, 0x88A8, 0x1234):
        assert not gets(node, "outside", frame, protocol=told), told


@receivers
def test_a_pod_is_in_no_vlan(node: MacvlanNode, receiver: str) -> None:
    for number in (0, 5):
        frame = frames.udp(node.mac(receiver), node.mac("a"), V4.a, V4.of(receiver), vlan=number)
        assert not gets(node, receiver, frame)


def test_what_comes_to_a_pod_in_a_vlan_is_not_for_it(node: MacvlanNode) -> None:
    """0 is none: a frame with a priority only is judged as it is."""

    def frame(number: int) -> bytes:
        return frames.udp(node.mac("b"), node.mac("outside"), V4.outside, V4.b, vlan=number)

    assert not gets(node, "b", frame(5), sender="outside")
    assert gets(node, "b", frame(0), sender="outside")
    node.isolate("b", ingress=NOBODY)
    assert not gets(node, "b", frame(0), sender="outside")


@receivers
def test_arp_names_the_pod_s_own_addresses_only(node: MacvlanNode, receiver: str) -> None:
    to, own = node.mac(receiver), node.mac("a")
    assert gets(node, receiver, frames.arp(to, own, own, V4.a, V4.of(receiver)))
    assert gets(node, receiver, frames.arp(to, own, own, NO_ADDRESS, V4.of(receiver))), "a probe"
    assert not gets(node, receiver, frames.arp(to, own, own, V4.c, V4.of(receiver)))
    assert not gets(node, receiver, frames.arp(to, own, own, ABROAD[4], V4.of(receiver))), "a gateway's"
    assert not gets(node, receiver, frames.arp(to, own, FOREIGN, V4.a, V4.of(receiver)))
    assert not gets(node, receiver, frames.arp(to, FOREIGN, FOREIGN, V4.a, V4.of(receiver)))


@receivers
def test_neighbor_discovery_names_the_pod_s_own_addresses_only(node: MacvlanNode, receiver: str) -> None:
    to, own, at = node.mac(receiver), node.mac("a"), V6.of(receiver)
    assert gets(node, receiver, frames.advertisement(to, own, V6.a, at, V6.a))
    assert not gets(node, receiver, frames.advertisement(to, own, V6.a, at, V6.c))
    assert not gets(node, receiver, frames.advertisement(to, own, V6.a, at, ABROAD[6])), "a gateway's"
    for kind in (ROUTER_ADVERTISEMENT, REDIRECT):
        assert not gets(node, receiver, frames.icmpv6(to, own, "fe80::1", at, kind, bytes(16))), "pods are no routers"


@receivers
def test_from_a_link_local_address_nothing_but_neighbor_discovery_comes(node: MacvlanNode, receiver: str) -> None:
    """No rule knows these addresses."""
    to, own, at = node.mac(receiver), node.mac("a"), V6.of(receiver)
    assert gets(node, receiver, frames.icmpv6(to, own, "fe80::a", at, SOLICITATION, bytes(16)))
    for source in ("fe80::a", "::"):
        assert not gets(node, receiver, frames.udp(to, own, source, at))
        assert not gets(node, receiver, frames.icmpv6(to, own, source, at, 128, bytes(16)))


def test_an_isolated_pod_cannot_be_sent_to_by_an_address_that_it_has_not(node: MacvlanNode) -> None:
    """To its MAC address, but to the subnet's broadcast address, or to nobody's."""
    for sender in ("a", "outside"):
        for destination in ("198.51.100.255", "255.255.255.255", "198.51.100.77"):
            frame = frames.udp(node.mac("b"), node.mac(sender), V4.of(sender), destination)
            node.isolate("b")
            assert gets(node, "b", frame, sender)
            node.isolate("b", ingress=NOBODY)
            assert not gets(node, "b", frame, sender)


def test_whoever_has_no_address_yet_may_ask_a_dhcp_server_and_nobody_else(node: MacvlanNode) -> None:
    """Before its ADD is through, a pod is a stranger, and its address may come by DHCP."""

    def ask(mac: bytes, port: int, to: str = "255.255.255.255", source: str = NO_ADDRESS) -> bool:
        frame = bytearray(frames.udp(EVERYBODY, mac, source, to, port))
        frame[34:36] = (68).to_bytes(2, "big")
        return gets(node, "outside", bytes(frame))

    for mac in (node.mac("a"), FOREIGN):
        assert ask(mac, 67)
        assert not ask(mac, 68)
        assert not ask(mac, 67, to=V4.outside)
        assert not ask(mac, 67, source=ABROAD[4])


# --- with CAP_NET_ADMIN ---------------------------------------------------------------------------------------------


def moved(node: MacvlanNode) -> str:
    """Another MAC address for the pod's interface."""
    node.pods["a"].ip(f"link set eth0 address {FOREIGN.hex(':')}")
    return "eth0"


def sibling(mode: str) -> Callable[[MacvlanNode], str]:
    """A macvlan beside the pod's own, with its address."""

    def make(node: MacvlanNode) -> str:
        pod = node.pods["a"]
        pod.ip(f"link add link eth0 name other type macvlan mode {mode}", "link set other up")
        pod.ip(f"addr add {V4.a}/24 dev other", "addr flush dev eth0")
        return "other"

    return make


@pytest.mark.parametrize(
    "change",
    [moved, sibling("bridge"), sibling("private"), sibling("vepa")],
    ids=["mac", "bridge", "private", "vepa"],
)
def test_what_a_pod_makes_of_its_interfaces_gets_nowhere(
    node: MacvlanNode, change: Callable[[MacvlanNode], str]
) -> None:
    """With its own address, and with one of nobody."""
    interface, pod = change(node), node.pods["a"]
    mac = link(pod, interface)[1]
    for source in (V4.a, ABROAD[4]):
        frame = frames.udp(node.mac("outside"), mac, source, V4.outside)
        assert not gets(node, "outside", frame, interface=interface)
    assert not gets(node, "b", frames.udp(node.mac("b"), mac, V4.a, V4.b), interface=interface)
    for server in ("outside", "b"):
        assert not ping(pod, V4.of(server), timeout_s=SILENCE_S)


def test_a_sibling_macvlan_hears_nothing_that_is_for_others(node: MacvlanNode) -> None:
    """Of what is sent to one MAC address."""
    sibling("bridge")(node)
    with listener(node.pods["a"], "other") as wire:
        node.inject("outside", frames.udp(node.mac("b"), node.mac("outside"), V4.outside, V4.b))
        assert not marked(wire, SILENCE_S)


@pytest.mark.parametrize(
    "change",
    [
        "tc qdisc replace dev eth0 root pfifo",
        "tc qdisc add dev eth0 clsact",
        "ip link set eth0 type macvlan mode vepa",
        "ip link set eth0 type macvlan mode private",
        "ip link set eth0 promisc on",
        "ip link set eth0 down",
    ],
)
def test_nothing_that_a_pod_does_to_its_interface_changes_what_it_may(node: MacvlanNode, change: str) -> None:
    node.isolate("a", egress=NOBODY)
    pod = node.pods["a"]
    pod.run(change.split())
    pod.run(["tc", "qdisc", "del", "dev", "eth0", "clsact"], check=False)
    pod.run(["ip", "link", "set", "eth0", "up"])
    for server in ("b", "outside"):
        assert not gets(node, server, frames.udp(node.mac(server), node.mac("a"), V4.a, V4.of(server)))


def test_the_node_s_other_macvlans_are_no_strangers(node: MacvlanNode) -> None:
    """Those that it has itself, as soon as they are told of, and those that the configuration names."""
    node.node.ip("link add link eth0 name shim type macvlan mode bridge", "link set shim up")
    node.macvlan(node.lab.namespace("machine"), "bridge")
    machine = node.lab.namespaces["machine"]
    for owner, interface in ((node.node, "shim"), (machine, "eth0")):
        mac = link(owner, interface)[1]
        frame = frames.udp(node.mac("outside"), mac, ABROAD[4], V4.outside)
        with listener(node.outside) as wire:
            frames.send(owner, interface, frame)
            assert not marked(wire, SILENCE_S)
            node.tell(others=[mac] if owner is machine else ())
            frames.send(owner, interface, frame)
            assert marked(wire, SILENCE_S)


def test_links_are_not_removed_by_tc(node: MacvlanNode) -> None:
    """Of the node itself; a pod cannot even see the parent."""
    node.node.run(["tc", "filter", "del", "dev", "eth0", "egress"], check=False)
    node.node.run(["tc", "qdisc", "del", "dev", "eth0", "clsact"], check=False)
    assert node.observe() == {node.parent: node.wanted()}
