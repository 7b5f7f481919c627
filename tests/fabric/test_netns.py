"""Whether labs come and go as they say: namespaces, cables, processes. No BGP speaker is needed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fabric.netns import FILES_DIR, NETNS_DIR, Lab, Namespace, missing
from tests.fabric.process import poll
from tests.fabric.reach import ping


@pytest.fixture
def ends(lab: Lab) -> tuple[Namespace, Namespace]:
    """Two namespaces on one cable."""
    left, right = lab.namespace("left"), lab.namespace("right")
    lab.link(left, "eth0", right, "eth0")
    left.add_address("eth0", "10.0.0.1/24", "fd00::1/64")
    right.add_address("eth0", "10.0.0.2/24", "fd00::2/64")
    return left, right


def gone(pid: int) -> bool:
    """Whether no such process runs (one that only waits to be reaped does not run)."""
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" in status.read_text()
    except OSError:
        return True


def test_a_lab_leaves_nothing_behind_after_a_failure(lab: Lab) -> None:
    """Namespaces, processes and files go, also when the block ends by an exception."""
    del lab  # only here so that the test is skipped where labs cannot be made
    with contextlib.suppress(KeyboardInterrupt), Lab() as doomed:
        namespace = doomed.namespace("doomed")
        process = namespace.popen(["sh", "-c", "sleep 1000 & echo $!; wait"], name="two")
        process.wait_log("\n")
        directory, grandchild = doomed.directory, int(process.log())
        raise KeyboardInterrupt
    assert not namespace.path.exists()
    assert not directory.exists()
    assert not process.running()
    poll(lambda: gone(grandchild), 5.0, lambda: f"process {grandchild} still runs")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda it: it.name)
def test_a_lab_leaves_no_process_when_the_test_is_ended_from_outside(
    lab: Lab, number: signal.Signals
) -> None:
    """Even SIGKILL: children die with their parent, and the next lab sweeps the namespaces."""
    script = (
        "import sys, time\nfrom tests.fabric.netns import Lab\n"
        "with Lab() as lab:\n"
        "    print(lab.namespace('x').popen(['sleep', '1000']).pid, flush=True)\n    time.sleep(1000)\n"
    )
    root = Path(__file__).parents[2]
    test = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, stderr=subprocess.DEVNULL
    )
    assert test.stdout is not None
    with test, test.stdout:
        child = int(test.stdout.readline())
        assert not gone(child)
        test.send_signal(number)
        try:
            test.wait(10)
        finally:
            test.kill()
    poll(lambda: gone(child), 5.0, lambda: f"process {child} still runs")
    with Lab():
        assert not [*NETNS_DIR.glob(f"bgpdt-{test.pid}-*"), *FILES_DIR.glob(f"bgpdt-{test.pid}-*")]


def test_a_cut_cable_stops_packets_and_a_mended_one_carries_them(ends: tuple[Namespace, Namespace]) -> None:
    left, right = ends
    assert ping(right, "10.0.0.1")
    assert ping(right, "fd00::1")
    left.link_down("eth0")
    assert not ping(right, "10.0.0.1", timeout_s=0.2)
    left.link_up("eth0")
    poll(lambda: ping(right, "10.0.0.1", timeout_s=0.1), 5.0, lambda: "the cable stays cut")


def test_no_namespace_has_a_way_out_of_the_machine(ends: tuple[Namespace, Namespace]) -> None:
    left, _ = ends
    assert not any(route.startswith("default") for route in left.routes())
    assert not ping(left, "192.0.2.1", timeout_s=0.2)


def test_what_is_missing_is_named() -> None:
    reason = missing("no-such-program")
    assert reason is not None
    assert ("no-such-program" in reason) == (os.geteuid() == 0)
