"""The whole daemon while the API server, the way to it, or its credentials fail: the fabric must not notice.

Every test announces first, has both ToRs asked for the routes every 10 ms meanwhile, and ends with the daemon
following a change again. Times are the daemon's own defaults: 20 s for a silent network, 65 s at most for a
server that is frozen, pauses of up to 30 s between attempts. Ten minutes without an API server are a unit
test in virtual time (tests/unit/test_outage.py); here it is one minute.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fabric.bgp_wire import BgpType
from tests.fabric.node import BgpdNode
from tests.fabric.observe import BgpCapture
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace
from tests.files import rewrite

from .node import (
    API_ADDRESS,
    OTHER_CIDRS,
    Cluster,
    announcing,
    bgpd_node,
    follow_a_change,
    unbroken,
    wait_changed,
)

PAUSE_S = 31.0  # the longest pause between two attempts, and one attempt
SILENT_S = 30.0  # 20 s of unanswered probes (client.DEAD_AFTER_S), the probe before them, and a slow machine
FROZEN_S = 75.0  # a watch of 60 s, its slack of 5 s, and a slow machine
DAY_S = 86400


@pytest.fixture
def node(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The product, not started. What the test did to the API server is made good afterwards.

    Whatever happened, the daemon has asked for nothing but its own Node.
    """
    cluster.forget_asked()
    with bgpd_node(cluster, place) as made:
        yield made
        cluster.mend()
        with suppress(RuntimeError):  # it is running
            cluster.control_plane.start_apiserver()
        cluster.control_plane.resume_apiserver()
    assert {it.selector for it in cluster.asked()} <= {f"metadata.name={place.name}"}


def wait_source(node: BgpdNode, wanted: Callable[[dict[str, Any]], bool], timeout_s: float) -> str:
    """The source's last error once `wanted` holds for its part of the status; asked seldom, as that costs time."""

    def probe() -> str | None:
        source = node.status()["source"]
        return str(source["lastError"]) if wanted(source) else None

    return poll(probe, timeout_s, lambda: node.bgpd("status", check=False), every_s=0.2)


def wait_retrying(node: BgpdNode, timeout_s: float = 20.0) -> str:
    """Waits until the source is retrying; checks that `bgpd status` says so and exits 4; returns the reason."""
    reason = wait_source(node, lambda source: source["state"] == "retrying", timeout_s)
    shown = node.try_bgpd("status")
    assert shown.returncode == 4
    assert "source: retrying: " in shown.stdout
    return reason


def wait_error(node: BgpdNode, text: str) -> None:
    """Waits until the source's last error holds `text`."""
    wait_source(node, lambda source: text in source["lastError"], PAUSE_S)


def readyz(node: BgpdNode) -> tuple[int, str]:
    """Status and body of /readyz."""
    argv = ["curl", "-s", "-w", "%{http_code}", "http://127.0.0.1:9179/readyz"]
    text = node.namespace.run(argv).stdout
    return int(text[-3:]), text[:-3]


def cpu_s(node: BgpdNode) -> float:
    """Processor time that the daemon has used."""
    assert node.daemon is not None
    fields = Path(f"/proc/{node.daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- the API server --------------------------------------------------------------------------------------------


def test_api_server_that_crashes(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """SIGKILL and a new start: said in the status, nothing on the wire, and changes are followed afterwards."""
    announcing(cluster, node, place)
    with unbroken(cluster, place) as capture:
        cluster.control_plane.kill_apiserver()
        assert cluster.control_plane.url in wait_retrying(node)
        cluster.control_plane.start_apiserver()
        node.wait_healthy(PAUSE_S)
    assert capture.besides_keepalives() == []
    follow_a_change(cluster, node, place)


def test_history_that_is_gone(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """410 Gone leads to a new list, in which the Node that was made anew meanwhile replaces the old one."""
    announcing(cluster, node, place)
    with unbroken(cluster, place):
        for other in cluster.fabric.nodes[1:]:
            cluster.make(other)
            cluster.unmake(other)
        cluster.control_plane.forget_history()
        wait_error(node, "410")
        node.wait_healthy(PAUSE_S)
    follow_a_change(cluster, node, place)


def test_long_outage(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """A minute of a frozen server, found out within 65 s, then of none at all: no route lost, no time wasted."""
    announcing(cluster, node, place)
    used = cpu_s(node)
    with unbroken(cluster, place) as capture:
        cluster.control_plane.pause_apiserver()
        assert "fell silent" in wait_retrying(node, FROZEN_S)
        cluster.control_plane.kill_apiserver()
        wait_error(node, "Connect call failed")
        assert cpu_s(node) - used < 1.0
        assert readyz(node)[0] == 200  # its routes can be relied on
        cluster.control_plane.start_apiserver()
        node.wait_healthy(PAUSE_S)
    assert capture.besides_keepalives() == []
    follow_a_change(cluster, node, place)


# --- the way to it -----------------------------------------------------------------------------------------------


def test_cable_to_the_api_server_is_cut(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """Found out by TCP's probes within 30 s; the Node that was made anew meanwhile is taken over afterwards."""
    announcing(cluster, node, place)
    with unbroken(cluster, place) as capture:
        cluster.cut()
        wait_retrying(node, SILENT_S)
    assert capture.besides_keepalives() == []
    cluster.unmake(place)
    cluster.make(place, *OTHER_CIDRS)
    cluster.mend()
    wait_changed(cluster, node, place, PAUSE_S)


def test_route_to_the_api_server_is_a_black_hole(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """As with the cable, though every link stays up; it is in step again soon after the route is."""
    announcing(cluster, node, place)
    with unbroken(cluster, place) as capture:
        place.namespace.add_route(f"blackhole {API_ADDRESS}/32")
        try:
            wait_retrying(node, SILENT_S)
        finally:
            place.namespace.remove_route(f"{API_ADDRESS}/32")
        node.wait_healthy(PAUSE_S)
    assert capture.besides_keepalives() == []
    follow_a_change(cluster, node, place)


# --- who it is -----------------------------------------------------------------------------------------------------


def token_file(node: BgpdNode) -> Path:
    return node.namespace.lab.directory / f"{node.namespace.name}.token"


def test_token_that_is_rotated(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """A new token in the file is used for the next request: the old one, revoked then, is never missed."""
    secrets = "/api/v1/namespaces/kube-system/secrets"
    admin = cluster.control_plane.admin
    secret = admin.create(secrets, {"metadata": {"name": "old"}})
    old = cluster.control_plane.service_account_token("kube-system", "bgpd", bound_to=secret)
    rewrite(token_file(node), old)
    announcing(cluster, node, place)
    with unbroken(cluster, place) as capture:
        rewrite(token_file(node), cluster.token())
        admin.delete(f"{secrets}/old")
        cluster.control_plane.kill_apiserver()  # ends the watch, and what the server remembers of tokens
        wait_retrying(node)
        cluster.control_plane.start_apiserver()
        status = node.wait_healthy(PAUSE_S)
        assert "401" not in status["source"]["lastError"]
    assert capture.besides_keepalives() == []
    follow_a_change(cluster, node, place)


def test_token_that_expired(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """401 is said in the status; a fresh token in the file ends the trouble, without a restart or a signal."""
    announcing(cluster, node, place)
    with unbroken(cluster, place) as capture:
        rewrite(token_file(node), cluster.control_plane.expiring_token("kube-system", "bgpd", 0))
        cluster.control_plane.kill_apiserver()
        cluster.control_plane.start_apiserver()
        wait_error(node, "(401)")
        assert "does not accept the credentials (401)" in wait_retrying(node)
        rewrite(token_file(node), cluster.token())
        node.wait_healthy(PAUSE_S)
    assert capture.besides_keepalives() == []
    follow_a_change(cluster, node, place)


# --- the start ------------------------------------------------------------------------------------------------


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: file.unlink(), "cannot be read: No such file or directory; is source.kubernetes"),
    "not YAML": (lambda file: file.write_text("{"), "expected"),
    "no such token file": (lambda file: edit(file, "user", tokenFile="/nowhere"), "/nowhere cannot be read"),
}


def edit(kubeconfig: Path, section: str, **values: str) -> None:
    """JSON is YAML."""
    content = yaml.safe_load(kubeconfig.read_text())
    content[f"{section}s"][0][section].update(values)
    kubeconfig.write_text(json.dumps(content))


@pytest.mark.parametrize("how", BROKEN)
def test_kubeconfig_that_is_no_good_at_the_start(node: BgpdNode, how: str) -> None:
    """`bgpd run` ends with 1, so that systemd tries again, and one line that names the file and what is wrong."""
    kubeconfig = Path(node.config["source"]["kubernetes"]["kubeconfig"])
    spoil, message = BROKEN[how]
    spoil(kubeconfig)
    done = node.try_bgpd("run")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith(f"bgpd: {kubeconfig}:")
    assert message in said[0]


def test_daemon_that_starts_while_the_api_server_is_down(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """It waits and says so, and leaves alone what the speaker has announced since an earlier daemon's life."""
    announcing(cluster, node, place)
    assert node.daemon is not None
    node.daemon.stop()
    cluster.control_plane.kill_apiserver()
    with unbroken(cluster, place) as capture:
        node.start_daemon()
        node.wait_problem("source: starting: " + cluster.control_plane.url)
        assert node.try_bgpd("status").returncode == 4
        poll(lambda: "source: kubernetes:" in readyz(node)[1], 5, lambda: str(readyz(node)))
        assert readyz(node)[0] == 503
        node.wait_status("no second try", lambda it: it["uptime_s"] > 3)
        cluster.control_plane.start_apiserver()
        node.wait_healthy(PAUSE_S)
        poll(lambda: readyz(node)[0] == 200, 5, lambda: str(readyz(node)))
    assert capture.besides_keepalives() == []
    follow_a_change(cluster, node, place)


def test_no_end_of_rib_before_the_source_is_there(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """Speaker and daemon start anew without an API server: the ToRs keep the routes, for nobody says it was all."""
    announcing(cluster, node, place)
    assert node.daemon is not None
    assert node.speaker is not None
    node.daemon.kill()
    node.speaker.kill()
    cluster.control_plane.kill_apiserver()
    with unbroken(cluster, place) as capture:
        node.start()
        for tor in cluster.fabric.tors:
            tor.speaker.wait_established(place.address)
        node.wait_problem("source: starting: " + cluster.control_plane.url)
        capture.wait(lambda it: it.type is BgpType.KEEPALIVE and it.src == place.address)
        assert capture.messages(BgpType.UPDATE, src=place.address) == []
        cluster.control_plane.start_apiserver()
        node.wait_healthy(PAUSE_S)
        for tor in cluster.fabric.tors:
            for prefix in place.pod_cidrs:
                tor.speaker.wait_route(prefix, where=lambda route: not route.stale)
    for tor in cluster.fabric.tors:
        said = capture.messages(BgpType.UPDATE, src=place.address, dst=tor.loopback)
        assert [it.end_of_rib for it in said] == [False, False, True, True]


# --- the clock ------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Environment that gives a process a wall clock of its own; `set_clock` moves it. The monotonic one is real."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("not installed: libfaketime")
    yield {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(set_clock(tmp_path, 0)),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_RESET": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def set_clock(directory: Path, offset_s: int) -> Path:
    """Moves the wall clock to so many seconds from the real one."""
    file = directory / "clock"
    rewrite(file, f"{offset_s:+d}\n")
    return file


def wait_keepalives(cluster: Cluster, place: NodePlace, capture: BgpCapture, count: int) -> None:
    """Waits until the node has said so many KEEPALIVEs to each ToR since the capture began, one every 3 s."""
    for tor in cluster.fabric.tors:
        said = partial(capture.messages, BgpType.KEEPALIVE, src=place.address, dst=tor.loopback)
        poll(partial(_at_least, count, said), 20, lambda: f"{capture.counts()}")


def _at_least(count: int, said: Callable[[], Sequence[object]]) -> bool:
    return len(said()) >= count


def shown_time(node: BgpdNode) -> float:
    """What the daemon takes for the time, in Unix seconds, from the last line of its log."""
    assert node.daemon is not None
    return datetime.fromisoformat(json.loads(node.daemon.log().splitlines()[-1])["ts"]).timestamp()


def test_wall_clock_that_jumps(
    cluster: Cluster, place: NodePlace, node: BgpdNode, clock: dict[str, str], tmp_path: Path
) -> None:
    """A day ahead and back again: nothing on the wire, no time wasted, and the Node is followed in either case."""
    announcing(cluster, node, place, clock)
    for offset_s in (DAY_S, 0):
        with unbroken(cluster, place) as capture:
            set_clock(tmp_path, offset_s)
            used = cpu_s(node)
            wait_keepalives(cluster, place, capture, 2)
            assert cpu_s(node) - used < 0.5
        assert capture.besides_keepalives() == []
        follow_a_change(cluster, node, place)
        assert abs(shown_time(node) - time.time() - offset_s) < 60
        cluster.unmake(place)
        cluster.make(place, *place.pod_cidrs)
        for tor in cluster.fabric.tors:
            tor.speaker.wait_no_route(OTHER_CIDRS[0])
        node.wait_healthy()


@pytest.mark.parametrize("offset_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_wall_clock_of_the_speaker_that_jumps(
    cluster: Cluster, place: NodePlace, node: BgpdNode, clock: dict[str, str], tmp_path: Path, offset_s: int
) -> None:
    """A day more or less is no reason for ExaBGP to take a peer for dead, nor to fall silent itself."""
    announcing(cluster, node, place, speaker_environment=clock)
    with unbroken(cluster, place) as capture:
        set_clock(tmp_path, offset_s)
        wait_keepalives(cluster, place, capture, 5)  # longer than the hold time of 9 s
    assert capture.besides_keepalives() == []
