"""What ending audit mode would drop, from what was told of single packets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from bgpd.datapath.layout import PolicyVerdict
from bgpd.model.policy import Direction
from bgpd.policy.audit import Tally, standing
from bgpd.policy.compile import Compiler
from bgpd.policy.events import End, Event
from bgpd.policy.report import rows
from tests.unit.test_policy_evaluate import allow, cluster, into, label

AT = 1_700_000_000.0
CLIENT, SERVER = End(ip_address("10.0.0.2"), 40000, "y/b"), End(ip_address("10.0.0.1"), 80, "x/a")
EVENT = Event(
    at=AT, direction=Direction.INGRESS, client=CLIENT, server=SERVER, protocol=6,
    verdict=PolicyVerdict.DENIED_INGRESS, audited=True, reply=False, policies=("x/p",), near="", lost=0,
)  # fmt: skip


def tallied(*events: Event, most: int = 10) -> Tally:
    tally = Tally(most)
    for event in events:
        tally.add(event)
    return tally


def test_packets_of_one_flow_are_one_row_whatever_port_the_client_has() -> None:
    """Nor does it matter which end sent it: where the first is dropped, no other comes."""
    again = replace(EVENT, at=AT + 60, client=replace(CLIENT, port=40001), reply=True, lost=5)
    assert tallied(EVENT, again).shown({"x"}) == [
        {
            "namespace": "x",
            "times": 2,
            "last": "2023-11-14T22:14:20.000Z",
            "verdict": "audited",
            "reason": "denied_ingress",
            "direction": "ingress",
            "client": {"address": "10.0.0.2", "port": None, "pod": "y/b"},
            "server": {"address": "10.0.0.1", "port": 80, "pod": "x/a"},
            "protocol": "tcp",
            "policies": ["x/p"],
            "why": "no ingress rule of x/p allows it",
            "lost": 5,
        }
    ]


def test_another_port_direction_or_policy_is_another_row_and_the_newest_comes_first() -> None:
    """What was dropped is none: it is not audit mode that decides about it."""
    others = (
        replace(EVENT, server=replace(SERVER, port=81)),
        replace(EVENT, direction=Direction.EGRESS, verdict=PolicyVerdict.DENIED_EGRESS),
        replace(EVENT, policies=("x/q",)),
    )
    tally = tallied(EVENT, *others, EVENT, replace(EVENT, audited=False))
    found = [(row["times"], row["policies"], row["server"]["port"]) for row in tally.shown({"x"})]
    assert found == [(2, ["x/p"], 80), (1, ["x/q"], 80), (1, ["x/p"], 81)]
    (egress,) = tally.shown({"y"})
    assert egress["direction"] == "egress", "the client decides there, and its namespace"


def test_a_pod_that_nobody_knows_is_of_its_policies_namespace() -> None:
    (row,) = tallied(replace(EVENT, server=replace(SERVER, pod=""))).shown({"x"})
    assert row["namespace"] == "x"
    assert tallied(replace(EVENT, server=replace(SERVER, pod=""), policies=None)).shown({"x"}) == []


def test_what_was_not_seen_for_longest_is_forgotten_first_and_counted() -> None:
    ports = [replace(EVENT, server=replace(SERVER, port=port)) for port in (1, 2, 3)]
    tally = tallied(ports[0], ports[1], ports[0], ports[2], most=2)
    assert [row["server"]["port"] for row in tally.shown({"x"})] == [3, 1]
    assert tally.forgotten == 1


def test_pods_of_a_namespace_that_are_isolated() -> None:
    snapshot = cluster(into(allow(), pods=label("app", "web")), local=("x/web", "x/client"))
    found = rows(snapshot, Compiler().advance(snapshot)[-1], {}, {}, "")
    assert list(standing({"x", "y"}, found)) == [
        {"namespace": "x", "pods": 2, "isolated": 1},
        {"namespace": "y", "pods": 0, "isolated": 0},
    ]
