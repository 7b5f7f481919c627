"""What an operator may ask about a flow, and what is half right in rules that do not allow it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from bgpd.model.labels import Operator
from bgpd.model.pod import Pod
from bgpd.model.policy import Direction, IpBlock, NamedPort, PodPeer, PortRange, Protocol, RuleRef
from bgpd.policy.evaluate import Flow, Near, near
from bgpd.policy.explain import QuestionError, notes, question
from bgpd.policy.wording import sentences
from tests.unit.test_policy_evaluate import ALL, CLIENT, OUTSIDE, WEB, allow, cluster, into, label, out

FLOW = Flow(ip_address(CLIENT), ip_address(WEB), Protocol.TCP, 80)
CLIENTS = PodPeer(label("app", "client"))
EVERY_PORT = PortRange(Protocol.TCP, 0, 65535)


@pytest.mark.parametrize(
    ("server", "protocol", "port"),
    [
        ("x/web", Protocol.TCP, None),
        ("x/web:80", Protocol.TCP, 80),
        ("x/web:53/udp", Protocol.UDP, 53),
        (f"{WEB}:3868/sctp", Protocol.SCTP, 3868),
        ("[fd00::1]:80/TCP", Protocol.TCP, 80),
        ("[fd00::1]", Protocol.TCP, None),
        ("fd00::1:80", Protocol.TCP, None),
    ],
)
def test_a_port_is_told_from_an_address(server: str, protocol: Protocol, port: int | None) -> None:
    """The last is an IPv6 address, for a port it takes brackets."""
    asked = question(cluster(), "x/client", server)
    assert (asked.protocol, asked.port) == (protocol, port)


def test_a_pod_is_meant_in_each_family_that_both_ends_have() -> None:
    both, one = question(cluster(), "x/client", "x/web:80"), question(cluster(), "x/other", "x/web:80")
    assert [(str(it.client), str(it.server)) for it in both.flows()] == [(CLIENT, WEB), ("fd00::2", "fd00::1")]
    assert [str(it.server) for it in one.flows()] == [WEB]


def test_without_a_port_it_is_a_ping() -> None:
    assert [it.protocol for it in question(cluster(), "x/client", "x/web").flows()] == [1, 58]


@pytest.mark.parametrize(
    ("client", "server", "said"),
    [
        ("x/client", "x/web:0", "from 1 to 65535"),
        ("x/client", "x/web:65536", "from 1 to 65535"),
        ("x/client", "x/web:80/icmp", "a port is like"),
        ("x/client", "x/web:http", "neither namespace/name"),
        ("client", "x/web", "neither namespace/name"),
        ("10.0.0.0/8", "x/web", "there is no pod 10.0.0.0/8"),
        ("x/client", "x/gone", "there is no pod x/gone"),
        ("x/other", "fd00::1", "no addresses of one family"),
        ("x/young", "x/web", "has no address yet"),
    ],
)
def test_what_cannot_be_meant_is_told(client: str, server: str, said: str) -> None:
    snapshot = cluster()
    snapshot = replace(snapshot, pods={**snapshot.pods, "x/young": Pod("x", "young")})
    with pytest.raises(QuestionError, match=said):
        question(snapshot, client, server)


def test_what_this_node_cannot_say_is_told() -> None:
    """A pod elsewhere, an address that is no pod's; a pod of the host's network has no policy of its own."""
    snapshot = cluster(local=("x/client",))
    there = replace(snapshot.pods["x/web"], node="worker2")
    snapshot = replace(snapshot, pods={**snapshot.pods, "x/web": there})
    assert [*notes(question(snapshot, "x/client", "x/web:80"))] == [
        "x/web is on worker2: its ingress is judged there, ask bgpd there too"
    ]
    assert [*notes(question(snapshot, OUTSIDE, "x/client:80"))] == [f"{OUTSIDE} is no pod's address"]
    assert [*notes(question(snapshot, "x/agent", "x/client:80"))] == []


def test_rules_that_are_half_right_are_found() -> None:
    """The right peer with another port, the right port with another peer; not what is wrong in both."""
    rules = (
        allow(CLIENTS, ports=(PortRange(Protocol.TCP, 443, 443),)),
        allow(PodPeer(label("app", "other")), ports=(PortRange(Protocol.TCP, 80, 90),)),
        allow(PodPeer(label("app", "other")), ports=(PortRange(Protocol.TCP, 443, 443),)),
        allow(CLIENTS, ports=(PortRange(Protocol.UDP, 80, 80),)),
    )
    snapshot = cluster(into(*rules))
    of_peer = tuple(RuleRef("x/p", Direction.INGRESS, index) for index in (0, 3))
    assert near(snapshot, FLOW, Direction.INGRESS) == Near(of_peer, (RuleRef("x/p", Direction.INGRESS, 1),))
    assert near(snapshot, FLOW, Direction.EGRESS) == Near()
    assert near(cluster(into(*rules), local=("x/client",)), FLOW, Direction.INGRESS) == Near(), "not our pod"


def test_rules_are_said_as_kubectl_takes_them() -> None:
    block = IpBlock(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),))
    named = (NamedPort(Protocol.TCP, "http"), PortRange(Protocol.UDP, 53, 53), PortRange(Protocol.SCTP, 1, 9))
    policy = into(
        allow(),
        allow(PodPeer(ALL), PodPeer(ALL, ALL), ports=(EVERY_PORT,)),
        allow(PodPeer(label("app", "a", "b"), label("team", operator=Operator.EXISTS)), block, ports=named),
        allow(PodPeer(label("app", "a", operator=Operator.NOT_IN)), ports=()),
    )
    assert sentences(policy) == {
        "ingress": [
            "from everybody: everything",
            "from all pods or all pods in all namespaces: tcp",
            "from pods app in (a,b) in namespaces team or 10.0.0.0/8 except 10.1.0.0/16: "
            "tcp http or udp 53 or sctp 1-9",
            "from pods app!=a: nothing, for no port of it can be read",
        ],
        "egress": None,
    }
    assert sentences(out())["egress"] == []
