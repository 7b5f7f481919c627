"""Services, errors, spoofed sources and flips of rules, with real packets."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from bgpd.model.outcome import DONE
from bgpd.policy.table import NAME
from tests.fabric.masq_node import echoed, speaks, tcp_stream, udp_client, udp_echo
from tests.fabric.netns import Lab, Namespace
from tests.fabric.policy_node import PLANS, PORT, SERVICE_PORT, Plan, PolicyNode, link, serve
from tests.fabric.reach import ping, source_seen

pytestmark = pytest.mark.needs("nft", "mount")

TCP, UDP = 6, 17
SILENCE_S = 0.25
NOBODY = 1
FLIPS = 1000


@pytest.fixture
def node(lab: Lab, bpffs: Path) -> Iterator[PolicyNode]:
    with contextlib.closing(PolicyNode(lab, bpffs)) as made:
        yield made.enforcing()


plans = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")


def answered(client: Namespace, server: Namespace, plan: Plan, endpoint: str) -> bool:
    """Whether a connection to the service comes about."""
    family = socket.AF_INET if plan.version == 4 else socket.AF_INET6
    with (
        contextlib.closing(server.socket(family, socket.SOCK_STREAM)) as listener,
        contextlib.closing(client.socket(family, socket.SOCK_STREAM)) as dialer,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((plan.of(endpoint), PORT))
        listener.listen(1)
        dialer.settimeout(SILENCE_S)
        try:
            dialer.connect((plan.service, SERVICE_PORT))
        except TimeoutError:
            return False
        accepted, _ = listener.accept()
        with contextlib.closing(accepted):
            accepted.settimeout(SILENCE_S)
            return speaks(dialer, accepted)


@plans
@pytest.mark.parametrize(("client", "server"), [("c", "d"), ("a", "b"), ("a", "d"), ("d", "b")])
def test_a_service_is_judged_by_its_endpoint(node: PolicyNode, plan: Plan, client: str, server: str) -> None:
    """Address and port are the endpoint's, for the client's egress and for the server's ingress."""
    serve(node, plan, server)
    reach = node.namespace(client), node.namespace(server), plan, server
    assert answered(*reach)
    node.isolate(client, egress=11)
    node.isolate(server, ingress=12)
    node.allow(11, server, ports=[(TCP, SERVICE_PORT)])
    node.allow(12, client, ports=[(TCP, PORT)])
    assert not answered(*reach)
    node.allow(11, server, ports=[(TCP, PORT)])
    assert answered(*reach)
    node.forbid(12, client)
    assert not answered(*reach)


@plans
@pytest.mark.parametrize("pod", ["b", "d"])
def test_a_pod_reaches_itself_through_its_service(node: PolicyNode, plan: Plan, pod: str) -> None:
    """Closed to everybody, in both directions."""
    serve(node, plan, pod)
    node.isolate(pod, egress=NOBODY, ingress=NOBODY)
    if pod == "b":  # the bridge sends back where it came from, as kubelet's hairpin mode has it
        node.node.ip("link set port-b type bridge_slave hairpin on")
    assert answered(node.namespace(pod), node.namespace(pod), plan, pod)


@plans
def test_an_error_of_an_allowed_flow_comes_through(node: PolicyNode, plan: Plan) -> None:
    """From a router in between, whose address no rule knows; the sender learns that nobody listens."""
    node.allow(7, "outside", ports=[(UDP, PORT)])
    node.isolate("d", egress=7, ingress=NOBODY)
    with udp_client(node.namespace("d"), plan.remote_pod, PORT) as dialer:
        dialer.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            dialer.recv(1)


@plans
def test_the_node_itself_reaches_its_pods(node: PolicyNode, plan: Plan) -> None:
    """kubelet's probes."""
    for pod in ("b", "d"):
        node.isolate(pod, egress=NOBODY, ingress=NOBODY)
        assert ping(node.node, plan.of(pod))
        assert ping(node.namespace(pod), plan.gateways[pod])


# --- spoofed sources ------------------------------------------------------------------------------------------------


@plans
@pytest.mark.parametrize("pod", ["b", "d"])
def test_a_pod_cannot_send_with_another_source(node: PolicyNode, plan: Plan, pod: str) -> None:
    """An address that it has taken; the bridge's pod one of its neighbor."""
    taken = plan.a if pod == "b" else plan.c
    node.namespace(pod).add_address("eth0", f"{taken}/{ip_address(taken).max_prefixlen}")
    with udp_echo(node.outside, plan.remote_pod, PORT) as seen:
        for source, heard in ((plan.of(pod), 1), (taken, 1)):
            with contextlib.closing(node.namespace(pod).socket(family_of(plan), socket.SOCK_DGRAM)) as dialer:
                dialer.bind((source, 0))
                dialer.settimeout(SILENCE_S)
                dialer.sendto(b"x", (plan.remote_pod, PORT))
                with contextlib.suppress(TimeoutError):
                    dialer.recv(1)
            assert len(seen) == heard


def family_of(plan: Plan) -> socket.AddressFamily:
    return socket.AF_INET if plan.version == 4 else socket.AF_INET6


@pytest.mark.parametrize("pod", ["b", "d"])
def test_a_pod_cannot_send_from_another_hardware_address(node: PolicyNode, pod: str) -> None:
    assert ping(node.namespace(pod), PLANS[0].remote_pod)
    node.namespace(pod).ip("link set eth0 address 02:00:00:00:00:99")
    device = "cni0" if pod == "b" else "port-d"
    node.node.ip(f"neigh replace {PLANS[0].of(pod)} lladdr 02:00:00:00:00:99 dev {device}")
    assert not ping(node.namespace(pod), PLANS[0].remote_pod, timeout_s=SILENCE_S)


def test_a_pod_cannot_claim_its_neighbors_address_by_arp(node: PolicyNode) -> None:
    """The neighbor's entry in the node's table stays what it was."""
    plan = PLANS[0]
    assert ping(node.namespace("a"), plan.remote_pod)
    thief, mac = node.namespace("b"), link(node.namespace("b"), "eth0")[1]
    claim = mac + ip_address(plan.a).packed
    frame = b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 2) + claim + b"\xff" * 6 + claim[6:]
    with contextlib.closing(thief.socket(socket.AF_PACKET, socket.SOCK_RAW)) as wire:
        wire.bind(("eth0", 0))
        wire.send(frame)
    shown = node.node.run(["ip", "neigh", "show", plan.a]).stdout
    assert link(node.namespace("a"), "eth0")[1].hex(":") in shown


def test_link_local_addresses_are_no_way_around_policies(node: PolicyNode) -> None:
    """Rules know pods by their addresses; two pods on a bridge have others, which nobody routes."""
    shown = node.namespace("b").run(["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link"]).stdout
    there = shown.split()[3].partition("/")[0]
    node.isolate("b", ingress=NOBODY)
    assert not ping(node.namespace("a"), f"{there}%eth0", timeout_s=SILENCE_S)


# --- changes under traffic ------------------------------------------------------------------------------------------


@plans
@pytest.mark.parametrize(("client", "server"), [("a", "b"), ("c", "d")])
def test_a_thousand_flips_break_no_flow_that_both_rule_sets_allow(
    node: PolicyNode, plan: Plan, client: str, server: str
) -> None:
    """And let none pass that both forbid. Every datagram is answered, every one to another port is not."""
    for number in (21, 22):
        node.allow(number, client, ports=[(UDP, PORT), (TCP, number)])
    node.isolate(server, ingress=21)
    one, other, to = node.namespace(client), node.namespace(server), plan.of(server)
    over = threading.Event()

    def flip() -> None:
        for turn in range(FLIPS):
            node.isolate(server, ingress=21 + turn % 2)
        over.set()

    with (
        udp_echo(other, to, PORT) as allowed, udp_echo(other, to, PORT + 1) as forbidden,
        udp_client(one, to, PORT) as asker, udp_client(one, to, PORT + 1) as intruder,
    ):  # fmt: skip
        flipping = threading.Thread(target=flip)
        flipping.start()
        asked = 0
        while not over.is_set() or asked < FLIPS:
            intruder.send(b"x")
            assert echoed(asker) == b"x", f"datagram {asked}"
            asked += 1
        flipping.join()
    assert (len(allowed), len(forbidden)) == (asked, 0)


def test_an_open_connection_survives_when_the_tables_are_renewed(node: PolicyNode) -> None:
    """Another program in the rules, and the tables of a daemon that has gone adopted by the next."""
    node.allow(7, "c")
    node.isolate("d", ingress=7)
    plan = PLANS[0]
    with tcp_stream(node.namespace("c"), node.namespace("d"), plan.d) as stream:
        assert speaks(*stream)
        assert node.apply() == [DONE, DONE]
        node.connection.close()
        node.connection = node.connect()
        assert speaks(*stream)
        assert node.apply() == [DONE, DONE]
        assert node.observe() == node.wanted()
        assert speaks(*stream)
        assert source_seen(node.outside, node.namespace("d"), plan.d, timeout_s=SILENCE_S) is None


def test_others_tables_are_left_alone(node: PolicyNode) -> None:
    serve(node, PLANS[0], "d")
    before = node.node.run(["nft", "list", "table", "ip", "services"]).stdout
    node.apply()
    node.remove()
    assert node.observe() == {}
    assert node.node.run(["nft", "list", "tables"]).stdout.split("\n")[0] == "table ip services"
    assert node.node.run(["nft", "list", "table", "ip", "services"]).stdout == before


@pytest.mark.parametrize(
    ("script", "damage"),
    [
        ("flush chain inet {name} forward", "its chains do not ask our programs"),
        ("delete element inet {name} links {{ port-d }}", ""),
        ("add rule bridge {name} source accept", "chain source has"),
        ("add chain inet {name} other", "its chains are"),
        ("add set inet {name} other {{ type mark; }}", "its sets are"),
    ],
)
def test_what_another_has_done_to_a_table_is_seen_and_put_right(node: PolicyNode, script: str, damage: str) -> None:
    """Where the kernel lets them: as before Linux 6.9, without an owner."""
    node.remove()
    node.owned = False
    node.apply()
    assert node.node.run(["nft", "-f", "-"], stdin=script.format(name=NAME)).returncode == 0
    assert node.observe() != node.wanted()
    assert any(table.damage.startswith(damage) for table in node.observe().values())
    assert node.apply() == [DONE, DONE]
    assert node.observe() == node.wanted()


def test_an_owned_table_cannot_be_touched(node: PolicyNode) -> None:
    if not node.owned:
        pytest.skip("this kernel has no owned tables that stay")
    for family in ("inet", "bridge"):
        assert node.node.run(["nft", "flush", "table", family, NAME], check=False).returncode != 0
    assert node.observe() == node.wanted()
