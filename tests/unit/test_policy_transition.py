"""Changes of a policy while traffic flows: what both rule sets allow always passes, what both forbid never does."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from bgpd.datapath.layout import Action, Peer, Port, Rule, RuleFlag
from bgpd.model.labels import Selector
from bgpd.model.pod import Namespace
from bgpd.model.policy import (
    Direction,
    IpBlock,
    NamedPort,
    NetworkPolicy,
    PodPeer,
    PolicyRule,
    PortRange,
    Protocol,
    Snapshot,
)
from bgpd.policy.compile import Compiler
from bgpd.policy.entries import Contents, PortKey, RangeKey, RuleKey
from bgpd.policy.evaluate import Flow, evaluate
from bgpd.policy.transition import changes
from tests.unit.policy_reader import Maps, look_up
from tests.unit.test_policy_evaluate import ALL, CLIENT, FAR, OTHER, OUTSIDE, WEB, allow, cluster, into, label

HTTP = PortRange(Protocol.TCP, 80, 80)
KEPT = allow(PodPeer(label("app", "client")), ports=(HTTP,))
FLOW = Flow(ip_address(CLIENT), ip_address(WEB), Protocol.TCP, 80)
NEVER = Flow(ip_address(OTHER), ip_address(WEB), Protocol.UDP, 9)

EDITS: list[tuple[str, tuple[PolicyRule, ...]]] = [
    ("as it is", (KEPT,)),
    ("another group", (KEPT, allow(PodPeer(label("app", "web"))))),
    ("another group before it", (allow(PodPeer(label("app", "x"))), KEPT)),
    ("all pods", (allow(PodPeer(ALL, ALL), ports=(HTTP,)),)),
    ("everybody", (allow(ports=(HTTP,)),)),
    ("more ports", (allow(PodPeer(label("app", "client")), ports=(HTTP, PortRange(Protocol.TCP, 90, 99))),)),
    ("a range", (allow(PodPeer(label("app", "client")), ports=(PortRange(Protocol.TCP, 1, 1024),)),)),
    ("all of it", (allow(PodPeer(label("app", "client"))),)),
    ("a block", (allow(IpBlock(ip_network("10.0.0.2/31"), (ip_network("10.0.0.3/32"),))),)),
    ("a wide block", (allow(IpBlock(ip_network("0.0.0.0/0")), ports=(HTTP,)),)),
    ("that block in another group", (allow(IpBlock(ip_network("0.0.0.0/0")), PodPeer(ALL), ports=(HTTP,)),)),
    ("by name too", (KEPT, allow(ports=(NamedPort(Protocol.TCP, "http"),)))),
]
PAIRS = [(old, new) for old in EDITS for new in EDITS if old is not new]


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=[f"{old[0]} to {new[0]}" for old, new in PAIRS])
def test_every_moment_of_an_edit(
    old: tuple[str, tuple[PolicyRule, ...]], new: tuple[str, tuple[PolicyRule, ...]]
) -> None:
    """One flow that both forms allow, one that both forbid, looked up after each write."""
    before, after = cluster(into(*old[1])), cluster(into(*new[1]))
    assert all(evaluate(each, FLOW).allowed and not evaluate(each, NEVER).allowed for each in (before, after))
    compiler = Compiler()
    contents = compiler.advance(before)[-1]
    maps = Maps.of(contents)
    writes = 0
    for stage in compiler.advance(after):
        for write in changes(contents, stage):
            maps.apply(write)
            writes += 1
            assert look_up(maps, FLOW, Direction.INGRESS).allowed, (write, writes)
            assert not look_up(maps, NEVER, Direction.INGRESS).allowed, (write, writes)
        contents = stage
    assert writes


FROM_A = into(allow(PodPeer(label("app", "client"), label("team", "a"))), pods=label("app", "web"))
BASE = cluster(FROM_A, local=("x/web",))
TEAMS = {"a": Namespace("y", {"team": "a"}), "b": Namespace("y", {"team": "b"})}
LIVE: list[tuple[str, Snapshot, Snapshot, str]] = [
    (
        "a namespace's label",
        replace(BASE, namespaces={**BASE.namespaces, "y": TEAMS["a"]}),
        replace(BASE, namespaces={**BASE.namespaces, "y": TEAMS["b"]}),
        FAR,
    ),
    ("a namespace", BASE, replace(BASE, namespaces={"y": TEAMS["b"]}), CLIENT),
    ("a pod", BASE, replace(BASE, pods={key: pod for key, pod in BASE.pods.items() if key != "x/client"}), CLIENT),
    (
        "a pod's label",
        BASE,
        replace(BASE, pods={**BASE.pods, "x/client": replace(BASE.pods["x/client"], labels={})}),
        CLIENT,
    ),
    (
        "a pod's address",
        BASE,
        replace(BASE, pods={**BASE.pods, "x/client": replace(BASE.pods["x/client"], ips=())}),
        CLIENT,
    ),
    ("a rule", BASE, replace(BASE, policies={"x/p": replace(FROM_A, ingress=())}), CLIENT),
    (
        "the isolation",
        replace(BASE, policies={}),
        replace(BASE, policies={"x/p": replace(FROM_A, ingress=())}),
        CLIENT,
    ),
]


@pytest.mark.parametrize(("open_", "closed", "client"), [row[1:] for row in LIVE], ids=[row[0] for row in LIVE])
def test_live_changes_close_and_open(open_: Snapshot, closed: Snapshot, client: str) -> None:
    """Back and forth, with nothing left of the other state."""
    compiler = Compiler()
    flow = Flow(ip_address(client), ip_address(WEB), Protocol.TCP, 80)
    for snapshot in (open_, closed, open_, closed):
        contents = compiler.advance(snapshot)[-1]
        assert look_up(contents, flow, Direction.INGRESS).allowed == (snapshot is open_)
        assert contents == Compiler().advance(snapshot)[-1]


def test_a_block_counts_for_an_address_that_another_pod_had_a_claim_to() -> None:
    """The other one comes and goes, and only then a rule speaks of the block."""
    block = allow(IpBlock(ip_network(f"{CLIENT}/32")), ports=(HTTP,))
    rival = replace(BASE.pods["x/client"], name="rival", terminating=True)
    local = dict.fromkeys(("x/web", "x/client"), ())
    before = replace(BASE, policies={}, local=local)
    compiler = Compiler()
    for pods in (before.pods, {**before.pods, rival.key: rival}, before.pods):
        compiler.advance(replace(before, pods=pods))
    contents = compiler.advance(replace(before, policies={"x/p": into(block, pods=label("app", "web"))}))[-1]
    assert look_up(contents, FLOW, Direction.INGRESS).allowed


def test_a_pod_that_leaves_this_node_leaves_no_set() -> None:
    """Its address may be anybody's soon."""
    compiler = Compiler()
    compiler.advance(BASE)
    contents = compiler.advance(replace(BASE, local={}))[-1]
    assert contents == Contents()


def test_what_is_looked_up_last_is_written_first_and_removed_last() -> None:
    """Any two contents, such as a kernel's that another daemon left and ours."""
    allowed = Port(Action.ALLOW, 0, 0, 1)
    rule = Rule(7, Action.DENY, RuleFlag.HAS_PORTS, 0, 1)
    old = Contents(
        peers={b"a": Peer(1, 2, 3)},
        cidrs={ip_network("10.0.0.0/8"): 1},
        rules={RuleKey(2, 1): rule},
        ports={PortKey(7, 6, 80): allowed},
        ranges={RangeKey(7, 6, 0, 8): allowed},
    )
    new = Contents(
        peers={b"a": Peer(4, 5, 6)},
        cidrs={ip_network("11.0.0.0/8"): 4},
        rules={RuleKey(5, 4): rule._replace(portset=8)},
        ports={PortKey(8, 6, 80): allowed},
        ranges={RangeKey(8, 6, 0, 8): allowed},
    )
    assert [(write.map, write.value is not None) for write in changes(old, new)] == [
        ("ports", True),
        ("ranges", True),
        ("rules", True),
        ("cidrs", True),
        ("peers", True),
        ("cidrs", False),
        ("rules", False),
        ("ranges", False),
        ("ports", False),
    ]
    assert list(changes(new, new)) == []


def test_stages_are_as_few_as_the_change_needs() -> None:
    """A label of a pod flips one address; a policy of another node's pods is nothing at all."""
    compiler = Compiler()
    before = cluster(into(KEPT), local=("x/web",))
    contents = compiler.advance(before)[-1]
    elsewhere = NetworkPolicy("y", "q", "", Selector(), (), ())
    (same,) = compiler.advance(replace(before, policies={**before.policies, "y/q": elsewhere}))
    assert list(changes(contents, same)) == []
    relabelled = replace(before.pods["x/other"], labels={"app": "client"})
    (flipped,) = compiler.advance(replace(before, pods={**before.pods, "x/other": relabelled}))
    assert [(write.map, write.value is not None) for write in changes(contents, flipped)] == [("peers", True)]


def test_addresses_that_no_rule_tells_apart_are_not_there() -> None:
    """A node has entries for its own pods and for those that its rules speak of."""
    contents = Compiler().advance(cluster(into(KEPT), local=("x/web",)))[-1]
    known = {address for address in (WEB, CLIENT, OTHER, FAR, OUTSIDE) if ip_address(address) in addresses(contents)}
    assert known == {WEB, CLIENT}


def addresses(contents: Contents) -> set[object]:
    return {ip_address(key[12:]) for key in contents.peers if key.startswith(bytes(10) + b"\xff\xff")}
