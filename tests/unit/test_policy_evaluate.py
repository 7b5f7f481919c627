"""NetworkPolicy's semantics, one fact a test, as the Kubernetes documentation states them.

Each is asked of the reference and of the compiled maps, so that the two cannot share a mistake that only random
clusters would show.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from bgpd.model.labels import Operator, Requirement, Selector
from bgpd.model.pod import ContainerPort, Namespace, Pod
from bgpd.model.policy import (
    Direction,
    IpBlock,
    NamedPort,
    NetworkPolicy,
    Peer,
    PodPeer,
    PolicyRule,
    PortRange,
    Protocol,
    RuleRef,
    Snapshot,
)
from bgpd.policy.compile import Compiler
from bgpd.policy.evaluate import Flow, Judgement, Reason, evaluate
from tests.unit.policy_reader import look_up

NODE = ip_address("192.0.2.1")
ICMP = 1
ALL = Selector()
WEB, CLIENT, OTHER, FAR = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1"
OUTSIDE = "198.51.100.9"
PODS = (
    Pod(
        "x", "web", labels={"app": "web"}, ips=(ip_address(WEB), ip_address("fd00::1")),
        ports=(ContainerPort("http", Protocol.TCP, 8080), ContainerPort("dns", Protocol.UDP, 53)),
    ),
    Pod("x", "client", labels={"app": "client"}, ips=(ip_address(CLIENT), ip_address("fd00::2"))),
    Pod("x", "other", labels={"app": "other"}, ips=(ip_address(OTHER),)),
    Pod("y", "far", labels={"app": "client"}, ips=(ip_address(FAR),)),
    Pod("x", "agent", labels={"app": "client"}, ips=(NODE,), host_network=True),
)  # fmt: skip


def label(key: str, *values: str, operator: Operator = Operator.IN) -> Selector:
    return Selector((Requirement(key, operator, values),))


def allow(*peers: Peer, ports: tuple[PortRange | NamedPort, ...] | None = None) -> PolicyRule:
    return PolicyRule(peers or None, ports)


def into(*rules: PolicyRule, name: str = "p", pods: Selector = ALL) -> NetworkPolicy:
    return NetworkPolicy("x", name, "", pods, ingress=rules, egress=None)


def out(*rules: PolicyRule, pods: Selector = ALL) -> NetworkPolicy:
    return NetworkPolicy("x", "out", "", pods, ingress=None, egress=rules)


def cluster(*policies: NetworkPolicy, pods: tuple[Pod, ...] = PODS, local: tuple[str, ...] | None = None) -> Snapshot:
    found = {pod.key: pod for pod in pods}
    return Snapshot(
        pods=found,
        namespaces={"x": Namespace("x", {"team": "a"}), "y": Namespace("y", {"team": "b"})},
        policies={policy.key: policy for policy in policies},
        local=dict.fromkeys(found if local is None else local, ()),
        node_addresses=frozenset({NODE}),
    )


def ask(
    snapshot: Snapshot, client: str, server: str, port: int | None = 80, protocol: int = Protocol.TCP
) -> Judgement:
    flow = Flow(ip_address(client), ip_address(server), protocol, port)
    told = evaluate(snapshot, flow)
    if not {flow.client, flow.server} & snapshot.node_addresses:  # that traffic never comes to the hook
        maps = Compiler().advance(snapshot)[-1]
        assert look_up(maps, flow, Direction.EGRESS).allowed == told.egress.allowed
        assert look_up(maps, flow, Direction.INGRESS).allowed == told.ingress.allowed
    return told


def passes(snapshot: Snapshot, client: str, server: str, port: int | None = 80, protocol: int = Protocol.TCP) -> bool:
    return ask(snapshot, client, server, port, protocol).allowed


def test_without_a_policy_everything_passes() -> None:
    """And the reason says so."""
    told = ask(cluster(), CLIENT, WEB)
    assert (told.egress.reason, told.ingress.reason) == (Reason.NOT_ISOLATED, Reason.NOT_ISOLATED)


def test_a_selected_pod_is_isolated_in_that_direction_only() -> None:
    """Others are not, and what it sends is not."""
    snapshot = cluster(into(pods=label("app", "web")))
    told = ask(snapshot, CLIENT, WEB)
    assert (told.ingress.reason, told.ingress.policies, told.ingress.rules) == (Reason.NO_RULE, ("x/p",), ())
    assert passes(snapshot, WEB, CLIENT)


def test_policies_add_up() -> None:
    """What any one of them allows passes; the decision names all rules that would."""
    snapshot = cluster(
        into(name="none"), into(allow(PodPeer(label("app", "client"))), name="some"), into(allow(), name="all")
    )
    told = ask(snapshot, CLIENT, WEB).ingress
    assert told.policies == ("x/all", "x/none", "x/some")
    assert told.rules == (RuleRef("x/all", Direction.INGRESS, 0), RuleRef("x/some", Direction.INGRESS, 0))


def test_both_ends_must_allow() -> None:
    """Egress at the client and ingress at the server."""
    open_in, closed_out = into(allow()), out(allow(PodPeer(label("app", "other"))))
    told = ask(cluster(open_in, closed_out), CLIENT, WEB)
    assert (told.egress.allowed, told.ingress.allowed, told.allowed) == (False, True, False)
    assert passes(cluster(open_in, closed_out), CLIENT, OTHER)


PEERS: list[tuple[str, Peer, set[str]]] = [
    ("all pods here", PodPeer(ALL), {CLIENT, OTHER}),
    ("a label", PodPeer(label("app", "client")), {CLIENT}),
    ("all pods anywhere", PodPeer(ALL, ALL), {CLIENT, OTHER, FAR}),
    ("pods of a namespace", PodPeer(ALL, label("team", "b")), {FAR}),
    ("pods by both", PodPeer(label("app", "client"), ALL), {CLIENT, FAR}),
    ("not in", PodPeer(label("app", "client", operator=Operator.NOT_IN)), {OTHER}),
    ("not in, of a label nobody has", PodPeer(label("no", "x", operator=Operator.NOT_IN)), {CLIENT, OTHER}),
    ("exists", PodPeer(label("app", operator=Operator.EXISTS)), {CLIENT, OTHER}),
    ("does not exist", PodPeer(label("app", operator=Operator.DOES_NOT_EXIST)), set()),
    ("block of everything", IpBlock(ip_network("0.0.0.0/0")), {CLIENT, OTHER, FAR, OUTSIDE}),
    ("block of pods", IpBlock(ip_network("10.0.0.0/24"), (ip_network("10.0.0.3/32"),)), {CLIENT}),
    ("block without pods", IpBlock(ip_network("0.0.0.0/0"), (ip_network("10.0.0.0/8"),)), {OUTSIDE}),
    ("block of the other family", IpBlock(ip_network("::/0")), set()),
]


@pytest.mark.parametrize(("peer", "who"), [row[1:] for row in PEERS], ids=[row[0] for row in PEERS])
@pytest.mark.parametrize("direction", Direction)
def test_peers(direction: Direction, peer: Peer, who: set[str]) -> None:
    """In both directions alike; pods, and addresses nobody here has."""
    policy = into if direction is Direction.INGRESS else out
    snapshot = cluster(policy(allow(peer), pods=label("app", "web")))
    ends = {(each, WEB) if direction is Direction.INGRESS else (WEB, each) for each in (CLIENT, OTHER, FAR, OUTSIDE)}
    assert {next(iter({*pair} - {WEB})) for pair in ends if passes(snapshot, *pair)} == who


def test_a_namespace_nobody_has_shown_is_selected_by_nothing() -> None:
    """Not even by a selector without requirements: its labels are not known, and NotIn would guess."""
    stray = Pod("new", "p", ips=(ip_address("10.0.9.9"),))
    snapshot = cluster(into(allow(PodPeer(ALL, ALL))), pods=(*PODS, stray))
    assert not passes(snapshot, "10.0.9.9", WEB)


PORTS = [
    ("number", PortRange(Protocol.TCP, 80, 80), {(6, 80)}),
    ("range", PortRange(Protocol.TCP, 79, 81), {(6, 80), (6, 81)}),
    ("protocol", PortRange(Protocol.UDP, 0, 65535), {(17, 53), (17, 80)}),
    ("sctp", PortRange(Protocol.SCTP, 80, 80), {(132, 80)}),
    ("name", NamedPort(Protocol.TCP, "http"), {(6, 8080)}),
    ("name of another protocol", NamedPort(Protocol.UDP, "http"), set()),
    ("name nobody has", NamedPort(Protocol.TCP, "nobody"), set()),
]


@pytest.mark.parametrize(("port", "kinds"), [row[1:] for row in PORTS], ids=[row[0] for row in PORTS])
@pytest.mark.parametrize("direction", Direction)
def test_ports(direction: Direction, port: PortRange | NamedPort, kinds: set[tuple[int, int]]) -> None:
    """They are the server's in both directions, and names mean what the server's containers say."""
    policy = into if direction is Direction.INGRESS else out
    snapshot = cluster(policy(allow(ports=(port,)), pods=label("app", "web", "client")))
    asked = {(6, 80), (6, 81), (6, 8080), (17, 53), (17, 80), (132, 80)}
    assert {kind for kind in asked if passes(snapshot, CLIENT, WEB, kind[1], kind[0])} == kinds


def test_icmp_passes_only_where_no_ports_are_asked_for() -> None:
    """It is subject to policy, and no list of ports speaks of it."""
    assert passes(cluster(into(allow(PodPeer(ALL)))), CLIENT, WEB, None, ICMP)
    assert not passes(cluster(into(allow(ports=(PortRange(Protocol.TCP, 0, 65535),)))), CLIENT, WEB, None, ICMP)
    assert not passes(cluster(into()), CLIENT, WEB, None, ICMP)


def test_a_pod_reaches_itself_and_its_node_reaches_it() -> None:
    """Whatever the policies say, in both directions."""
    snapshot = cluster(into(), out())
    assert ask(snapshot, WEB, WEB).ingress.reason is Reason.ITSELF
    assert ask(snapshot, str(NODE), WEB).ingress.reason is Reason.OWN_NODE
    assert ask(snapshot, WEB, str(NODE)).egress.reason is Reason.OWN_NODE


def test_pods_on_the_hosts_network_are_their_node() -> None:
    """No policy selects them, and as a peer one has a node's address and no labels."""
    elsewhere = Pod("x", "there", labels={"app": "client"}, ips=(ip_address("192.0.2.2"),), host_network=True)
    snapshot = cluster(into(allow(PodPeer(ALL, ALL))), out(), pods=(*PODS, elsewhere))
    assert not passes(snapshot, "192.0.2.2", WEB)
    assert ask(snapshot, "192.0.2.2", OUTSIDE).egress.reason is Reason.NO_POD
    by_address = cluster(into(allow(IpBlock(ip_network("192.0.2.2/32")))), pods=(*PODS, elsewhere))
    assert passes(by_address, "192.0.2.2", WEB)


def test_both_families_alike() -> None:
    """Selectors speak of pods and so of all their addresses; a block speaks of one family."""
    snapshot = cluster(into(allow(PodPeer(label("app", "client")))))
    assert passes(snapshot, "fd00::2", "fd00::1")
    assert not passes(snapshot, "fd00::3", "fd00::1")
    assert not passes(cluster(into(allow(IpBlock(ip_network("0.0.0.0/0"))))), "fd00::2", "fd00::1")


def test_only_pods_of_this_node_are_judged() -> None:
    """The other end is judged where it is."""
    told = ask(cluster(into(), out(), local=("x/client",)), CLIENT, WEB)
    assert (told.egress.reason, told.ingress.reason) == (Reason.NO_RULE, Reason.NO_POD)


@pytest.mark.parametrize("old", [{"terminating": True}, {"finished": True}, {"created": "2025-01-01T00:00:00Z"}])
def test_an_address_that_is_used_again_is_the_new_pods(old: dict[str, object]) -> None:
    """While the old one is still shown: nobody may send as it was allowed to."""
    before = Pod("x", "old", labels={"app": "client"}, ips=(ip_address("10.0.2.1"),), **{"created": "2026", **old})  # type: ignore[arg-type]
    after = Pod("x", "new", labels={"app": "x"}, ips=(ip_address("10.0.2.1"),), created="2026-02-01T00:00:00Z")
    policy = into(allow(PodPeer(label("app", "client"))), pods=label("app", "web"))
    assert passes(cluster(policy, pods=(*PODS, before), local=("x/web",)), "10.0.2.1", WEB) == ("finished" not in old)
    assert not passes(cluster(policy, pods=(*PODS, before, after), local=("x/web",)), "10.0.2.1", WEB)


def test_a_pod_that_kubernetes_has_not_shown_is_closed() -> None:
    """Its interface is here, its labels are not: any policy may select it."""
    snapshot = cluster()
    snapshot = Snapshot(
        snapshot.pods, snapshot.namespaces, {}, {"x/new": (ip_address("10.0.5.5"),)}, snapshot.node_addresses
    )
    assert ask(snapshot, CLIENT, "10.0.5.5").ingress.reason is Reason.UNKNOWN_POD
    assert not ask(snapshot, "10.0.5.5", OUTSIDE).egress.allowed
