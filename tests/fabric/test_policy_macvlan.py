"""NetworkPolicy of pods on macvlans, with real packets: at the parent, pod to pod and pod to wire."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bgpd.datapath import links
from bgpd.datapath.layout import PeerFlag, PolicyVerdict
from bgpd.datapath.links import Hook
from bgpd.model.endpoint import MacvlanMode
from bgpd.policy.parents import ParentLinks
from tests.fabric import parent_node
from tests.fabric.frames import EVERYBODY, listener, marked, udp
from tests.fabric.macvlan_node import MacvlanNode
from tests.fabric.masq_node import alone, echoed, speaks, tcp_stream, udp_client, udp_echo
from tests.fabric.netns import Lab
from tests.fabric.parent_node import PLANS, PORT, Plan
from tests.fabric.reach import ping

pytestmark = pytest.mark.needs("mount")

TCP, UDP = 6, 17
SILENCE_S = 0.25  # for so long nothing must come; what passes takes a millisecond
THERE_S = 0.01  # what is there by then is read by then
NOBODY = 1  # a set without rules
EVERYTHING, NOTHING = (True, True, True), (False, False, False)
SUBNET_BROADCAST = "198.51.100.255"


@pytest.fixture(params=[MacvlanMode.VEPA, MacvlanMode.BRIDGE], ids=["vepa", "bridge"])
def node(request: pytest.FixtureRequest, lab: Lab, bpffs: Path) -> MacvlanNode:
    return MacvlanNode(lab, bpffs, request.param).enforcing()


def reaches(node: MacvlanNode, client: str, server: str, plan: Plan) -> tuple[bool, bool, bool]:
    """By TCP, UDP and ping."""
    return parent_node.reaches(node, client, server, plan, SILENCE_S)


def datagram(node: MacvlanNode, client: str, server: str, plan: Plan) -> bool:
    return parent_node.datagram(node, client, server, plan, SILENCE_S)


def test_what_is_not_isolated_reaches_everything(node: MacvlanNode) -> None:
    """The node itself too, which shares the parent with its pods."""
    pairs = [("a", "b"), ("a", "outside"), ("outside", "b"), ("node", "outside"), ("outside", "node")]
    found = {(pair, plan.version): reaches(node, *pair, plan) for pair in pairs for plan in PLANS}
    assert found == dict.fromkeys(found, EVERYTHING)


@pytest.mark.parametrize("mode", [MacvlanMode.PRIVATE, MacvlanMode.VEPA, MacvlanMode.PASSTHRU])
def test_in_other_modes_pods_and_the_wire_reach_each_other_as_rules_say(
    lab: Lab, bpffs: Path, mode: MacvlanMode
) -> None:
    node = MacvlanNode(lab, bpffs, mode).enforcing()
    for plan in PLANS:
        assert reaches(node, "a", "outside", plan) == reaches(node, "outside", "a", plan) == EVERYTHING
    node.isolate("a", ingress=NOBODY)
    for plan in PLANS:
        assert (reaches(node, "a", "outside", plan), reaches(node, "outside", "a", plan)) == (EVERYTHING, NOTHING)
    node.isolate("a", egress=NOBODY)
    for plan in PLANS:
        assert (reaches(node, "a", "outside", plan), reaches(node, "outside", "a", plan)) == (NOTHING, EVERYTHING)


def test_an_isolated_pod_is_reached_by_nobody_and_reaches_everybody(node: MacvlanNode) -> None:
    """Isolated for ingress: replies to what it asks come in all the same."""
    node.isolate("b", ingress=NOBODY)
    for plan in PLANS:
        for other in ("a", "outside"):
            assert reaches(node, other, "b", plan) == NOTHING
            assert reaches(node, "b", other, plan) == EVERYTHING


def test_a_pod_isolated_for_egress_reaches_nobody_and_is_reached(node: MacvlanNode) -> None:
    node.isolate("b", egress=NOBODY)
    for plan in PLANS:
        for other in ("a", "outside"):
            assert reaches(node, "b", other, plan) == NOTHING
            assert reaches(node, other, "b", plan) == EVERYTHING


@pytest.mark.parametrize(("client", "server"), [("a", "b"), ("outside", "b")])
def test_a_rule_allows_its_port_to_its_peer(node: MacvlanNode, client: str, server: str) -> None:
    node.allow(7, client, ports=[(TCP, PORT)])
    node.isolate(server, ingress=7)
    for plan in PLANS:
        assert reaches(node, client, server, plan) == (True, False, False)
    node.allow(7, client)
    for plan in PLANS:
        assert reaches(node, client, server, plan) == EVERYTHING


@pytest.mark.parametrize(("client", "server"), [("a", "b"), ("outside", "b"), ("b", "outside")])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")
def test_a_flow_that_is_open_stops_at_once_when_it_is_forbidden(
    node: MacvlanNode, plan: Plan, client: str, server: str
) -> None:
    """And goes on when it is allowed again: nothing has been sent to break it."""
    node.allow(7, client, server)
    node.isolate("b", ingress=7, egress=7)
    one, other, to = node.namespace(client), node.namespace(server), plan.of(server)
    with tcp_stream(one, other, to) as (dialer, accepted), udp_echo(other, to), udp_client(one, to) as asker:
        assert speaks(dialer, accepted)
        assert echoed(asker) == b"x"
        node.forbid(7, client, server)
        for each in (dialer, accepted, asker):
            each.settimeout(SILENCE_S)
        assert not speaks(accepted, dialer)
        with pytest.raises(TimeoutError):
            echoed(asker)
        node.allow(7, client, server)
        for each in (dialer, accepted, asker):
            each.settimeout(10)  # TCP asks again ever more seldom
        assert dialer.recv(1) == b"?"
        assert echoed(asker) == b"x"


def test_isolated_pods_are_found_on_the_link(node: MacvlanNode) -> None:
    """ARP and neighbor discovery pass: an address that is not found answers no ping."""
    for name in ("a", "b"):
        node.allow(7, "a", "b", "outside")
        node.isolate(name, egress=7, ingress=7)
    for name in ("a", "b", "outside"):
        node.namespace(name).ip("neigh flush dev eth0")
    pairs = [("a", "b"), ("b", "outside"), ("outside", "a")]
    assert all(reaches(node, *pair, plan) == EVERYTHING for pair in pairs for plan in PLANS)


def test_audit_mode_lets_pass_and_says_what_it_would_not(node: MacvlanNode) -> None:
    node.isolate("b", ingress=NOBODY, flags=PeerFlag.AUDIT)
    assert reaches(node, "a", "b", PLANS[0]) == EVERYTHING
    found = node.verdicts()
    assert found[PolicyVerdict.AUDITED] > 0
    assert found[PolicyVerdict.DENIED_INGRESS] > 0


# --- groups -------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(node: MacvlanNode) -> Callable[[], set[str]]:
    """Sends a datagram to everybody on the wire, and says which of node and pods had it."""
    names = ("node", *node.pods)

    def send() -> set[str]:
        with contextlib.ExitStack() as stack:
            wires = {name: stack.enter_context(listener(node.namespace(name))) for name in names}
            frame = udp(EVERYBODY, node.mac("outside"), PLANS[0].outside, SUBNET_BROADCAST, PORT)
            node.inject("outside", frame)
            return {name for name, wire in wires.items() if marked(wire, SILENCE_S)}

    return send


def test_what_the_wire_sends_to_everybody_reaches_whom_its_rules_let(
    node: MacvlanNode, heard: Callable[[], set[str]]
) -> None:
    """An isolated pod does not have it, everybody else does: the node, whose interface it came in by, among them."""
    assert heard() == {"node", "a", "b", "c"}
    node.isolate("b", ingress=7)
    assert heard() == {"node", "a", "c"}
    node.allow(7, "outside", ports=[(UDP, PORT)])
    assert heard() == {"node", "a", "b", "c"}
    node.isolate("a", ingress=NOBODY)
    assert heard() == {"node", "b", "c"}


def test_the_node_s_own_sockets_have_what_one_pod_must_not(node: MacvlanNode) -> None:
    """A socket, not only what listens to the interface."""
    node.isolate("b", ingress=NOBODY)
    with contextlib.closing(node.node.socket(socket.AF_INET, socket.SOCK_DGRAM)) as service:
        service.bind(("", PORT))
        service.settimeout(SILENCE_S)
        node.inject("outside", udp(EVERYBODY, node.mac("outside"), PLANS[0].outside, SUBNET_BROADCAST, PORT))
        assert service.recv(64)


def test_a_pod_isolated_for_egress_sends_nothing_to_everybody_on_the_wire(node: MacvlanNode) -> None:
    def out() -> bytes | None:
        with listener(node.outside) as wire:
            node.inject("a", udp(EVERYBODY, node.mac("a"), PLANS[0].a, SUBNET_BROADCAST, PORT))
            return marked(wire, SILENCE_S)

    assert out()
    node.isolate("a", egress=NOBODY)
    assert not out()


@pytest.mark.parametrize("mode", [MacvlanMode.BRIDGE, MacvlanMode.VEPA, MacvlanMode.PRIVATE])
def test_only_in_bridge_mode_the_kernel_hands_groups_from_pod_to_pod_by_itself(
    lab: Lab, bpffs: Path, mode: MacvlanMode
) -> None:
    """The known gap of bridge mode: such a frame is in the other pod before the parent has seen it."""
    node = MacvlanNode(lab, bpffs, mode).enforcing()
    node.isolate("b", ingress=NOBODY)
    node.isolate("a", egress=NOBODY)
    with listener(node.pods["b"]) as wire:
        node.inject("a", udp(EVERYBODY, node.mac("a"), PLANS[0].a, SUBNET_BROADCAST, PORT))
        assert bool(marked(wire, SILENCE_S)) is (mode is MacvlanMode.BRIDGE)


# --- pods of one node that reach each other through us only ---------------------------------------------------------


MIXTURES = {
    "vepa": {},
    "adopted a": {"a": MacvlanMode.BRIDGE},
    "adopted b and c": {"b": MacvlanMode.BRIDGE, "c": MacvlanMode.BRIDGE},
}
mixtures = pytest.mark.parametrize("apart", MIXTURES.values(), ids=MIXTURES)


def copies(node: MacvlanNode, sender: str, frame: bytes) -> dict[str, int]:
    """How often the other pods and the outside have the frame, whoever it is for."""
    names = {"outside", *node.pods} - {sender}
    with contextlib.ExitStack() as stack:
        wires = {name: stack.enter_context(listener(node.namespace(name))) for name in names}
        node.inject(sender, frame)
        found: Counter[str] = Counter()
        rest_s = SILENCE_S
        for name, wire in wires.items():
            while marked(wire, rest_s):
                found[name] += 1
            rest_s = THERE_S
    return found


@mixtures
def test_what_a_pod_sends_to_another_is_there_once_and_not_on_the_wire(
    lab: Lab, bpffs: Path, apart: dict[str, MacvlanMode]
) -> None:
    node = MacvlanNode(lab, bpffs, apart=apart).enforcing()
    plan = PLANS[0]
    for sender, receiver in itertools.permutations(node.pods, 2):
        frame = udp(node.mac(receiver), node.mac(sender), plan.of(sender), plan.of(receiver))
        assert copies(node, sender, frame) == {receiver: 1}


@mixtures
def test_what_a_pod_sends_to_a_group_is_at_every_other_once_and_on_the_wire(
    lab: Lab, bpffs: Path, apart: dict[str, MacvlanMode]
) -> None:
    """The node is none of them: it and its macvlans do not hear each other."""
    node = MacvlanNode(lab, bpffs, apart=apart).enforcing()
    with contextlib.closing(node.node.socket(socket.AF_INET, socket.SOCK_DGRAM)) as service:
        service.bind(("", PORT))
        for sender in node.pods:
            frame = udp(EVERYBODY, node.mac(sender), PLANS[0].of(sender), SUBNET_BROADCAST, PORT)
            assert copies(node, sender, frame) == dict.fromkeys({"outside", *node.pods} - {sender}, 1)
        service.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            service.recv(64)


def test_what_a_pod_sends_to_a_group_is_judged_at_each_receiver(lab: Lab, bpffs: Path) -> None:
    node = MacvlanNode(lab, bpffs).enforcing()
    frame = udp(EVERYBODY, node.mac("a"), PLANS[0].a, SUBNET_BROADCAST, PORT)
    node.isolate("b", ingress=7)
    assert copies(node, "a", frame) == {"c": 1, "outside": 1}
    node.allow(7, "a", ports=[(UDP, PORT)])
    assert copies(node, "a", frame) == {"b": 1, "c": 1, "outside": 1}
    node.isolate("a", egress=NOBODY)
    assert copies(node, "a", frame) == {}


def test_nobody_on_the_wire_passes_for_a_pod_of_the_node(lab: Lab, bpffs: Path) -> None:
    """By its MAC address and its address both: what the pod sends never comes back by the wire."""
    node = MacvlanNode(lab, bpffs).enforcing()
    for plan in PLANS:
        frame = udp(node.mac("b"), node.mac("a"), plan.a, plan.b)
        assert copies(node, "outside", frame) == {}
        assert copies(node, "a", frame) == {"b": 1}


@mixtures
def test_pods_find_and_reach_each_other_and_the_node_s_own_macvlan(
    lab: Lab, bpffs: Path, apart: dict[str, MacvlanMode]
) -> None:
    """By ARP and neighbor discovery, with as much as TCP likes to send at once."""
    node = MacvlanNode(lab, bpffs, apart=apart)
    node.node.ip("link add link eth0 name shim type macvlan mode bridge", "link set shim up")
    shim = {4: "198.51.100.50", 6: "fd50::50"}
    node.node.add_address("shim", f"{shim[4]}/32", f"{shim[6]}/128")
    node.enforcing()
    much = bytes(1 << 20)
    for plan in PLANS:
        assert reaches(node, "a", "b", plan) == reaches(node, "b", "c", plan) == EVERYTHING
        with tcp_stream(node.pods["a"], node.pods["b"], plan.b) as (dialer, accepted):
            sending = threading.Thread(target=dialer.sendall, args=(much,))
            sending.start()
            received = 0
            while received < len(much):
                received += len(accepted.recv(len(much)))
            sending.join()
        for name in node.pods:
            node.node.add_route(f"{alone(plan.of(name))} src {shim[plan.version]}", dev="shim")
            assert ping(node.pods[name], shim[plan.version], timeout_s=2)


# --- links --------------------------------------------------------------------------------------------------------


def test_flows_go_on_and_rules_hold_when_the_daemon_ends_and_starts_again(node: MacvlanNode) -> None:
    """What is asked at a parent stays there: the one who comes next finds it, and changes nothing."""
    node.allow(7, "a")
    node.isolate("b", ingress=7)
    plan = PLANS[0]
    with tcp_stream(node.pods["a"], node.pods["b"], plan.b) as (dialer, accepted):
        assert speaks(dialer, accepted)
        node.restarted()
        assert speaks(dialer, accepted)
        assert reaches(node, "outside", "b", plan) == NOTHING
        assert node.observe() == {node.parent: node.wanted()}
        assert speaks(dialer, accepted)


@pytest.fixture
def tcx() -> None:
    if not links.has_tcx():
        pytest.skip("no tcx, so there are no links: Linux 6.6; see test_policy_filters")


@pytest.mark.usefixtures("tcx")
def test_a_link_whose_pin_was_removed_is_still_in_force_and_is_pinned_again(node: MacvlanNode) -> None:
    node.observe()
    for hook in Hook:
        node.pin(hook).unlink()
    node.isolate("b", ingress=NOBODY)
    assert reaches(node, "a", "b", PLANS[0]) == NOTHING
    assert node.observe() == {node.parent: {}}
    node.apply(node.wanted())
    assert node.observe() == {node.parent: node.wanted()}
    assert ParentLinks(node.installed, node.directory) and node.pin(Hook.INGRESS).exists()


@pytest.mark.usefixtures("tcx")
def test_links_that_are_gone_are_made_again(node: MacvlanNode) -> None:
    """Somebody removed the pins while no daemon ran. Without them pods in mode vepa do not reach each other."""
    for hook in Hook:
        node.pin(hook).unlink()
    node.restarted()
    node.isolate("b", ingress=NOBODY)
    assert reaches(node, "outside", "b", PLANS[0]) == EVERYTHING
    assert node.observe() == {}
    node.apply(node.wanted())
    assert reaches(node, "outside", "b", PLANS[0]) == NOTHING
    assert reaches(node, "a", "c", PLANS[0]) == EVERYTHING


def test_without_pods_nothing_is_left_at_the_parent(node: MacvlanNode) -> None:
    node.apply(None)
    assert node.observe() == {}
    node.isolate("b", ingress=NOBODY)
    assert reaches(node, "outside", "b", PLANS[0]) == EVERYTHING
    assert not list(node.directory.glob("macvlan_*_at_*"))


def test_rules_hold_when_the_parent_was_down(node: MacvlanNode) -> None:
    node.isolate("b", ingress=NOBODY)
    node.node.ip("link set eth0 down", "link set eth0 up")
    node.node.add_address("eth0", f"{PLANS[1].node}/{PLANS[1].length}")
    for plan in PLANS:
        assert reaches(node, "a", "b", plan) == NOTHING
    assert ping(node.pods["b"], PLANS[0].outside, timeout_s=2)


@pytest.mark.usefixtures("tcx")
def test_a_parent_that_is_gone_takes_its_links_with_it(node: MacvlanNode) -> None:
    """And what is left of them is cleared away."""
    node.node.ip("link del eth0")
    assert node.observe() == {node.parent: {}}
    node.apply(None)
    assert node.observe() == {}
