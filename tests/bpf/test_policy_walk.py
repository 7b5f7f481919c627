"""What `bgpd policy explain` reads out of the kernel's maps is what the program makes of the packet."""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgpd.datapath.layout import PolicyVerdict
from bgpd.datapath.loader import Installed
from bgpd.model.policy import Direction, IpBlock, PortRange, Protocol, Snapshot
from bgpd.policy import explain
from bgpd.policy.compile import Compiler
from bgpd.policy.entries import Contents
from bgpd.policy.evaluate import Flow
from bgpd.policy.explain import End, Question
from bgpd.policy.map import KEY, PolicyMaps, Stages
from bgpd.policy.walk import Side, walk
from bgpd.runtime.diff import Change
from tests.bpf.test_policy import DROP, PASS, SOURCES, ask, to
from tests.fabric.rules_by_hand import verdicts
from tests.unit.policy_cases import FLOWS, NAMESPACES, snapshots
from tests.unit.test_policy_evaluate import CLIENT, OUTSIDE, WEB, allow, cluster, into
from tests.unit.test_policy_explain import CLIENTS

SOME = 25  # flows of each example
SEEN = [flow for flow in FLOWS if flow.port is not None]
audited = st.sets(st.sampled_from(NAMESPACES)).map(frozenset)


def bring(policy: Installed, directory: Path, contents: Contents) -> None:
    async def apply() -> None:
        maps = PolicyMaps(policy, directory)
        have = await maps.observe()
        await maps.apply([Change(KEY, Stages((contents,)), have.get(KEY))])
        await maps.settled()

    asyncio.run(apply())


def frame(flow: Flow) -> bytes:
    """The packet by which the client begins it."""
    made = to(flow.server, struct.pack("!HH", 40000, flow.port or 0) + bytes(16), flow.protocol)
    return made.replace(SOURCES[flow.client.version].packed, flow.client.packed, 1)


def ends(sides: dict[Direction, Side]) -> int:
    """What becomes of the packet if both ends have their say."""
    return PASS if all(side.allowed or side.audited for side in sides.values()) else DROP


@given(snapshots(), audited, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_walk_ends_as_the_program_does(
    policy: Installed, directory: Path, snapshot: Snapshot, audited: frozenset[str], rand: random.Random
) -> None:
    """By verdict; of two ends that deny, the program names the client's."""
    contents = Compiler().advance(replace(snapshot, audited=audited))[-1]
    bring(policy, directory, contents)
    for flow in rand.sample(SEEN, SOME):
        sides = {
            direction: walk(lambda name, key: policy.maps[name].lookup(key), flow, direction)
            for direction in Direction
        }
        denied = [side for side in (sides[Direction.EGRESS], sides[Direction.INGRESS]) if not side.allowed]
        found = said_of(policy, flow)
        assert (found >= PolicyVerdict.DENIED_EGRESS) == (ends(sides) == DROP), (flow, sides)
        if denied and not any(side.audited for side in denied):
            assert found == denied[0].verdict
        elif denied and ends(sides) == PASS:
            assert found == PolicyVerdict.AUDITED


def said_of(policy: Installed, flow: Flow) -> PolicyVerdict:
    """Audited packets are counted as what they would have been, too."""
    before = verdicts(policy.maps["policy_verdicts"])
    value = ask(policy, frame(flow))
    after = verdicts(policy.maps["policy_verdicts"])
    assert ask(policy, frame(flow)) == value, "what is remembered is another verdict"
    found = {verdict for verdict, count in after.items() if count != before.get(verdict, 0)}
    (verdict,) = {PolicyVerdict.AUDITED} if PolicyVerdict.AUDITED in found and value == PASS else found
    return verdict


@given(snapshots(), audited, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_kernel_and_reference_agree_on_what_was_compiled(
    policy: Installed, directory: Path, snapshot: Snapshot, audited: frozenset[str], rand: random.Random
) -> None:
    """Where they do not, an operator is told of a defect: that must be one."""
    snapshot = replace(snapshot, audited=audited)
    contents = Compiler().advance(snapshot)[-1]
    bring(policy, directory, contents)
    for flow in rand.sample(SEEN, SOME):
        asked = Question(End((flow.client,)), End((flow.server,)), flow.protocol, flow.port)  # type: ignore[arg-type]
        (answer,) = explain.answers(
            lambda name, key: policy.maps[name].lookup(key), snapshot, contents.cookies, asked
        )
        assert [verdict.disagreement for verdict in answer.verdicts] == ["", ""], answer
        shown = explain.shown(answer, asked, contents.cookies, snapshot)
        assert shown["passes"] == all(shown[it.value]["verdict"] != "dropped" for it in Direction)


def test_rules_of_another_moment_are_a_disagreement(policy: Installed, directory: Path) -> None:
    """The kernel has nothing, and the snapshot isolates everybody."""
    snapshot = cluster(into())
    asked = explain.question(snapshot, CLIENT, f"{WEB}:80")
    (answer,) = explain.answers(lambda name, key: policy.maps[name].lookup(key), snapshot, {}, asked)
    assert answer.verdicts[1].disagreement == "the kernel lets it pass, and no rule allows it"
    assert answer.verdicts[0].disagreement == ""


def test_ports_ranges_and_prefixes_are_looked_up(policy: Installed, directory: Path) -> None:
    """Each alone decides one of these; random clusters seldom come to that."""
    one, some = PortRange(Protocol.TCP, 80, 80), PortRange(Protocol.TCP, 1001, 1998)
    block = IpBlock(ip_network("198.51.100.0/24"))
    snapshot = cluster(into(allow(CLIENTS, ports=(one, some)), allow(block, ports=(one,))))
    contents = Compiler().advance(snapshot)[-1]
    bring(policy, directory, contents)

    def allowed(client: str, port: int) -> bool:
        flow = Flow(ip_address(client), ip_address(WEB), Protocol.TCP, port)
        return walk(lambda name, key: policy.maps[name].lookup(key), flow, Direction.INGRESS).allowed

    assert [port for port in (80, 81, 1000, 1001, 1998, 1999) if allowed(CLIENT, port)] == [80, 1001, 1998]
    assert [allowed(OUTSIDE, port) for port in (80, 1001)] == [True, False]
    assert not allowed("198.51.101.9", 80)
