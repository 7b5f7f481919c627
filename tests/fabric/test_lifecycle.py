"""Starts, stops and deaths of the daemon, the speaker and the source, as both ToRs see them.

Each test ends a process or takes a file away, as systemd, the kernel or an operator would, and asks BIRD every
10 ms for the routes, or reads the wire. Reloads are in `test_reload`, drains in `test_drain`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest

from bgpd.runtime.reconcile import EMPTY_GRACE_S
from tests.fabric.bgp_wire import BgpMessage, BgpType
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.observe import BgpCapture, RouteSampler
from tests.fabric.topology import CABLE, NodePlace, TwoTorFabric

pytestmark = pytest.mark.needs("bird")

BLIND_MS = 500.0  # a sampler that was kept from looking for longer has proved nothing; CI machines are busy


@contextlib.contextmanager
def never_without(fabric: TwoTorFabric, prefixes: Sequence[str]) -> Iterator[None]:
    """Asserts that neither ToR was without any of the prefixes, at any sample inside the block."""
    with contextlib.ExitStack() as stack:
        samplers = [stack.enter_context(RouteSampler(tor.speaker.directory / "ctl", prefixes)) for tor in fabric.tors]
        for sampler in samplers:
            sampler.wait_samples()
        yield
        for sampler in samplers:
            sampler.wait_samples()
            result = sampler.result()
            assert result.losses == 0, result
            assert result.longest_blind_ms < BLIND_MS, result


def local_bgp(fabric: TwoTorFabric, **bgp: object) -> dict[str, object]:
    """A configuration that needs nothing from the Node object but its pod CIDRs."""
    place = fabric.nodes[0]
    made = two_tor_bgp(fabric, localAddress=place.address, nextHop={"ipv6": place.address6})
    return made | {"routerID": place.address} | bgp


def sent_to(capture: BgpCapture, place: NodePlace, peer: str) -> list[BgpMessage]:
    """What the node said to one peer besides keepalives."""
    return capture.besides_keepalives(src=place.address, dst=peer)


# --- the daemon goes


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_end_of_the_daemon_touches_nothing(fabric: TwoTorFabric, how: str) -> None:
    """Restart and SIGKILL: no route missing in any sample, nothing but keepalives on the wire."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.daemon is not None
    with BgpCapture(place.namespace, CABLE) as capture, never_without(fabric, place.pod_cidrs):
        getattr(node.daemon, how)()
        node.start_daemon()
        node.wait_healthy()
        capture.wait(lambda it: it.type is BgpType.KEEPALIVE, what="keepalive")
    assert [str(it) for it in capture.besides_keepalives()] == []
    assert capture.dropped == 0


def test_a_change_made_while_the_daemon_was_away_is_caught_up(fabric: TwoTorFabric) -> None:
    """Another pod CIDR is allocated between two daemons: the second announces it and withdraws the old one."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.daemon is not None
    node.daemon.kill()
    node.allocate(place, "188.188.9.0/24", place.pod_cidrs[1])
    with never_without(fabric, place.pod_cidrs[1:]):
        node.start_daemon()
        for tor in fabric.tors:
            tor.speaker.wait_route("188.188.9.0/24")
            tor.speaker.wait_no_route(place.pod_cidrs[0])


# --- the speaker goes


def test_a_killed_speaker_comes_back_without_a_lost_sample(fabric: TwoTorFabric) -> None:
    """SIGKILL of ExaBGP under graceful restart: the ToRs keep the routes, and then hold them as fresh ones."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.speaker is not None
    with never_without(fabric, place.pod_cidrs):
        node.speaker.kill()
        for tor in fabric.tors:
            tor.speaker.wait_down(place.address)
            assert all(tor.speaker.wait_route(prefix).stale for prefix in place.pod_cidrs)
        node.start_speaker()
        for tor in fabric.tors:
            tor.speaker.wait_established(place.address)
            for prefix in place.pod_cidrs:
                tor.speaker.wait_route(prefix, where=lambda route: not route.stale)
        node.wait_healthy()


def test_end_of_rib_follows_the_routes(fabric: TwoTorFabric) -> None:
    """After the speaker's restart each peer gets every route first, then one End-of-RIB per family."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.speaker is not None
    node.speaker.kill()
    for tor in fabric.tors:
        tor.speaker.wait_down(place.address)
    with BgpCapture(place.namespace, CABLE) as capture:
        node.start_speaker()
        node.wait_healthy()
    for tor in fabric.tors:
        updates = [it for it in sent_to(capture, place, tor.loopback) if it.type is BgpType.UPDATE]
        assert [it.end_of_rib for it in updates] == [False, False, True, True], updates


def test_a_speaker_stopped_on_purpose_withdraws_first(fabric: TwoTorFabric) -> None:
    """`bgpd speaker stop`: the withdrawals are out while the sessions are up; SIGTERM then leaves nothing stale."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.speaker is not None
    assert "4 routes withdrawn from 2 peers" in node.try_bgpd("speaker", "stop").stderr
    for tor in fabric.tors:
        for prefix in place.pod_cidrs:
            tor.speaker.wait_no_route(prefix)
        assert tor.speaker.session(place.address).established
    node.speaker.stop()
    for tor in fabric.tors:
        tor.speaker.wait_down(place.address)
        assert tor.speaker.routes(place.address) == {}


def test_a_stop_keeps_the_daemon_from_announcing_again(fabric: TwoTorFabric) -> None:
    """What changes between the withdrawal and SIGTERM is not announced, though the daemon lives."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    node.bgpd("speaker", "stop")
    with BgpCapture(place.namespace, CABLE) as capture:
        node.allocate(place, "188.188.9.0/24")
        node.wait_problem("the speaker is being stopped")
    assert [str(it) for it in capture.besides_keepalives()] == []


def test_a_managed_speaker_leaves_with_its_daemon(fabric: TwoTorFabric) -> None:
    """`bgp.speaker: managed`: SIGTERM of the daemon withdraws, then ends ExaBGP; nothing stays at the ToRs."""
    place = fabric.nodes[0]
    node = BgpdNode.announcing(fabric, two_tor_bgp(fabric) | {"speaker": "managed"})
    assert node.daemon is not None
    assert node.daemon.stop(15.0) == 0
    for tor in fabric.tors:
        tor.speaker.wait_down(place.address)
        assert tor.speaker.routes(place.address) == {}


# --- the source goes


@pytest.mark.parametrize("explicit", [False, True], ids=["addresses of the node", "addresses configured"])
def test_a_daemon_without_its_source_withdraws_nothing(fabric: TwoTorFabric, explicit: bool) -> None:
    """Started while the manifest directory is missing, it leaves sessions and routes alone and says so."""
    place = fabric.nodes[0]
    node = BgpdNode.announcing(fabric, local_bgp(fabric) if explicit else None)
    assert node.daemon is not None
    node.daemon.stop()
    node.manifests.rename(node.directory / "away")
    with BgpCapture(place.namespace, CABLE) as capture, never_without(fabric, place.pod_cidrs):
        node.start_daemon()
        assert "is source.manifests right?" in node.wait_problem("source: starting")
        node.wait_status("not connected", lambda it: it["speaker"]["connected"])
        assert node.try_bgpd("status").returncode == 4
        (node.directory / "away").rename(node.manifests)
        node.wait_healthy()
    assert [str(it) for it in capture.besides_keepalives()] == []


def test_end_of_rib_waits_for_the_source_but_not_for_ever(fabric: TwoTorFabric) -> None:
    """No End-of-RIB before endOfRIBTimeoutSeconds without a source; then it goes, and the stale routes go too."""
    place = fabric.nodes[0]
    node = BgpdNode.announcing(fabric, local_bgp(fabric, endOfRIBTimeoutSeconds=4))
    assert node.daemon is not None
    assert node.speaker is not None
    node.daemon.stop()
    node.speaker.kill()
    node.manifests.rename(node.directory / "away")
    with BgpCapture(place.namespace, CABLE) as capture:
        node.start()
        up = [tor.speaker.wait_established(place.address) for tor in fabric.tors]
        assert all(it.capabilities.graceful_restart for it in up)
        assert all(tor.speaker.wait_route(place.pod_cidrs[0]).stale for tor in fabric.tors)
        for tor in fabric.tors:
            tor.speaker.wait_no_route(place.pod_cidrs[0], timeout_s=30)
    for tor in fabric.tors:
        opened, *rest = sent_to(capture, place, tor.loopback)
        assert opened.type is BgpType.OPEN
        updates = [it for it in rest if it.type is BgpType.UPDATE]  # both may have dialled: then there are two OPENs
        assert all(it.end_of_rib for it in updates), rest
        assert updates[0].time - opened.time >= 4


def test_an_empty_source_at_the_start_is_not_believed_at_once(fabric: TwoTorFabric) -> None:
    """An empty directory, the speaker just restarted: no End-of-RIB that would end the ToRs' patience."""
    place = fabric.nodes[0]
    node = BgpdNode.announcing(fabric, local_bgp(fabric))
    assert node.daemon is not None
    assert node.speaker is not None
    node.daemon.stop()
    node.speaker.kill()
    manifest = node.manifests / "node.yaml"
    manifest.rename(node.directory / "node.yaml")
    with BgpCapture(place.namespace, CABLE) as capture, never_without(fabric, place.pod_cidrs):
        node.start()
        for tor in fabric.tors:
            tor.speaker.wait_established(place.address)
        node.wait_problem("there is no Node named")
        capture.wait(lambda it: it.type is BgpType.KEEPALIVE and it.src == place.address, what="keepalive")
        assert not any(it.end_of_rib for it in capture.messages(src=place.address))
        (node.directory / "node.yaml").rename(manifest)
        node.wait_healthy()


# --- the node goes


@pytest.mark.parametrize("explicit", [False, True], ids=["addresses of the node", "addresses configured"])
def test_a_deleted_node_is_withdrawn_after_its_grace(fabric: TwoTorFabric, explicit: bool) -> None:
    """Its routes stay for 10 s, with a warning, and are then withdrawn; the sessions stay."""
    place = fabric.nodes[0]
    node = BgpdNode.announcing(fabric, local_bgp(fabric) if explicit else None)
    with BgpCapture(place.namespace, CABLE) as capture:
        (node.manifests / "node.yaml").unlink()
        node.wait_problem("there is no Node named")
        assert node.daemon is not None
        node.daemon.wait_log("removals wait 10 s")
        assert [str(it) for it in capture.besides_keepalives()] == []
        assert all(tor.speaker.route(prefix) for tor in fabric.tors for prefix in place.pod_cidrs)
        for tor in fabric.tors:
            for prefix in place.pod_cidrs:
                tor.speaker.wait_no_route(prefix)
            assert tor.speaker.session(place.address).established
    assert {it.type for it in capture.besides_keepalives()} == {BgpType.UPDATE}


def test_a_node_with_other_cidrs_is_announced_before_the_old_ones_go(fabric: TwoTorFabric) -> None:
    """Deleted and created anew with another pod CIDR: each ToR hears of the new one first (make before break)."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    old, new = place.pod_cidrs[0], "188.188.9.0/24"
    with BgpCapture(place.namespace, CABLE) as capture:
        (node.manifests / "node.yaml").unlink()
        node.wait_problem("there is no Node named")
        node.allocate(place, new, place.pod_cidrs[1])
        for tor in fabric.tors:
            tor.speaker.wait_no_route(old)
            assert tor.speaker.route(new) is not None
    for tor in fabric.tors:
        updates = sent_to(capture, place, tor.loopback)
        assert len(updates) == 2, updates
        assert updates[0].body[:2] == b"\0\0", "the first must withdraw nothing"
        assert updates[1].body[:2] != b"\0\0", "the second must withdraw"


@pytest.mark.parametrize("selected", [False, True], ids=["peers of every node", "peers with a nodeSelector"])
def test_a_node_deleted_while_the_daemon_was_away(fabric: TwoTorFabric, selected: bool) -> None:
    """What a former life announced is withdrawn after the grace, by sessions that stay; a new Node is announced."""
    place = fabric.nodes[0]
    own = {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": place.name}}} if selected else {}
    node, new = BgpdNode.announcing(fabric, two_tor_bgp(fabric, **own)), "188.188.9.0/24"
    assert node.daemon is not None
    node.daemon.stop()
    (node.manifests / "node.yaml").unlink()
    with BgpCapture(place.namespace, CABLE) as capture:
        node.start_daemon()
        held = node.wait_status("nothing is held", lambda it: bool(it["held"]))["held"]
        assert (held["routes"], held["why"]) == (4, "there is no such Node")
        assert 0 < held["for_s"] <= EMPTY_GRACE_S
        assert all("withdrawn in" in row["why"] for row in node.ask("routes"))
        assert all(tor.speaker.route(prefix) for tor in fabric.tors for prefix in place.pod_cidrs)
        for tor in fabric.tors:
            for prefix in place.pod_cidrs:
                tor.speaker.wait_no_route(prefix)
        gone = node.wait_status("still held", lambda it: it["held"] is None)
        assert [row["state"] for row in gone["peers"]] == ["up", "up"]
        assert len(gone["problems"]) == 1, gone["problems"]
        node.allocate(place, new)
        for tor in fabric.tors:
            tor.speaker.wait_route(new)
        node.wait_healthy()
    assert {it.type for it in capture.besides_keepalives()} == {BgpType.UPDATE}
