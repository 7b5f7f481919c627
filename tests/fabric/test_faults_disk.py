"""Full and read-only disks under the daemon's two directories, and two daemons in one of them.

A directory is a small tmpfs or a read-only mount for the time of a test. What is announced stays announced, the
message names the file and the reason, and everything goes on when there is room again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fabric.disks import fill, mounted, small_disk
from tests.fabric.node import BgpdNode
from tests.fabric.observe import BgpCapture
from tests.fabric.process import run
from tests.fabric.test_lifecycle import never_without
from tests.fabric.topology import CABLE, TwoTorFabric

pytestmark = pytest.mark.needs("bird", "mount", "umount")


def run_directory(node: BgpdNode) -> Path:
    return node.directory / "run"


def planned(fabric: TwoTorFabric) -> Path:
    """Where the first node's files will be."""
    namespace = fabric.nodes[0].namespace
    return namespace.lab.directory / f"{namespace.name}-bgpd"


def test_a_drain_that_cannot_be_remembered_is_refused(fabric: TwoTorFabric) -> None:
    """State directory full: `bgpd drain` names the file and changes nothing; with room it drains."""
    place = fabric.nodes[0]
    with small_disk(planned(fabric) / "state") as ballast:
        node = BgpdNode.announcing(fabric)
        fill(ballast)
        with BgpCapture(place.namespace, CABLE) as capture:
            refused = node.try_bgpd("drain", "--wait", "0")
            assert refused.returncode == 1
            assert (
                f"{node.directory}/state/drain: No space left on device; nothing has been changed" in refused.stderr
            )
            assert node.status()["drain"] == "no"
        assert [str(it) for it in capture.besides_keepalives()] == []
        ballast.unlink()
        assert node.try_bgpd("drain", "--wait", "0").returncode == 0
        end(node)


def test_a_full_run_directory_keeps_the_sessions_and_delays_changes(fabric: TwoTorFabric) -> None:
    """A reload that needs a new speaker configuration waits, by name, until there is room; routes go on."""
    place = fabric.nodes[0]
    with small_disk(planned(fabric) / "run") as ballast:
        node = BgpdNode.announcing(fabric)
        fill(ballast)
        with never_without(fabric, place.pod_cidrs):
            node.allocate(place, *place.pod_cidrs, "188.188.9.0/24")
            for tor in fabric.tors:
                tor.speaker.wait_route("188.188.9.0/24")
            node.allocate(place, *place.pod_cidrs)
            node.config["bgp"]["peers"][0]["timers"] = {"holdTimeSeconds": 6}
            node.write_config()
            node.bgpd("reload")
            told = node.wait_problem("No space left on device")
            assert str(run_directory(node) / "speaker") in told
        ballast.unlink()
        node.wait_status("not changed", lambda it: it["peers"][0]["holdTime_s"] == 6, 60)
        node.wait_healthy()
        end(node)


def test_a_peer_that_is_removed_on_a_full_disk_keeps_its_routes(fabric: TwoTorFabric) -> None:
    """Nothing is withdrawn before the new speaker configuration is written; with room, session and routes go."""
    place, (a, b) = fabric.nodes[0], fabric.tors
    with small_disk(planned(fabric) / "run") as ballast:
        node = BgpdNode.announcing(fabric)
        fill(ballast)
        with BgpCapture(place.namespace, CABLE) as capture, never_without(fabric, place.pod_cidrs):
            node.config["bgp"]["peers"].pop()
            node.write_config()
            node.bgpd("reload")
            node.wait_problem("No space left on device")
        assert [str(it) for it in capture.besides_keepalives()] == []
        ballast.unlink()
        b.speaker.wait_down(place.address, 60)
        assert b.speaker.routes(place.address) == {}
        assert len(a.speaker.routes(place.address)) == len(place.pod_cidrs)
        node.wait_healthy()
        end(node)


def test_a_full_disk_does_not_keep_a_daemon_from_coming_back(fabric: TwoTorFabric) -> None:
    """Restarted on a full run directory it serves, for it writes nothing there that was not there; routes stay."""
    place = fabric.nodes[0]
    with small_disk(planned(fabric) / "run") as ballast:
        node = BgpdNode.announcing(fabric)
        assert node.daemon is not None
        node.daemon.kill()
        fill(ballast)
        with never_without(fabric, place.pod_cidrs):
            node.start_daemon()
            node.wait_healthy()
        end(node)


def test_a_full_disk_stops_the_first_start(fabric: TwoTorFabric) -> None:
    """The daemon ends with 1 and one line that names the directory and the reason."""
    node = BgpdNode.at(fabric.nodes[0], {"localASN": 64512, "peers": [PEER]})
    with small_disk(run_directory(node)) as ballast:
        fill(ballast)
        started = node.try_bgpd("run")
    assert started.returncode == 1
    (line,) = started.stderr.splitlines()
    assert str(run_directory(node)) in line
    assert "No space left on device" in line


def test_a_read_only_run_directory_stops_the_start(fabric: TwoTorFabric) -> None:
    """The daemon ends with 1 and one line that names the file and the reason."""
    node = BgpdNode.at(fabric.nodes[0], {"localASN": 64512, "peers": [PEER]})
    run_directory(node).mkdir()
    with mounted(run_directory(node), "-t", "tmpfs", "-o", "ro", "tmpfs"):
        started = node.try_bgpd("run")
    assert started.returncode == 1
    assert started.stderr.splitlines()[-1].startswith(f"bgpd: {run_directory(node)}/")
    assert "Read-only file system" in started.stderr
    assert "Traceback" not in started.stderr


def test_a_run_directory_that_becomes_read_only_delays_changes(fabric: TwoTorFabric) -> None:
    """Sessions and routes go on; a change of sessions is named and waits until the directory can be written."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    with never_without(fabric, place.pod_cidrs), read_only(run_directory(node)):
        node.allocate(place, *place.pod_cidrs, "188.188.9.0/24")
        for tor in fabric.tors:
            tor.speaker.wait_route("188.188.9.0/24")
        node.allocate(place, *place.pod_cidrs)
        node.config["bgp"]["peers"][0]["timers"] = {"holdTimeSeconds": 6}
        node.write_config()
        node.bgpd("reload")
        assert str(run_directory(node) / "speaker") in node.wait_problem("Read-only file system")
        assert node.status()["peers"][0]["state"] == "up"
    node.wait_status("not changed", lambda it: it["peers"][0]["holdTime_s"] == 6, 60)
    node.wait_healthy()


def test_a_second_daemon_ends_with_one_line(fabric: TwoTorFabric) -> None:
    """On the same run directory: exit 1, the first one's pid and what to do; the first one and its routes stay."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.daemon is not None
    with BgpCapture(place.namespace, CABLE) as capture:
        second = node.try_bgpd("run")
        node.wait_healthy()
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert f"another bgpd (pid {node.daemon.pid}) uses {run_directory(node)}; stop it or move paths.run" in line
    assert [str(it) for it in capture.besides_keepalives()] == []


PEER = {"name": "tor-a", "peerAddress": "11.11.255.1", "peerASN": 64512}


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """The directory itself, mounted over itself and not writable for anybody."""
    with mounted(path, "--bind", str(path)):
        run(["mount", "-o", "remount,bind,ro", str(path)])
        yield


def end(node: BgpdNode) -> None:
    """Before its directory is unmounted."""
    for process in (node.daemon, node.speaker):
        if process is not None:
            process.kill()
