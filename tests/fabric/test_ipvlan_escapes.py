"""What a pod on an ipvlan tries, with CAP_NET_RAW and with CAP_NET_ADMIN, to send as another or past the rules.

Every attempt is a frame with a mark, sent past the queues of the pod's own interface; each test says whose sockets
get it. Not who can see it: what is dropped in a pod, its packet sockets have seen before.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bgpd.datapath.layout import PolicyVerdict
from bgpd.model.endpoint import IpvlanMode
from tests.fabric import frames
from tests.fabric.frames import EVERYBODY
from tests.fabric.ipvlan_node import IpvlanNode, gets, ipvlan_node, tells
from tests.fabric.parent_node import PLANS, Plan
from tests.fabric.process import poll
from tests.fabric.reach import ping

SILENCE_S = 0.4
FOUND_S = 30.0  # an address that was not found is asked for again ever more seldom
NOBODY = 1  # a set without rules
V4, V6 = PLANS
ROUTER_ADVERTISEMENT, REDIRECT = 134, 137
LLDP = 0x88CC  # IEEE 802.1AB
FOREIGN = bytes.fromhex("020000000099")
ABROAD = {4: "203.0.113.9", 6: "2001:db8::9"}
BROADCAST, ALL_NODES = "198.51.100.255", "ff02::1"
both = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")
receivers = pytest.mark.parametrize("receiver", ["b", "outside"])


@pytest.fixture(scope="module")
def place() -> Iterator[IpvlanNode]:
    with ipvlan_node(IpvlanMode.L2) as made:
        yield made


@pytest.fixture
def node(place: IpvlanNode) -> Iterator[IpvlanNode]:
    yield place
    place.tell()
    place.open()


def spoofed(node: IpvlanNode) -> int:
    return node.verdicts().get(PolicyVerdict.SPOOFED, 0)


@both
@receivers
def test_a_pod_sends_from_no_address_that_nobody_has(node: IpvlanNode, plan: Plan, receiver: str) -> None:
    to, own, at = node.mac(receiver), node.mac("a"), plan.of(receiver)
    assert gets(node, receiver, frames.udp(to, own, plan.a, at))
    assert not gets(node, receiver, frames.udp(to, own, ABROAD[plan.version], at))
    assert not gets(node, receiver, frames.udp(to, FOREIGN, ABROAD[plan.version], at))


@both
def test_a_pod_cannot_pass_for_the_node_or_the_outside_to_another(node: IpvlanNode, plan: Plan) -> None:
    mac = node.mac("a")
    for source in (plan.node, plan.outside):
        assert not gets(node, "b", frames.udp(mac, mac, source, plan.b)), source


@both
@receivers
def test_a_pod_can_pass_for_another_where_nobody_tells_who_sends(
    node: IpvlanNode, plan: Plan, receiver: str
) -> None:
    """All have one MAC address; answers go to the true owner."""
    frame = frames.udp(node.mac(receiver), node.mac("a"), plan.c, plan.of(receiver))
    assert gets(node, receiver, frame, sender="c")
    assert gets(node, receiver, frame) is not tells(node)


@both
def test_a_pod_can_pass_for_the_node_at_the_wire_where_nobody_tells_who_sends(node: IpvlanNode, plan: Plan) -> None:
    frame = frames.udp(node.mac("outside"), node.mac("a"), plan.node, plan.outside)
    assert gets(node, "outside", frame, sender="node")
    assert gets(node, "outside", frame) is ("ipvlan_egress" not in node.installed.programs)


@both
@receivers
def test_past_its_own_queue_is_not_past_its_rules(node: IpvlanNode, plan: Plan, receiver: str) -> None:
    node.isolate("a", egress=NOBODY)
    assert not gets(node, receiver, frames.udp(node.mac(receiver), node.mac("a"), plan.a, plan.of(receiver)))


@both
def test_the_wire_cannot_pass_for_a_pod(node: IpvlanNode, plan: Plan) -> None:
    outside = node.mac("outside")
    assert gets(node, "b", frames.udp(node.mac("b"), outside, plan.outside, plan.b), sender="outside")
    for mac in (outside, node.mac("b")):
        assert not gets(node, "b", frames.udp(node.mac("b"), mac, plan.a, plan.b), sender="outside")


@pytest.mark.parametrize("sender", ["a", "outside"])
def test_an_isolated_pod_cannot_be_sent_to_by_a_group(node: IpvlanNode, sender: str) -> None:
    """Each gets it, or not, by its own rules."""
    frame = frames.udp(EVERYBODY, node.mac(sender), V4.of(sender), BROADCAST)
    assert gets(node, "b", frame, sender)
    node.isolate("b", ingress=NOBODY)
    assert not gets(node, "b", frame, sender)
    assert gets(node, "c", frame, sender)
    group = frames.udp(bytes.fromhex("333300000001"), node.mac(sender), V6.of(sender), ALL_NODES)
    assert not gets(node, "b", group, sender)
    assert gets(node, "c", group, sender)


def test_a_pod_isolated_for_egress_sends_to_no_group(node: IpvlanNode) -> None:
    frame = frames.udp(EVERYBODY, node.mac("a"), V4.a, BROADCAST)
    node.isolate("a", egress=NOBODY)
    assert not gets(node, "b", frame)
    assert not gets(node, "outside", frame)


def test_a_group_s_address_as_source_deceives_nobody(node: IpvlanNode) -> None:
    """The kernel takes such a frame for one from the wire."""
    frame = frames.udp(EVERYBODY, EVERYBODY, V4.outside, BROADCAST)
    assert not gets(node, "b", frame)


@receivers
def test_arp_names_addresses_of_pods_and_of_the_node_only(node: IpvlanNode, receiver: str) -> None:
    own, before = node.mac("a"), spoofed(node)
    frame = frames.arp(EVERYBODY, own, own, ABROAD[4], V4.of(receiver))
    if receiver == "outside":
        assert gets(node, "outside", frames.arp(EVERYBODY, own, own, V4.a, V4.outside))
        assert not gets(node, "outside", frame)
        return
    node.inject("a", frames.arp(EVERYBODY, FOREIGN, FOREIGN, V4.outside, V4.b))
    assert FOREIGN.hex(":") not in node.pods["b"].run(["ip", "neigh"]).stdout
    assert spoofed(node) > before


def test_neighbor_discovery_names_addresses_of_pods_and_of_the_node_only(node: IpvlanNode) -> None:
    to, own = node.mac("outside"), node.mac("a")
    assert gets(node, "outside", frames.advertisement(to, own, V6.a, V6.outside, V6.a))
    assert not gets(node, "outside", frames.advertisement(to, own, V6.a, V6.outside, ABROAD[6]))
    for kind in (ROUTER_ADVERTISEMENT, REDIRECT):
        for source in ("fe80::1", V6.a):
            frame = frames.icmpv6(to, own, source, V6.outside, kind, bytes(16))
            assert not gets(node, "outside", frame), "pods are no routers"


@both
def test_a_frame_of_which_nothing_is_said_is_judged_by_what_it_is(node: IpvlanNode, plan: Plan) -> None:
    frame = frames.udp(node.mac("outside"), node.mac("a"), plan.a, plan.outside)
    assert gets(node, "outside", frame, protocol=0)
    node.isolate("a", egress=NOBODY)
    assert not gets(node, "outside", frame, protocol=0)


def test_a_frame_that_says_of_itself_it_is_another_protocol_is_not_let_out(node: IpvlanNode) -> None:
    """The type that a packet socket gives, and the one in the frame, which is what the wire sees."""
    node.isolate("a", egress=NOBODY)
    frame = frames.udp(node.mac("outside"), node.mac("a"), V4.a, V4.outside)
    for told in (frames.ARP, frames.IPV6, 0x1234):
        assert not gets(node, "outside", frame, protocol=told), told
    tagged = frames.udp(node.mac("outside"), node.mac("a"), V4.a, V4.outside, vlan=5)
    for told in (frames.IPV4, frames.VLAN, 0):
        assert not gets(node, "outside", tagged, protocol=told), told


def test_what_is_no_ip_leaves_where_nobody_tells_who_sends(node: IpvlanNode) -> None:
    """The node's own does, such as LLDP. No other pod of the parent gets it."""
    node.isolate("a", egress=NOBODY)
    tells_at_parent = "ipvlan_egress" in node.installed.programs
    frame = frames.ethernet(node.mac("outside"), node.mac("a"), LLDP, frames.MARK + bytes(46))
    assert gets(node, "outside", frame) is not tells_at_parent


@both
def test_a_pod_that_is_closed_is_reached_by_nobody_and_reaches_nobody(node: IpvlanNode, plan: Plan) -> None:
    node.tell(closed=["b"])
    for other in ("a", "outside"):
        assert not ping(node.namespace(other), plan.b, timeout_s=SILENCE_S)
        assert not ping(node.pods["b"], plan.of(other), timeout_s=SILENCE_S)
    node.tell()
    poll(lambda: ping(node.pods["a"], plan.b), FOUND_S, lambda: "it is open again, and not found")


# --- with CAP_NET_ADMIN ---------------------------------------------------------------------------------------------


def test_what_comes_from_the_wire_to_an_ipvlan_that_a_pod_has_made_is_judged(node: IpvlanNode) -> None:
    """With the pod's address, beside its own interface. What other pods of the node send to it there is not."""
    pod = node.pods["c"]
    node.isolate("c", ingress=NOBODY)
    pod.ip("link add link eth0 name other type ipvlan mode l2", "link set other up")
    pod.ip(f"addr del {V4.c}/24 dev eth0", f"addr add {V4.c}/24 dev other")
    try:
        assert not ping(node.outside, V4.c, timeout_s=SILENCE_S)
        poll(lambda: ping(node.pods["a"], V4.c), FOUND_S, lambda: "it is not found there")
    finally:
        pod.ip("link del other", f"addr add {V4.c}/24 dev eth0")
    assert not ping(node.pods["a"], V4.c, timeout_s=SILENCE_S)


def test_an_ipvlan_that_a_pod_has_made_sends_from_no_other_address(node: IpvlanNode) -> None:
    pod = node.pods["c"]
    pod.ip("link add link eth0 name other type ipvlan mode l2", "link set other up")
    pod.ip("addr add 198.51.100.77/24 dev other")
    try:
        for receiver in ("outside", "b"):
            assert not ping(pod, V4.of(receiver), source="198.51.100.77", timeout_s=SILENCE_S), receiver
    finally:
        pod.ip("link del other")
