"""A changed configuration reaches only the peers that it is about, one uplink at a time (item 6).

Everything goes through bgpd.yaml and `bgpd reload` or SIGHUP, as an operator does it; what each peer is told is
read on the wire. Which files are refused, and in which words, is in `test_faults_config`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from bgpd.bgp import render
from tests.fabric.bgp_wire import BgpMessage, BgpType
from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.observe import BgpCapture
from tests.fabric.peer import FAMILIES, IPV4, IPV6, Neighbor
from tests.fabric.process import poll
from tests.fabric.topology import CABLE, TorPlace, TwoTorFabric

pytestmark = pytest.mark.needs("bird")


def peer_config(node: BgpdNode, name: str) -> dict[str, Any]:
    """The peer's section, to be changed in place."""
    return next(peer for peer in node.config["bgp"]["peers"] if peer["name"] == name)


def reload(node: BgpdNode) -> None:
    node.write_config()
    node.bgpd("reload")


def between(capture: BgpCapture, tor: TorPlace) -> list[BgpMessage]:
    """What node and ToR said to each other besides keepalives."""
    heard = (*capture.besides_keepalives(src=tor.loopback), *capture.besides_keepalives(dst=tor.loopback))
    return sorted(heard, key=lambda it: it.time)


def wait_hold_time(tor: TorPlace, node_address: str, seconds: float) -> None:
    def probe() -> bool:
        session = tor.speaker.session(node_address)
        return session.established and session.hold_time_s == seconds

    poll(probe, 30, lambda: f"{tor.name}: {tor.speaker.session(node_address)}")


@contextlib.contextmanager
def quiet(capture: BgpCapture, tor: TorPlace) -> Iterator[None]:
    """Asserts that nothing but keepalives passes between the node and this ToR, and that one does pass."""
    yield
    seen = len(capture.messages(BgpType.KEEPALIVE, src=tor.loopback))
    poll(
        lambda: len(capture.messages(BgpType.KEEPALIVE, src=tor.loopback)) > seen,
        20,
        lambda: f"no keepalive from {tor.name}",
    )
    assert [str(it) for it in between(capture, tor)] == []


def test_an_unchanged_file_says_nothing(fabric: TwoTorFabric) -> None:
    """`bgpd reload` and SIGHUP of the same file: no BGP message besides keepalives."""
    node = BgpdNode.announcing(fabric)
    assert node.daemon is not None
    a, b = fabric.tors
    with BgpCapture(fabric.nodes[0].namespace, CABLE) as capture, quiet(capture, a), quiet(capture, b):
        assert node.bgpd("reload") == "configuration loaded\n"
        node.daemon.signal(signal.SIGHUP)


def test_a_changed_timer_touches_only_that_session(fabric: TwoTorFabric) -> None:
    """tor-a's hold time changes: its session is reset and has its routes again, tor-b hears nothing."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    a, b = fabric.tors
    with BgpCapture(place.namespace, CABLE) as capture, quiet(capture, b):
        peer_config(node, "tor-a")["timers"] = {"holdTimeSeconds": 6}
        reload(node)
        wait_hold_time(a, place.address, 6)
        node.wait_healthy()
    assert set(a.speaker.routes(place.address)) == set(b.speaker.routes(place.address))
    assert len(a.speaker.routes(place.address)) == 2


def test_a_changed_password_touches_only_that_session(lab: Lab) -> None:
    """The key of tor-a is rolled on both sides: that session returns under the new one, tor-b hears nothing."""
    fabric = TwoTorFabric(lab, neighbor=Neighbor(address="", asn=0, families=FAMILIES, password="first")).start()
    place = fabric.nodes[0]
    keys = {tor.name: lab.directory / f"{tor.name}.md5" for tor in fabric.tors}
    for file in keys.values():
        file.write_text("first\n")
        file.chmod(0o600)
    bgp = two_tor_bgp(fabric)
    for peer in bgp["peers"]:
        peer["authPasswordFile"] = str(keys[peer["name"]])
    node = BgpdNode.announcing(fabric, bgp)
    a, b = fabric.tors
    with BgpCapture(place.namespace, CABLE) as capture, quiet(capture, b):
        keys["tor-a"].write_text("second\n")
        node.bgpd("reload")
        a.speaker.reconfigure_neighbor(place.address, password="second")
        a.speaker.wait_established(place.address, 40)
        a.speaker.wait_route(place.pod_cidrs[0], where=lambda route: not route.stale)
        node.wait_healthy()


def test_two_uplinks_are_reset_one_after_the_other(fabric: TwoTorFabric) -> None:
    """Both hold times change: the second session falls only after the first has all its routes again."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    with BgpCapture(place.namespace, CABLE) as capture:
        for peer in node.config["bgp"]["peers"]:
            peer["timers"] = {"holdTimeSeconds": 6}
        reload(node)
        for tor in fabric.tors:
            wait_hold_time(tor, place.address, 6)
        node.wait_healthy()
    first, second = sorted(fabric.tors, key=lambda tor: between(capture, tor)[0].time)
    complete = [it for it in between(capture, first) if it.src == place.address and it.end_of_rib]
    assert len(complete) == 2
    assert complete[-1].time < between(capture, second)[0].time


def test_the_second_uplink_waits_for_one_that_does_not_come_back(fabric: TwoTorFabric) -> None:
    """tor-a is cut off while both change: tor-b keeps its session, and `bgpd peers` says what it waits for."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    a, b = fabric.tors
    with BgpCapture(place.namespace, CABLE) as capture:
        with quiet(capture, b):
            fabric.cut(a)
            for peer in node.config["bgp"]["peers"]:
                peer["timers"] = {"holdTimeSeconds": 6}
            reload(node)
            node.wait_status("a is not reset", lambda it: it["peers"][0]["state"] == "down")
            node.wait_problem("change pending: waits for tor-a to be Established with its routes")
            assert "take tor-a out to go ahead" in " ".join(node.try_bgpd("peers").stdout.split())
        fabric.mend(a)
        wait_hold_time(a, place.address, 6)
        wait_hold_time(b, place.address, 6)
        node.wait_healthy(60)


def test_a_reload_goes_on_without_a_peer_that_never_was(fabric: TwoTorFabric) -> None:
    """tor-a has been away from the start: tor-b's change and a third peer's are applied all the same."""
    place, (a, b) = fabric.nodes[0], fabric.tors
    fabric.cut(a)
    node = BgpdNode.at(place, two_tor_bgp(fabric)).start()
    b.speaker.wait_route(place.pod_cidrs[0])
    peer_config(node, "tor-b")["timers"] = {"holdTimeSeconds": 6}
    node.config["bgp"]["peers"].append(
        {"name": "nobody", "peerAddress": "11.8.37.250", "peerASN": 64512, "timers": {"holdTimeSeconds": 9}}
    )
    reload(node)
    wait_hold_time(b, place.address, 6)
    b.speaker.wait_route(place.pod_cidrs[0], where=lambda route: not route.stale)
    node.wait_status("no third peer", lambda it: [row["peer"] for row in it["peers"]][2:] == ["nobody"])
    node.wait_status("changes are pending", lambda it: not any("pending" in line for line in it["problems"]))


def test_an_added_peer_gets_its_routes_and_a_removed_one_loses_its_session(fabric: TwoTorFabric) -> None:
    """tor-b is taken out and put back: tor-a hears nothing of either."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    a, b = fabric.tors
    with BgpCapture(place.namespace, CABLE) as capture, quiet(capture, a):
        removed = node.config["bgp"]["peers"].pop()
        reload(node)
        b.speaker.wait_down(place.address)
        assert b.speaker.routes(place.address) == {}
        poll(lambda: [row["peer"] for row in node.status()["peers"]] == ["tor-a"], 5, lambda: "tor-b is still there")
        node.config["bgp"]["peers"].append(removed)
        reload(node)
        b.speaker.wait_established(place.address, 40)
        b.speaker.wait_route(place.pod_cidrs[0], where=lambda route: not route.stale)
        node.wait_healthy()


@pytest.mark.parametrize("families", [(IPV4,), (IPV6,), FAMILIES], ids=" ".join)
def test_a_removed_peer_is_emptied_before_it_loses_its_session(lab: Lab, families: tuple[str, ...]) -> None:
    """Withdrawals, then End-of-RIB for the families of its session and for no other; nothing is kept as stale."""
    fabric = TwoTorFabric(lab, neighbor=Neighbor(address="", asn=0, families=families)).start()
    place, b = fabric.nodes[0], fabric.tors[1]
    prefixes = [prefix for prefix, family in zip(place.pod_cidrs, FAMILIES, strict=True) if family in families]
    node = BgpdNode.at(place, two_tor_bgp(fabric, families=list(families)), *prefixes).start()
    b.speaker.wait_route_count(place.address, len(families))
    node.wait_healthy()
    with BgpCapture(place.namespace, CABLE) as capture:
        node.config["bgp"]["peers"].pop()
        reload(node)
        b.speaker.wait_down(place.address)
        assert b.speaker.routes(place.address) == {}
    said = capture.messages(BgpType.UPDATE, src=place.address, dst=b.loopback)
    assert [it.end_of_rib for it in said[-2 * len(families) :]] == [False] * len(families) + [True] * len(families)
    assert {it.body == bytes(4) for it in said if it.end_of_rib} == {family == IPV4 for family in families}


def test_a_removal_that_was_broken_off_is_ended_in_order(fabric: TwoTorFabric) -> None:
    """The daemon dies with the new file in place and not loaded: the next daemon empties tor-b before the reload."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    b = fabric.tors[1]
    assert node.daemon is not None
    node.daemon.kill()
    file = node.directory / "run" / "speaker" / "exabgp.conf"
    text = file.read_text()
    blocks = render.blocks_of(text)
    file.write_text(render.document(text[: text.index("\n# neighbor ")], {"tor-a": blocks["tor-a"]}))
    node.config["bgp"]["peers"].pop()
    node.write_config()
    node.start_daemon()
    b.speaker.wait_down(place.address)
    assert b.speaker.routes(place.address) == {}
    node.wait_healthy()


@pytest.mark.parametrize("how", ["bgpd reload", "SIGHUP"])
def test_an_invalid_file_changes_nothing(fabric: TwoTorFabric, how: str) -> None:
    """The last good configuration stays in use; reload, status and a metric say that the file was refused."""
    node = BgpdNode.announcing(fabric)
    assert node.daemon is not None
    a, b = fabric.tors
    good = node.config_file.read_text()
    with BgpCapture(fabric.nodes[0].namespace, CABLE) as capture, quiet(capture, a), quiet(capture, b):
        peer_config(node, "tor-a")["timers"] = {"holdTimeSeconds": 1}
        peer_config(node, "tor-b")["peerASN"] = "many"
        node.write_config()
        if how == "SIGHUP":
            node.daemon.signal(signal.SIGHUP)
        else:
            refused = node.try_bgpd("reload")
            assert refused.returncode == 2
            assert "bgp.peers[0].timers.holdTimeSeconds" in refused.stderr
            assert "bgp.peers[1].peerASN" in refused.stderr
        node.daemon.wait_log("configuration refused")
        for place in ("bgp.peers[0].timers.holdTimeSeconds", "bgp.peers[1].peerASN"):
            told = node.wait_problem(place)
            assert "the last good one stays in use" in told
            assert str(node.config_file) in told
        assert node.try_bgpd("status").returncode == 4
        poll(lambda: node.metric("bgpd_config_last_reload_successful") == 0, 5, lambda: "the metric says 1")
        node.config_file.write_text(good)
        node.bgpd("reload")
        node.wait_healthy()
    poll(lambda: node.metric("bgpd_config_last_reload_successful") == 1, 5, lambda: "the metric says 0")


def test_a_reload_works_while_a_peer_is_down_with_routes_to_come(fabric: TwoTorFabric) -> None:
    """ExaBGP drops reloads while routes are queued for a peer that is down; none ever are, so it loads this one."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    a, b = fabric.tors
    a.speaker.stop()
    node.wait_status("a is not down", lambda it: it["peers"][0]["state"] == "down")
    node.allocate(place, "188.188.9.0/24", place.pod_cidrs[1])
    b.speaker.wait_route("188.188.9.0/24")
    node.bgpd("drain", "--wait", "0")  # reads back, and takes out what a's session must not come back with
    node.bgpd("undrain")
    removed = node.config["bgp"]["peers"].pop()
    reload(node)
    b.speaker.wait_down(place.address)
    node.config["bgp"]["peers"].append(removed)
    reload(node)
    b.speaker.wait_established(place.address, 40)
    a.speaker.start()
    for tor in fabric.tors:
        tor.speaker.wait_route("188.188.9.0/24", 40, where=lambda route: not route.stale)


def test_twenty_reloads_in_a_row_end_at_the_last(fabric: TwoTorFabric) -> None:
    """A new community each time, some by SIGHUP: the last one is at both ToRs and no session was reset."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.daemon is not None
    with BgpCapture(place.namespace, CABLE) as capture:
        for count in range(20):
            attributes = {"communities": [f"64512:{count}"]}
            node.config["bgp"]["advertisements"] = [{"advertisementType": "PodCIDR", "attributes": attributes}]
            node.write_config()
            if count % 2:
                node.bgpd("reload")
            else:
                node.daemon.signal(signal.SIGHUP)
        for tor in fabric.tors:
            tor.speaker.wait_route(place.pod_cidrs[0], where=lambda route: route.communities == ("64512:19",))
        node.wait_healthy()
    assert {it.type for it in capture.besides_keepalives()} == {BgpType.UPDATE}
