"""The speaker in trouble: its bridge dies, ExaBGP hangs, a client of the bridge does not keep up.

Every fault is a signal to a real process. What systemd does with a speaker that has ended, the tests do.
"""

from __future__ import annotations

import os
import signal
import socket

import pytest

from tests.fabric.bgp_wire import BgpType
from tests.fabric.bird import Bird, protocol_name
from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.observe import BgpCapture
from tests.fabric.peer import FAMILIES, Neighbor
from tests.fabric.process import poll
from tests.fabric.test_lifecycle import never_without
from tests.fabric.topology import CABLE, TwoTorFabric

pytestmark = pytest.mark.needs("bird")


def patient_fabric(lab: Lab, hold_s: int) -> TwoTorFabric:
    neighbor = Neighbor(address="", asn=0, families=FAMILIES, hold_time_s=hold_s, keepalive_s=hold_s // 3)
    return TwoTorFabric(lab, neighbor=neighbor).start()


def kill_helper(node: BgpdNode, which: str) -> None:
    """SIGKILL, and the wait until it is replaced; a speaker that gave up is started as systemd would."""
    find = node.bridge_pid if which == "bridge" else node.guardian_pid
    before, speaker = poll(find, 10, lambda: f"no {which}"), node.speaker
    assert speaker is not None
    os.kill(before, signal.SIGKILL)
    poll(
        lambda: not speaker.running() or find() not in (None, before),
        10,
        lambda: f"no new {which}\n{speaker.log_tail()}",
    )
    if not speaker.running():
        node.start_speaker()


def wait_opens(capture: BgpCapture, peer: str, times: int) -> None:
    """Until so many OPENs have gone to this peer."""
    poll(
        lambda: len(capture.messages(BgpType.OPEN, dst=peer)) >= times,
        60,
        lambda: f"not {times} OPENs to {peer}: {capture.counts()}",
    )


def test_a_bridge_killed_twenty_times_costs_nothing(fabric: TwoTorFabric) -> None:
    """The sessions live, each new bridge knows them at once, and changes go out between its deaths."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    with BgpCapture(place.namespace, CABLE) as capture, never_without(fabric, place.pod_cidrs):
        for count in range(20):
            kill_helper(node, "bridge")
            node.allocate(place, *place.pod_cidrs, f"188.188.{100 + count}.0/24")
            for tor in fabric.tors:
                tor.speaker.wait_route(f"188.188.{100 + count}.0/24")
        node.allocate(place, *place.pod_cidrs)
        node.wait_healthy()
    assert capture.messages(BgpType.OPEN, BgpType.NOTIFICATION) == []


def test_a_guardian_killed_twenty_times_loses_no_route(fabric: TwoTorFabric) -> None:
    """ExaBGP gives up after the sixth death; restarted each time, it never leaves a ToR without the routes.

    As long as each restart is complete before the next: RFC 4724 section 4.2 lets go of what is stale twice.
    """
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    with never_without(fabric, place.pod_cidrs):
        for _ in range(20):
            kill_helper(node, "guardian")
            node.wait_healthy()
            for tor in fabric.tors:
                for prefix in place.pod_cidrs:
                    tor.speaker.wait_route(prefix, where=lambda route: not route.stale)


def test_a_hung_exabgp_is_named_and_forgiven(lab: Lab) -> None:
    """SIGSTOP for less than the hold time: status says that ExaBGP does not answer, and nothing is reset."""
    fabric = patient_fabric(lab, 30)
    place = fabric.nodes[0]
    bgp = two_tor_bgp(fabric, timers={"holdTimeSeconds": 30})
    node = BgpdNode.announcing(fabric, bgp)
    assert node.speaker is not None
    with BgpCapture(place.namespace, CABLE) as capture, never_without(fabric, place.pod_cidrs):
        node.speaker.pause()
        node.wait_problem("ExaBGP has not answered")
        node.speaker.resume()
        node.wait_healthy()
    assert [str(it) for it in capture.besides_keepalives()] == []


def test_an_exabgp_hung_beyond_the_hold_time_recovers_by_itself(lab: Lab) -> None:
    """The ToRs drop it, status names it until SIGCONT, and then everything is announced again without help."""
    fabric = patient_fabric(lab, 6)
    place = fabric.nodes[0]
    node = BgpdNode.announcing(fabric, two_tor_bgp(fabric, timers={"holdTimeSeconds": 6}))
    assert node.speaker is not None
    node.speaker.pause()
    for tor in fabric.tors:
        tor.speaker.wait_down(place.address)
    node.wait_problem("did not answer in 20 s; is it stopped or overloaded?", 40)
    assert node.try_bgpd("status").returncode == 4
    node.speaker.resume()
    for tor in fabric.tors:
        tor.speaker.wait_established(place.address, 60)
        for prefix in place.pod_cidrs:
            tor.speaker.wait_route(prefix)
    node.wait_healthy(60)


def test_a_hung_daemon_does_not_hold_exabgp_up(fabric: TwoTorFabric) -> None:
    """SIGSTOP of the daemon while both ToRs flap: ExaBGP goes on, and the daemon catches up when it wakes."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.daemon is not None
    node.daemon.pause()
    with BgpCapture(place.namespace, CABLE) as capture:
        for times in range(1, 5):
            for tor in fabric.tors:
                assert isinstance(tor.speaker, Bird)
                tor.speaker.ask(f"restart {protocol_name(place.address)}")
            for tor in fabric.tors:
                wait_opens(capture, tor.loopback, times)
                tor.speaker.wait_established(place.address, 60)
                tor.speaker.wait_route(place.pod_cidrs[0])
    node.daemon.resume()
    status = node.wait_healthy()
    assert [row["flaps"] for row in status["peers"]] == [4, 4]


def test_a_client_that_never_reads_does_not_block_the_others(fabric: TwoTorFabric) -> None:
    """A client of the bridge asks without end and takes no answer: the daemon's next change is out at once."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    with socket.socket(socket.AF_UNIX) as greedy, BgpCapture(place.namespace, CABLE) as capture:
        greedy.connect(str(node.socket))
        greedy.sendall(b"x show adj-rib out json\n" * 2000)  # their answers are more than a socket holds
        node.allocate(place, *place.pod_cidrs, "188.188.9.0/24")
        for tor in fabric.tors:
            tor.speaker.wait_route("188.188.9.0/24", 60)
    assert capture.messages(BgpType.OPEN, BgpType.NOTIFICATION) == []
