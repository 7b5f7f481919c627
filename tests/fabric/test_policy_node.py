"""NetworkPolicy on a node, with real packets: routed pods and bridged ones, with br_netfilter and without."""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpd.datapath.layout import PeerFlag, PolicyVerdict
from tests.fabric.masq_node import echoed, speaks, tcp_stream, udp_client, udp_echo
from tests.fabric.netns import Lab
from tests.fabric.policy_node import PLANS, Plan, PolicyNode, link
from tests.fabric.reach import ping, source_seen

pytestmark = pytest.mark.needs("nft", "mount")

TCP, UDP = 6, 17
PORT = 8080
SILENCE_S = 0.25  # for so long nothing must come; what passes takes a millisecond
NOBODY = 1  # a set without rules
PAIRS = [("a", "b"), ("a", "c"), ("c", "a"), ("c", "d"), ("c", "outside"), ("outside", "a"), ("outside", "d")]


@pytest.fixture(params=[True, False], ids=["br_netfilter", "bridge alone"])
def node(lab: Lab, bpffs: Path, request: pytest.FixtureRequest) -> Iterator[PolicyNode]:
    with contextlib.closing(PolicyNode(lab, bpffs, br_netfilter=request.param)) as made:
        yield made.enforcing()


def address(plan: Plan, name: str) -> str:
    return plan.remote_pod if name == "outside" else plan.of(name)


def reaches(node: PolicyNode, client: str, server: str, plan: Plan) -> tuple[bool, bool, bool]:
    """By TCP, UDP and ping."""
    source = address(plan, client)
    one, other, to = node.namespace(client), node.namespace(server), address(plan, server)
    seen = source_seen(one, other, to, port=PORT, source=source, timeout_s=SILENCE_S)
    return seen == source, datagram(node, client, server, plan), ping(one, to, source=source, timeout_s=SILENCE_S)


def datagram(node: PolicyNode, client: str, server: str, plan: Plan) -> bool:
    to = address(plan, server)
    with udp_echo(node.namespace(server), to, PORT), udp_client(node.namespace(client), to, PORT) as dialer:
        dialer.settimeout(SILENCE_S)
        with contextlib.suppress(TimeoutError):
            return echoed(dialer) == b"x"
    return False


EVERYTHING, NOTHING = (True, True, True), (False, False, False)


def test_what_is_not_isolated_reaches_everything(node: PolicyNode) -> None:
    found = {(pair, plan.version): reaches(node, *pair, plan) for pair in PAIRS for plan in PLANS}
    assert found == dict.fromkeys(found, EVERYTHING)


@pytest.mark.parametrize("pod", ["b", "d"])
def test_an_isolated_pod_is_reached_by_nobody_and_reaches_everybody(node: PolicyNode, pod: str) -> None:
    """Isolated for ingress: replies to what it asks come in all the same."""
    node.isolate(pod, ingress=NOBODY)
    for plan in PLANS:
        for other in ("a", "c", "outside"):
            assert reaches(node, other, pod, plan) == NOTHING
            assert reaches(node, pod, other, plan) == EVERYTHING


@pytest.mark.parametrize("pod", ["b", "d"])
def test_a_pod_isolated_for_egress_reaches_nobody_and_is_reached(node: PolicyNode, pod: str) -> None:
    node.isolate(pod, egress=NOBODY)
    for plan in PLANS:
        for other in ("a", "c", "outside"):
            assert reaches(node, pod, other, plan) == NOTHING
            assert reaches(node, other, pod, plan) == EVERYTHING


@pytest.mark.parametrize(("client", "server"), [("a", "b"), ("c", "d"), ("a", "c"), ("outside", "d")])
def test_a_rule_allows_its_port_to_its_peer(node: PolicyNode, client: str, server: str) -> None:
    """Of one protocol; ICMP has no port, so only a rule without ports allows it."""
    node.allow(7, client, ports=[(TCP, PORT)])
    node.isolate(server, ingress=7)
    for plan in PLANS:
        assert reaches(node, client, server, plan) == (True, False, False)
    node.allow(7, client)
    for plan in PLANS:
        assert reaches(node, client, server, plan) == EVERYTHING


def test_both_ends_must_allow(node: PolicyNode) -> None:
    node.allow(7, "c")
    node.isolate("d", ingress=7)
    node.isolate("c", egress=NOBODY)
    assert [reaches(node, "c", "d", plan) for plan in PLANS] == [NOTHING, NOTHING]
    node.allow(NOBODY, "d")
    assert [reaches(node, "c", "d", plan) for plan in PLANS] == [EVERYTHING, EVERYTHING]


@pytest.mark.parametrize(("client", "server"), [("a", "b"), ("c", "d"), ("outside", "d")])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")
def test_a_flow_that_is_open_stops_at_once_when_it_is_forbidden(
    node: PolicyNode, plan: Plan, client: str, server: str
) -> None:
    """And goes on when it is allowed again: nothing has been sent to break it."""
    node.allow(7, client)
    node.isolate(server, ingress=7)
    one, other, to = node.namespace(client), node.namespace(server), address(plan, server)
    with tcp_stream(one, other, to) as (dialer, accepted), udp_echo(other, to), udp_client(one, to) as asker:
        assert speaks(dialer, accepted)
        assert echoed(asker) == b"x"
        node.forbid(7, client)
        for each in (dialer, accepted, asker):
            each.settimeout(SILENCE_S)
        assert not speaks(accepted, dialer)
        with pytest.raises(TimeoutError):
            echoed(asker)
        node.allow(7, client)
        for each in (dialer, accepted, asker):
            each.settimeout(10)  # TCP asks again ever more seldom
        assert dialer.recv(1) == b"?"
        assert echoed(asker) == b"x"


@pytest.fixture
def unjudged(lab: Lab, bpffs: Path) -> Iterator[PolicyNode]:
    """Without br_netfilter, and before there is a table."""
    with contextlib.closing(PolicyNode(lab, bpffs, br_netfilter=False)) as made:
        yield made


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")
@pytest.mark.parametrize("server_first", [True, False], ids=["server first", "client first"])
def test_connections_from_before_go_on_whoever_speaks_first(
    unjudged: PolicyNode, plan: Plan, server_first: bool
) -> None:
    """Pods ran before anybody judged, and the rules let them have no more than these connections."""
    one, other = unjudged.namespace("a"), unjudged.namespace("b")
    with tcp_stream(one, other, address(plan, "b"), PORT) as (dialer, accepted):
        assert speaks(dialer, accepted)
        unjudged.isolate("a", ingress=NOBODY)
        unjudged.isolate("b", egress=NOBODY)
        unjudged.apply()
        pairs = [(accepted, dialer), (dialer, accepted)]
        assert all(speaks(*pair) for pair in (pairs if server_first else pairs[::-1]))
    assert reaches(unjudged, "b", "a", plan) == NOTHING


@pytest.mark.parametrize("server_first", [True, False], ids=["server first", "client first"])
def test_a_forbidden_connection_from_before_stops(unjudged: PolicyNode, server_first: bool) -> None:
    """Even where the server itself may talk to whom it wants."""
    one, other = unjudged.namespace("a"), unjudged.namespace("b")
    with tcp_stream(one, other, address(PLANS[0], "b"), PORT) as (dialer, accepted):
        assert speaks(dialer, accepted)
        unjudged.isolate("b", ingress=NOBODY)
        unjudged.apply()
        for each in (dialer, accepted):
            each.settimeout(SILENCE_S)
        assert not (speaks(accepted, dialer) if server_first else speaks(dialer, accepted))


def test_audit_mode_lets_pass_and_says_what_it_would_not(node: PolicyNode) -> None:
    node.isolate("d", ingress=NOBODY, flags=PeerFlag.AUDIT)
    before = node.verdicts()
    assert reaches(node, "c", "d", PLANS[0]) == EVERYTHING
    after = node.verdicts()
    assert after[PolicyVerdict.AUDITED] > before.get(PolicyVerdict.AUDITED, 0)
    assert after[PolicyVerdict.DENIED_INGRESS] > before.get(PolicyVerdict.DENIED_INGRESS, 0)


@pytest.mark.parametrize("group", ["10.244.1.255", "255.255.255.255", "224.0.0.251", "ff02::fb", "link-local"])
def test_what_is_sent_to_a_group_reaches_whom_its_ingress_rules_let(node: PolicyNode, group: str) -> None:
    """Broadcast, multicast, and the pod's link-local address: no rule names them."""
    plan = PLANS[group in ("ff02::fb", "link-local")]
    heard = functools.partial(hears, node, "a", "b", plan, link_local(node, "b") if group == "link-local" else group)
    assert heard()
    node.isolate("b", ingress=7)
    assert not heard()
    node.allow(7, "a", ports=[(UDP, PORT)])
    assert heard()


def link_local(node: PolicyNode, name: str) -> str:
    shown = node.namespace(name).run(["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link"]).stdout
    return shown.split()[3].partition("/")[0]


def hears(node: PolicyNode, sender: str, receiver: str, plan: Plan, group: str) -> bool:
    """Whether a datagram that `sender` sends to this address, from its own, gets to `receiver`."""
    family = socket.AF_INET if plan.version == 4 else socket.AF_INET6
    with (
        contextlib.closing(node.namespace(receiver).socket(family, socket.SOCK_DGRAM)) as listener,
        contextlib.closing(node.namespace(sender).socket(family, socket.SOCK_DGRAM)) as dialer,
    ):
        listener.bind(("", PORT))
        listener.settimeout(SILENCE_S)
        if group == "224.0.0.251":
            joined = socket.inet_aton(group) + socket.inet_aton(plan.of(receiver))
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        if group == "ff02::fb":
            joined = socket.inet_pton(family, group) + struct.pack("=I", link(node.namespace(receiver), "eth0")[0])
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)
        dialer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        dialer.bind((plan.of(sender), 0))
        scope = (0, link(node.namespace(sender), "eth0")[0]) if plan.version == 6 else ()
        if plan.version == 4:
            dialer.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(plan.of(sender)))
            dialer.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        dialer.sendto(b"x", (group, PORT, *scope))
        with contextlib.suppress(TimeoutError):
            return listener.recv(1) == b"x"
    return False


def test_a_pod_that_is_not_isolated_is_found_on_the_link(node: PolicyNode) -> None:
    """ARP and neighbor discovery pass between isolated pods: an address that is not found answers no ping."""
    for name in ("a", "b"):
        node.allow(7, *({"a", "b"} - {name}))
        node.isolate(name, egress=7, ingress=7)
    for name in ("a", "b"):
        node.namespace(name).ip("neigh flush dev eth0")
    assert all(reaches(node, *pair, plan) == EVERYTHING for pair in (("a", "b"), ("b", "a")) for plan in PLANS)
