"""A node leaves the fabric and comes back: the order of events as both ToRs see it (item 7, RFC 8326)."""

from __future__ import annotations

import signal

import pytest

from tests.fabric.bgp_wire import BgpMessage, BgpType
from tests.fabric.netns import Lab
from tests.fabric.node import BIN, BgpdNode, two_tor_bgp
from tests.fabric.observe import BgpCapture
from tests.fabric.process import Process
from tests.fabric.topology import CABLE, TorPlace, TwoTorFabric

pytestmark = pytest.mark.needs("bird")

GRACEFUL_SHUTDOWN = "65535:0"
LOCAL_PREF_0 = b"\x40\x05\x04\0\0\0\0"
COMMUNITY = b"\xc0\x08\x04\xff\xff\0\0"


def updates(capture: BgpCapture, tor: TorPlace) -> list[BgpMessage]:
    return [it for it in capture.besides_keepalives(dst=tor.loopback) if it.type is BgpType.UPDATE]


def start_drain(node: BgpdNode, *words: str) -> Process:
    """`bgpd drain` in the background, as in an operator's terminal."""
    argv = [str(BIN / "bgpd"), "drain", *words, "--config", str(node.config_file)]
    return node.namespace.popen(argv, name="drain")


def wait_graceful_shutdown(fabric: TwoTorFabric, prefix: str) -> None:
    for tor in fabric.tors:
        tor.speaker.wait_route(prefix, where=lambda it: GRACEFUL_SHUTDOWN in it.communities and it.local_pref == 0)


def test_a_drain_shows_the_node_the_door_first(fabric: TwoTorFabric) -> None:
    """Both ToRs see 65535:0 and local preference 0, after the wait the withdrawals, then nothing; sessions stay."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    with BgpCapture(place.namespace, CABLE) as capture:
        told = node.try_bgpd("drain", "--wait", "2")
        assert told.returncode == 0, told.stderr
        for tor in fabric.tors:
            for prefix in place.pod_cidrs:
                tor.speaker.wait_no_route(prefix)
            assert tor.speaker.session(place.address).established
    for tor in fabric.tors:
        first, second, *withdrawals = updates(capture, tor)
        assert all(LOCAL_PREF_0 in it.body and COMMUNITY in it.body for it in (first, second))
        assert len(withdrawals) == 2
        assert withdrawals[0].time - second.time >= 1.9
        assert not any(LOCAL_PREF_0 in it.body for it in withdrawals)
    assert "4 routes announced with graceful-shutdown" in told.stderr
    assert "the adj-rib-out is empty" in told.stderr


def test_a_drained_node_says_so(fabric: TwoTorFabric) -> None:
    """Status and a metric show the drain, `routes` says why; it is meant, so it is no problem."""
    node = BgpdNode.announcing(fabric)
    for nonsense in ("-1", "nan", "inf"):
        assert node.try_bgpd("drain", "--wait", nonsense).returncode == 2
    assert node.status()["drain"] == "no"
    node.bgpd("drain", "--wait", "0")
    status = node.status()
    assert (status["drain"], status["problems"]) == ("withdrawn", [])
    assert [(row["announced"], row["wanted"]) for row in status["peers"]] == [(0, 0)] * 2
    assert {(row["announced"], "drained" in row["why"]) for row in node.ask("routes")} == {(False, True)}
    node.wait_status("the metric", lambda it: node.metric("bgpd_bgp_draining") == 1)
    assert node.bgpd("drain", "--wait", "0") == ""  # once more does no harm


def test_undrain_announces_again(fabric: TwoTorFabric) -> None:
    """After `undrain` both ToRs hold every route as it was before the drain."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    node.bgpd("drain", "--wait", "0")
    for tor in fabric.tors:
        tor.speaker.wait_no_route(place.pod_cidrs[0])
    assert "4 routes announced" in node.try_bgpd("undrain").stderr
    for tor in fabric.tors:
        for prefix in place.pod_cidrs:
            route = tor.speaker.wait_route(prefix)
            assert (route.communities, route.local_pref) == ((), 100)
    node.wait_healthy()


@pytest.mark.parametrize("phase", ["drained", "while it waits"])
def test_a_restarted_daemon_stays_drained(fabric: TwoTorFabric, phase: str) -> None:
    """A daemon that dies drained announces nothing afterwards; one that dies on the way finishes the drain."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.daemon is not None
    if phase == "drained":
        node.bgpd("drain", "--wait", "0")
        for tor in fabric.tors:  # what ExaBGP has taken may not have left it yet
            tor.speaker.wait_no_route(place.pod_cidrs[0])
    else:
        start_drain(node, "--wait", "600")
        wait_graceful_shutdown(fabric, place.pod_cidrs[0])
    node.daemon.kill()
    with BgpCapture(place.namespace, CABLE) as capture:
        node.start_daemon()
        node.wait_status("not drained", lambda it: it["drain"] == "withdrawn" and it["speaker"]["connected"])
        for tor in fabric.tors:
            tor.speaker.wait_no_route(place.pod_cidrs[0])
        capture.wait(lambda it: it.type is BgpType.KEEPALIVE and it.src == place.address, what="keepalive")
    if phase == "drained":
        assert [str(it) for it in capture.besides_keepalives()] == []
    assert {row["announced"] for row in node.ask("routes")} == {False}


def test_a_node_is_drained_without_its_source(fabric: TwoTorFabric) -> None:
    """The daemon restarts and its source is away: there is nothing to change the routes to, so they go at once."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    node.manifests.rename(node.directory / "away")
    node.restart_daemon()
    held = node.wait_status("nothing is held", lambda it: bool(it["held"]))["held"]
    assert (held["routes"], held["why"]) == (4, "the source is not complete yet")
    with BgpCapture(place.namespace, CABLE) as capture:
        told = node.try_bgpd("drain", "--wait", "600")
        assert told.returncode == 0, told.stderr
        for tor in fabric.tors:
            for prefix in place.pod_cidrs:
                tor.speaker.wait_no_route(prefix)
            assert tor.speaker.session(place.address).established
    assert not any(LOCAL_PREF_0 in it.body for it in capture.besides_keepalives())
    assert "the source is not complete yet, so graceful-shutdown cannot be announced" in told.stderr
    assert "65535:0" not in told.stderr
    assert (node.status()["drain"], node.status()["held"]) == ("withdrawn", None)


def test_a_speaker_that_restarts_while_drained_announces_nothing(fabric: TwoTorFabric) -> None:
    """ExaBGP is killed on a drained node: the sessions return with End-of-RIB alone."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.speaker is not None
    node.bgpd("drain", "--wait", "0")
    node.speaker.kill()
    with BgpCapture(place.namespace, CABLE) as capture:
        node.start_speaker()
        for tor in fabric.tors:
            tor.speaker.wait_established(place.address)
            capture.wait(lambda it, tor=tor: it.end_of_rib and it.dst == tor.loopback)  # type: ignore[misc]
    for tor in fabric.tors:
        assert all(it.end_of_rib for it in updates(capture, tor))


def test_a_drain_without_a_speaker_says_what_it_waits_for(fabric: TwoTorFabric) -> None:
    """ExaBGP is gone: the operator is told at once, and the drain goes through as soon as it is back."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.speaker is not None
    node.speaker.kill()
    node.wait_status("the speaker is not missed", lambda it: not it["speaker"]["connected"])
    terminal = start_drain(node, "--wait", "0")
    terminal.wait_log("no speaker")
    node.start_speaker()
    assert terminal.popen.wait(30) == 0
    for tor in fabric.tors:
        tor.speaker.wait_no_route(place.pod_cidrs[0])


def test_a_drain_does_not_wait_for_a_peer_that_is_down(fabric: TwoTorFabric) -> None:
    """tor-a is gone: the drain of tor-b is confirmed. What ExaBGP replays to tor-a when it returns is taken back."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    a, b = fabric.tors
    a.speaker.stop()
    node.wait_status("a is not down", lambda it: it["peers"][0]["state"] == "down")
    assert node.try_bgpd("drain", "--wait", "0").returncode == 0
    b.speaker.wait_no_route(place.pod_cidrs[0])
    a.speaker.start()
    a.speaker.wait_established(place.address, 40)
    node.wait_status("a is not up", lambda it: it["peers"][0]["state"] == "up" and it["peers"][0]["endOfRIB"])
    for prefix in place.pod_cidrs:
        a.speaker.wait_no_route(prefix)


def test_ctrl_c_leaves_a_drain_where_it_was(fabric: TwoTorFabric) -> None:
    """In the wait: the node goes on announcing as going away, and says so; `drain` then starts over."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    terminal = start_drain(node, "--wait", "600")
    wait_graceful_shutdown(fabric, place.pod_cidrs[0])
    terminal.wait_log("waiting 600 s")
    assert node.status()["problems"] == []  # it is under way
    terminal.signal(signal.SIGINT)
    assert terminal.popen.wait(5) == 130
    assert "`bgpd undrain` takes it back" in node.wait_problem("broken off")
    assert node.status()["drain"] == "shutdown"
    for prefix in place.pod_cidrs:
        wait_graceful_shutdown(fabric, prefix)
    with BgpCapture(place.namespace, CABLE) as capture:
        told = node.try_bgpd("drain", "--wait", "1")
        assert told.returncode == 0, told.stderr
        assert "waiting 1 s" in told.stderr  # the fabric gets its time in full
        for tor in fabric.tors:
            tor.speaker.wait_no_route(place.pod_cidrs[0])
    assert not any(LOCAL_PREF_0 in it.body for it in capture.besides_keepalives())


def test_a_drain_can_be_taken_back_while_it_waits(fabric: TwoTorFabric) -> None:
    """Ctrl-C, then `undrain`: the routes lose the community, and were never withdrawn."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    terminal = start_drain(node, "--wait", "600")
    terminal.wait_log("waiting 600 s")
    terminal.signal(signal.SIGINT)
    node.wait_problem("broken off")
    with BgpCapture(place.namespace, CABLE) as capture:
        node.bgpd("undrain")
        for tor in fabric.tors:
            tor.speaker.wait_route(place.pod_cidrs[0], where=lambda it: it.communities == ())
        node.wait_healthy()
    assert all(it.body[:2] == b"\0\0" and b"\x80\x0f" not in it.body for it in capture.besides_keepalives())


def test_external_peers_get_the_community_without_local_preference(lab: Lab) -> None:
    """On eBGP a drain carries 65535:0 and no local preference, which is not sent there (RFC 4271 section 5.1.5)."""
    fabric = TwoTorFabric(lab, tor_asn=65100).start()
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric, two_tor_bgp(fabric))
    start_drain(node, "--wait", "600")
    for tor in fabric.tors:
        tor.speaker.wait_route(place.pod_cidrs[0], where=lambda it: GRACEFUL_SHUTDOWN in it.communities)
