"""NetworkPolicy with real packets of every protocol, on whichever kernel: on veths, behind a bridge, on macvlans.

One node of each kind for all tests: to make it is what takes the time where a kernel is emulated. Every test leaves
it open again. SCTP is spoken by the kernel's own sockets.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import TypeAlias

import pytest

from tests.fabric import parent_node, policy_node
from tests.fabric.conftest import mounted_bpffs
from tests.fabric.macvlan_node import MacvlanNode
from tests.fabric.masq_node import echoed, udp_client, udp_echo
from tests.fabric.netns import Lab, missing
from tests.fabric.policy_node import PolicyNode
from tests.fabric.reach import source_seen

SCTP = 132  # IPPROTO_SCTP
PROTOCOLS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, SCTP)
NAMES = {socket.IPPROTO_TCP: "TCP", socket.IPPROTO_UDP: "UDP", SCTP: "SCTP"}
PORT = 8080
SILENCE_S = 0.25  # for so long nothing must come; what passes takes a millisecond
ANSWER_S = 5.0  # of what passes, on a busy machine
NOBODY = 1  # a set without rules
Node: TypeAlias = PolicyNode | MacvlanNode


@pytest.fixture(scope="module", params=["veth", "bridge", "macvlan"])
def made(request: pytest.FixtureRequest) -> Iterator[Node]:
    if reason := missing("nft", "mount"):
        pytest.skip(reason)
    with Lab() as lab, mounted_bpffs(lab) as bpffs:
        if request.param == "macvlan":
            yield MacvlanNode(lab, bpffs).enforcing()
            return
        with contextlib.closing(PolicyNode(lab, bpffs, br_netfilter=request.param == "veth")) as policed:
            yield policed.enforcing()


@pytest.fixture
def node(made: Node) -> Iterator[Node]:
    yield made
    for name in ends(made):
        made.isolate(name)


@pytest.fixture(params=PROTOCOLS, ids=NAMES.get)
def protocol(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    if number == SCTP:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
        except OSError as error:
            assert error.errno == errno.EPROTONOSUPPORT, error
            pytest.skip("this kernel has no SCTP sockets: its module sctp is missing")
    return number


def ends(node: Node) -> tuple[str, str]:
    """Two pods of one kind: on macvlans, on cables of their own, or on a bridge that hands its frames to nobody."""
    return ("c", "d") if isinstance(node, PolicyNode) and node.br_netfilter else ("a", "b")


def reached(node: Node, protocol: int, client: str, server: str, timeout_s: float) -> list[bool]:
    """In each family."""
    return [_reached(node, protocol, client, server, version, timeout_s) for version in (4, 6)]


def _reached(node: Node, protocol: int, client: str, server: str, version: int, timeout_s: float) -> bool:
    plans = policy_node.PLANS if isinstance(node, PolicyNode) else parent_node.PLANS
    (plan,) = (each for each in plans if each.version == version)
    one, other, to, source = node.namespace(client), node.namespace(server), plan.of(server), plan.of(client)
    if protocol != socket.IPPROTO_UDP:
        seen = source_seen(one, other, to, port=PORT, source=source, timeout_s=timeout_s, protocol=protocol)
        return seen == source
    with udp_echo(other, to, PORT), udp_client(one, to, PORT) as dialer:
        dialer.settimeout(timeout_s)
        with contextlib.suppress(TimeoutError):
            return echoed(dialer) == b"x"
    return False


PASSES, DROPPED = [True, True], [False, False]


def test_an_isolated_pod_is_reached_by_nobody_and_reaches_others(node: Node, protocol: int) -> None:
    client, server = ends(node)
    node.isolate(server, ingress=NOBODY)
    assert reached(node, protocol, client, server, SILENCE_S) == DROPPED
    assert reached(node, protocol, server, client, ANSWER_S) == PASSES


def test_a_pod_isolated_for_egress_reaches_nobody_and_is_reached(node: Node, protocol: int) -> None:
    client, server = ends(node)
    node.isolate(client, egress=NOBODY)
    assert reached(node, protocol, client, server, SILENCE_S) == DROPPED
    assert reached(node, protocol, server, client, ANSWER_S) == PASSES


def test_a_rule_allows_its_port_of_its_protocol(node: Node, protocol: int) -> None:
    client, server = ends(node)
    for each in {protocol, socket.IPPROTO_TCP, socket.IPPROTO_UDP}:
        number = 100 + each  # a set for each, and with it its ports
        node.allow(number, client, ports=[(each, PORT)])
        node.isolate(server, ingress=number)
        allowed = each == protocol
        found = reached(node, protocol, client, server, ANSWER_S if allowed else SILENCE_S)
        assert found == (PASSES if allowed else DROPPED)
