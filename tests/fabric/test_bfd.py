"""BFD beside BGP, against BIRD and FRR: a dead path takes the routes away, and nothing else does."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from functools import partial

import pytest

from tests.fabric.bfd_site import LINKS, BfdSite
from tests.fabric.bgp_wire import BgpMessage
from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.observe import BgpCapture
from tests.fabric.peer import Speaker
from tests.fabric.process import poll
from tests.fabric.topology import CABLE, TwoTorFabric

INTERVAL_MS = 100
SLACK_MS = 700  # for a busy machine; the hold time is 90 s
CEASE_BFD_DOWN = (6, 10)  # RFC 9384
FAR = [link.ours for link in LINKS if not link.near]

TAKEN_AWAY = "BFD is taken away"

AT_MOST_S = 0.1  # BIRD counts from its start, and prints the time of day


def up_since(site: BfdSite) -> dict[str, float]:
    """The BFD sessions that are up at a ToR that is a BIRD, by the node's address."""
    assert isinstance(site.tor.speaker, Bird)
    rows = [line.split() for line in site.tor.speaker.ask("show bfd sessions") if " Up " in line]
    return {row[0]: datetime.fromisoformat(f"{row[3]} {row[4]}").timestamp() for row in rows}


each_peer = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Bird, marks=pytest.mark.needs("bird"), id="bird"),
        pytest.param(Frr, marks=pytest.mark.needs("bird", *Frr.programs), id="frr"),
    ],
)


@each_peer
@pytest.mark.parametrize("graceful_restart", [True, False], ids=["restart", "no-restart"])
def test_a_node_that_is_cut_off_loses_its_routes_in_three_intervals(
    lab: Lab, kind: type[Speaker], graceful_restart: bool
) -> None:
    """Single hop and multihop, v4 and v6, at both ends; graceful restart does not keep the routes of a dead path."""
    site = BfdSite(lab, kind, INTERVAL_MS, graceful_restart=graceful_restart).start()
    gone = site.cut()
    assert max(gone.values()) < 3 * INTERVAL_MS + SLACK_MS, gone
    status = site.node.wait_status("sessions stay", lambda it: all(row["state"] == "down" for row in it["peers"]), 5)
    for row in status["peers"]:
        assert "BFD went down" in row["why"]
        assert row["bfd"]["state"] != "up"
    assert all("BFD went down" in row["why"] for row in site.node.ask("routes") if row["wanted"])
    site.fabric.mend(site.place)
    site.node.wait_status("BFD stays down", lambda it: all(row["bfd"]["state"] == "up" for row in it["peers"]))


@pytest.mark.needs("bird")
def test_a_peer_that_takes_bfd_for_a_restart_keeps_the_routes_of_a_dead_path(lab: Lab) -> None:
    """Why the README warns of `bfd graceful` at a ToR, where graceful restart is on."""
    site = BfdSite(lab, Bird, INTERVAL_MS)
    told = (replace(it, extra="bfd graceful;") for it in site.tor.speaker.options.neighbors)
    site.tor.speaker.reconfigure(neighbors=tuple(told))
    site.start()
    site.fabric.cut(site.place)
    for link in LINKS:
        site.tor.speaker.wait_down(link.ours, 5)
    time.sleep(3 * 3 * INTERVAL_MS / 1000)
    assert {(path.peer, path.stale) for path in site.tor.speaker.paths()} == {(it.ours, True) for it in LINKS}


@pytest.mark.needs("bird", *Frr.programs)
def test_bfd_that_is_shut_down_at_the_peer_ends_nothing(lab: Lab) -> None:
    """AdminDown (RFC 5882 section 4.2): BGP stays, `peers` says that nobody watches; BFD may come back."""
    site = BfdSite(lab, Frr, INTERVAL_MS).start()
    assert isinstance(site.tor.speaker, Frr)
    flaps = [site.node.peer(it.name)["flaps"] for it in LINKS]
    site.tor.speaker.shut_bfd_down(True)
    status = site.node.wait_status(
        "BFD stays up", lambda it: all(row["bfd"]["state"] == "down" for row in it["peers"]), 5
    )
    assert all("says so" in row["why"] for row in status["peers"])
    assert exit_codes(site) == {"peers": 4, "status": 4}
    time.sleep(4 * 3 * INTERVAL_MS / 1000)
    site.tor.speaker.shut_bfd_down(False)
    site.wait_up()
    assert [site.node.peer(it.name)["flaps"] for it in LINKS] == flaps
    assert exit_codes(site) == {"peers": 0, "status": 0}


@pytest.mark.needs("bird", *Frr.programs)
def test_bfd_that_is_shut_down_at_the_peer_can_be_taken_away_here(lab: Lab) -> None:
    """The order that ends nothing: first AdminDown there; what is taken away here then is not missed."""
    site = BfdSite(lab, Frr, INTERVAL_MS).start()
    assert isinstance(site.tor.speaker, Frr)
    site.tor.speaker.shut_bfd_down(True)
    site.node.wait_status("BFD stays up", lambda it: all(row["bfd"]["state"] == "down" for row in it["peers"]), 5)
    take_away(site)
    time.sleep(4 * 3 * INTERVAL_MS / 1000)
    assert site.held() == {it.name for it in LINKS}
    assert [site.node.peer(it.name)["flaps"] for it in LINKS] == [0] * len(LINKS)
    assert site.node.daemon is not None
    assert TAKEN_AWAY not in site.node.daemon.log()


@each_peer
def test_bfd_that_is_taken_away_here_first_resets_the_session_once(lab: Lab, kind: type[Speaker]) -> None:
    """BIRD falls silent, and the ToR takes that for a dead path. The log says so; sessions and routes come back."""
    site, names = BfdSite(lab, kind, INTERVAL_MS).start(), {it.name for it in LINKS}
    take_away(site)
    site.node.wait_status("not once", lambda it: all(row["flaps"] == 1 for row in it["peers"]))
    poll(lambda: site.held() == names, 20, lambda: str(site.tor.speaker.paths()))
    assert site.node.daemon is not None
    site.node.daemon.wait_log(TAKEN_AWAY, times=len(names))


def exit_codes(site: BfdSite) -> dict[str, int]:
    """Of the two commands that a script would ask whether this node's sessions are well."""
    return {command: site.node.try_bgpd(command).returncode for command in ("peers", "status")}


def take_away(site: BfdSite) -> None:
    """All sessions, by reload."""
    for peer in site.node.config["bgp"]["peers"]:
        del peer["bfd"]
    site.node.write_config()
    site.node.bgpd("reload")
    poll(lambda: not any(row["bfd"] for row in site.node.status()["peers"]), 5, lambda: "BFD is kept")


@pytest.mark.needs("bird")
def test_each_peer_has_its_own_intervals(lab: Lab) -> None:
    """Two multihop peers, as far as both ends ask for it; `check` says for which of them that is needed."""
    fabric, slow_ms = TwoTorFabric(lab), 3 * INTERVAL_MS
    bgp = two_tor_bgp(fabric)
    for tor, peer, interval_ms in zip(fabric.tors, bgp["peers"], (INTERVAL_MS, slow_ms), strict=True):
        tor.speaker.reconfigure_neighbor(fabric.nodes[0].address, bfd_ms=interval_ms)
        timers = ("transmitIntervalMilliseconds", "receiveIntervalMilliseconds")
        peer["bfd"] = dict.fromkeys(timers, interval_ms)
    node = BgpdNode.announcing(fabric.start(), bgp)
    wanted = [(INTERVAL_MS, 3 * INTERVAL_MS), (slow_ms, 3 * slow_ms)]
    node.wait_status(
        f"not {wanted}",
        lambda it: [(row["bfd"]["interval_ms"], row["bfd"]["timeout_ms"]) for row in it["peers"]] == wanted,
    )
    found = node.try_bgpd("check")
    assert found.returncode == 0
    (warning,) = [line for line in found.stderr.splitlines() if "bfd" in line]
    assert "'tor-b'" in warning


@each_peer
def test_our_end_says_why(lab: Lab, kind: type[Speaker]) -> None:
    """Cease, BFD Down, from us. BGP comes back first, told in `peers`, then BFD does; the rest was left alone."""
    site = BfdSite(lab, kind, INTERVAL_MS, multiplier=50).start()  # the ToR would take 5 s to miss us
    silence = "add table inet silence; "
    for hook in ("input", "output"):  # were our packets to arrive, they would say Down before ExaBGP does
        silence += f"add chain inet silence {hook} {{ type filter hook {hook} priority 0; }}; "
        silence += f"add rule inet silence {hook} udp dport 4784 drop; "
    with BgpCapture(site.place.namespace, CABLE) as capture:
        site.place.namespace.run(["nft", silence])
        said = [capture.wait(partial(_ends, ours)) for ours in FAR]
    assert [it.notification for it in said] == [CEASE_BFD_DOWN, CEASE_BFD_DOWN]
    status = site.node.wait_status("no sessions", lambda it: all(row["state"] == "up" for row in it["peers"]))
    assert ["BFD went down" in row["why"] for row in status["peers"]] == [True, True, False, False]
    site.place.namespace.run(["nft", "delete table inet silence"])
    site.wait_up()
    assert [site.node.peer(it.name)["flaps"] > 0 for it in LINKS] == [True, True, False, False]


def _ends(ours: str, message: BgpMessage) -> bool:
    """Whether this is the node's NOTIFICATION, of the session it has from `ours`."""
    return message.notification is not None and message.src == ours


@pytest.mark.needs("bird")
def test_bfd_outlives_daemon_and_speaker(lab: Lab) -> None:
    """Either may be restarted: BFD's sessions do not notice."""
    site = BfdSite(lab, Bird, INTERVAL_MS).start()

    before = up_since(site)
    assert len(before) == len(LINKS)
    site.node.restart_daemon()
    assert site.node.speaker is not None
    site.node.speaker.kill()
    time.sleep(4 * 3 * INTERVAL_MS / 1000)
    site.node.start_speaker()
    site.wait_up()
    assert up_since(site) == pytest.approx(before, abs=AT_MOST_S)


@pytest.mark.needs("bird")
def test_one_peer_changes_and_the_others_do_not_notice(lab: Lab) -> None:
    """A session is taken out and put in again at run time."""
    site = BfdSite(lab, Bird, INTERVAL_MS).start()
    peers = site.node.config["bgp"]["peers"]
    before = up_since(site)
    bfd = peers[0].pop("bfd")
    site.node.write_config()
    site.node.bgpd("reload")
    poll(lambda: site.node.peer("far4")["bfd"] is None, 5, lambda: "far4 keeps BFD")
    poll(lambda: len(up_since(site)) == len(LINKS) - 1, 5, lambda: "the session stays")
    peers[0]["bfd"] = bfd
    site.node.write_config()
    site.node.bgpd("reload")
    site.wait_up()
    after = up_since(site)
    assert [it for it in LINKS if after[it.ours] > before[it.ours] + AT_MOST_S] == [LINKS[0]]


@pytest.mark.needs("bird")
def test_without_bird_bgp_runs_on(lab: Lab) -> None:
    """Routes are announced, and it is told; BFD comes up once BIRD is there, and its end is told too."""
    site = BfdSite(lab, Bird, INTERVAL_MS)
    site.fabric.start()
    site.node.start()
    problem = site.node.wait_problem("bfd: ")
    assert "is bgpd-bfd.service running?" in problem
    poll(lambda: site.held() == {it.name for it in LINKS}, 20, lambda: str(site.tor.speaker.paths()))
    assert site.node.peer("far4")["bfd"]["state"] == "unknown"
    assert exit_codes(site) == {"peers": 4, "status": 4}
    site.node.wait_metric("bgpd_bfd_connected", 0)
    without = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /usr/sbin/bird && exec "$@"', "sh"]
    checked = [str(site.node.program), "check", "--config", str(site.node.config_file)]
    found = site.place.namespace.run([*without, *checked], check=False)
    assert (found.returncode, "BIRD is not installed" in found.stderr) == (4, True)
    site.node.start_bfd()
    site.wait_up()
    site.node.wait_metric("bgpd_bfd_connected", 1)
    site.node.bgpd("check")
    site.node.wait_metric('bgpd_bfd_session_up{address="11.11.255.1",peer="far4"}', 1)
    assert site.node.bfd is not None
    site.node.bfd.kill()
    assert "is bgpd-bfd.service running?" in site.node.wait_problem("bfd: ")
