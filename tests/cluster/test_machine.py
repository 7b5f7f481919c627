"""A machine is a machine of its own, and of it nothing stays: after its end, a failure, or a test that was killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fabric.netns import Lab, Namespace, missing
from tests.fabric.process import poll

from .machine import Machine, hierarchies, lacking, running_machine, sweep_cgroups

# A program in a control group of its own, and in a session of its own, as a container is.
CONTAINER = ["sh", "-c", 'echo $$ >"$1/cgroup.procs"; exec setsid sleep 1000', "sh"]
AT_LEAST = 5  # unshare, the first process and its sleep, and what start_container starts: nsenter, the container
KILLED = """
import sys
from tests.cluster.machine import running_machine
from tests.cluster.test_machine import processes, start_container
from tests.fabric.netns import Lab

with Lab() as lab, running_machine(lab.namespace("killed")) as machine:
    start_container(machine)
    print(machine.cgroup, *processes(machine), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    reason = missing() or lacking()
    if reason is not None:
        pytest.skip(reason)
    with Lab() as lab:
        yield lab.namespace("machine")


def start_container(machine: Machine) -> None:
    """Its control groups are the kubelet's business; here they are made by hand."""
    groups = [each / machine.cgroup.lstrip("/") / "pod" for each in hierarchies()]
    for group in groups:
        group.mkdir()
    started = machine.popen([*CONTAINER, str(groups[0])])
    poll(lambda: (groups[0] / "cgroup.procs").read_text() != "", 5, started.log_tail)


def processes(machine: Machine) -> set[int]:
    """All of the machine, as this one counts them."""
    own = (Path("/proc") / str(machine.first) / "ns/mnt").readlink()
    return {int(each.parts[2]) for each in Path("/proc").glob("[0-9]*/ns/mnt") if _link(each) == own}


def _link(file: Path) -> Path | None:
    try:
        return file.readlink()
    except OSError:
        return None


def groups_of(cgroup: str) -> list[Path]:
    return [each for each in hierarchies() if (each / cgroup.lstrip("/")).exists()]


def alive(pids: set[int]) -> list[int]:
    return [each for each in pids if Path("/proc", str(each)).exists()]


def test_it_sees_what_is_its_own(namespace: Namespace) -> None:
    namespace.ip("link add its-own type veth peer name peer")
    with running_machine(namespace) as machine:
        touched = "touch /etc/of-its-own /run/of-its-own /var/of-its-own"
        machine.run(["sh", "-ec", f"{touched}; echo 2 >/proc/sys/kernel/panic"])
        assert machine.run(["ls", "/sys/class/net"]).stdout.split() == ["its-own", "lo", "peer"]
        assert machine.run(["find", "/etc/cni", "/opt/cni", "-mindepth", "1"]).stdout == ""
        assert (machine.root / "etc/of-its-own").exists()
        assert machine.run(["cat", "/proc/sys/kernel/panic"]).stdout == "2\n"
        assert machine.run(["cat", "/proc/1/comm"]).stdout == "sh\n"
    assert not [each for each in ("/etc", "/run", "/var") if Path(each, "of-its-own").exists()]
    assert Path("/proc/sys/kernel/panic").read_text() != "2\n"


def test_it_ends_with_all_that_is_in_it(namespace: Namespace) -> None:
    """Here by an exception."""
    with pytest.raises(ZeroDivisionError), running_machine(namespace) as machine:
        start_container(machine)
        running = processes(machine)
        assert len(running) >= AT_LEAST and groups_of(machine.cgroup)
        raise ZeroDivisionError
    assert alive(running) == [] and groups_of(machine.cgroup) == []
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    assert not [each for each in mounts if each.startswith("machine ") or str(namespace.lab.directory) in each]


def test_it_ends_with_a_test_that_is_killed(namespace: Namespace) -> None:
    """Its control groups go when the next machine starts."""
    argv, root = [sys.executable, "-c", KILLED], Path(__file__).parents[2]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert child.stdout is not None and child.stdin is not None
    cgroup, *pids = child.stdout.readline().split()
    running = set(map(int, pids))
    assert len(running) >= AT_LEAST and alive(running) and groups_of(cgroup)
    child.kill()
    child.communicate()
    poll(lambda: not alive(running), 10, lambda: f"still there: {alive(running)}")
    sweep_cgroups()
    assert groups_of(cgroup) == []


def test_a_process_of_it_is_told_to_end(namespace: Namespace) -> None:
    """And not only whoever waits for it."""
    with running_machine(namespace) as machine:
        polite = machine.popen(["sh", "-c", "trap 'echo told; exit 7' TERM; echo up; sleep 1000 & wait"])
        polite.wait_log("up")
        assert polite.stop() == 7
        assert "told" in polite.log()
