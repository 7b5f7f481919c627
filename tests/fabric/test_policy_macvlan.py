"""NetworkPolicy of pods on macvlans, with real packets: at the parent, pod to pod and pod to wire."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bgpd.datapath.layout import PeerFlag, PolicyVerdict
from bgpd.datapath.links import Hook
from bgpd.model.endpoint import MacvlanMode
from bgpd.policy.parents import ParentLinks
from tests.fabric.frames import EVERYBODY, listener, marked, udp
from tests.fabric.macvlan_node import PLANS, MacvlanNode, Plan
from tests.fabric.masq_node import echoed, speaks, tcp_stream, udp_client, udp_echo
from tests.fabric.netns import Lab
from tests.fabric.reach import ping, source_seen

pytestmark = pytest.mark.needs("mount")

TCP, UDP = 6, 17
PORT = 8080
SILENCE_S = 0.25  # for so long nothing must come; what passes takes a millisecond
NOBODY = 1  # a set without rules
EVERYTHING, NOTHING = (True, True, True), (False, False, False)
SUBNET_BROADCAST = "198.51.100.255"


@pytest.fixture
def node(lab: Lab, bpffs: Path) -> MacvlanNode:
    return MacvlanNode(lab, bpffs).enforcing()


def reaches(node: MacvlanNode, client: str, server: str, plan: Plan) -> tuple[bool, bool, bool]:
    """By TCP, UDP and ping."""
    one, other, to, source = node.namespace(client), node.namespace(server), plan.of(server), plan.of(client)
    seen = source_seen(one, other, to, port=PORT, source=source, timeout_s=SILENCE_S)
    return seen == source, datagram(node, client, server, plan), ping(one, to, source=source, timeout_s=SILENCE_S)


def datagram(node: MacvlanNode, client: str, server: str, plan: Plan) -> bool:
    to = plan.of(server)
    with udp_echo(node.namespace(server), to, PORT), udp_client(node.namespace(client), to, PORT) as dialer:
        dialer.settimeout(SILENCE_S)
        with contextlib.suppress(TimeoutError):
            return echoed(dialer) == b"x"
    return False


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


# --- links --------------------------------------------------------------------------------------------------------


def test_flows_go_on_and_rules_hold_when_the_daemon_ends_and_starts_again(node: MacvlanNode) -> None:
    """Links are pinned: the one who comes next finds them, and changes nothing."""
    node.allow(7, "a")
    node.isolate("b", ingress=7)
    plan = PLANS[0]
    with tcp_stream(node.pods["a"], node.pods["b"], plan.b) as (dialer, accepted):
        assert speaks(dialer, accepted)
        node.links = ParentLinks(node.installed, node.directory)  # the one before is gone, with what it had open
        assert speaks(dialer, accepted)
        assert reaches(node, "outside", "b", plan) == NOTHING
        assert node.observe() == {node.parent: node.wanted()}
        assert speaks(dialer, accepted)


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


def test_links_that_are_gone_are_made_again(node: MacvlanNode) -> None:
    """Somebody removed the pins while no daemon ran."""
    for hook in Hook:
        node.pin(hook).unlink()
    node.links = ParentLinks(node.installed, node.directory)
    node.isolate("b", ingress=NOBODY)
    assert reaches(node, "a", "b", PLANS[0]) == EVERYTHING
    assert node.observe() == {}
    node.apply(node.wanted())
    assert reaches(node, "a", "b", PLANS[0]) == NOTHING


def test_without_pods_nothing_is_left_at_the_parent(node: MacvlanNode) -> None:
    node.apply(None)
    assert node.observe() == {}
    node.isolate("b", ingress=NOBODY)
    assert reaches(node, "a", "b", PLANS[0]) == EVERYTHING
    assert not list(node.directory.glob("macvlan_*_at_*"))


def test_rules_hold_when_the_parent_was_down(node: MacvlanNode) -> None:
    node.isolate("b", ingress=NOBODY)
    node.node.ip("link set eth0 down", "link set eth0 up")
    node.node.add_address("eth0", f"{PLANS[1].node}/{PLANS[1].length}")
    for plan in PLANS:
        assert reaches(node, "a", "b", plan) == NOTHING
    assert ping(node.pods["b"], PLANS[0].outside, timeout_s=2)


def test_a_parent_that_is_gone_takes_its_links_with_it(node: MacvlanNode) -> None:
    """And what is left of them is cleared away."""
    node.node.ip("link del eth0")
    assert node.observe() == {node.parent: {}}
    node.apply(None)
    assert node.observe() == {}
