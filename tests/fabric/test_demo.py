"""The demo as a user starts it: it says that all is well, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fabric.netns import FILES_DIR, NETNS_DIR, PREFIX, missing
from tests.fabric.process import poll

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0
REFUSAL = "this machine cannot do it: "


@pytest.fixture(autouse=True)
def machine() -> None:
    """Skips where the demo itself would say that something is missing."""
    reason = missing("bird", "birdc")
    if reason is not None:
        pytest.skip(reason)


class Run:
    """One run of the demo, without a terminal; its output is read line by line."""

    def __init__(self, *arguments: str, within: Sequence[str] = ()) -> None:
        self.seen: list[str] = []
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.fabric.demo", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, text: str) -> None:
        """Reads on to the first line that holds `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(line.rstrip("\n"))
            if text in line:
                return
        raise AssertionError(f"never said {text!r}: {self.seen}")

    def finish(self) -> int:
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        self.seen += output.splitlines()
        return self.process.returncode

    @property
    def mark(self) -> str:
        return f"{PREFIX}-{self.process.pid}-"

    def leftovers(self) -> list[str]:
        """Namespaces, directories, mounts and processes that carry this run's id."""
        files = [*NETNS_DIR.glob(f"{self.mark}*"), *FILES_DIR.glob(f"{self.mark}*")]
        lines = [*command_lines(), *Path("/proc/self/mountinfo").read_text().splitlines()]
        return [str(path) for path in files] + [line for line in lines if self.mark in line]

    def wait_nothing_left(self) -> None:
        """A program that was just being started is killed with the demo, not before it (PDEATHSIG)."""
        poll(lambda: self.leftovers() == [], 5, lambda: str(self.leftovers()))


def machines_own() -> tuple[list[str], str]:
    """What masquerade leaves on a machine that runs bgpd: pins, and the table in the machine's own namespace."""
    pins = sorted(str(path) for path in Path("/sys/fs/bpf").rglob("*"))
    listed = subprocess.run(["nft", "list", "table", "inet", "bgpd"], capture_output=True, text=True, check=False)
    return pins, listed.stdout + listed.stderr


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    """The runs a test starts; one that it did not end is ended here."""
    started: list[Run] = []
    yield started
    for run in started:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
        run.process.communicate(timeout=DEADLINE_S)


def test_all_checks_pass_and_nothing_is_left(runs: list[Run]) -> None:
    """Exit status 0, a summary that is all ok, plain text of 100 columns, and no trace afterwards."""
    before = machines_own()
    runs.append(run := Run())
    assert run.finish() == 0, "\n".join(run.seen)
    summary = run.seen[run.seen.index("Summary") + 1 :]
    checks = [line for line in summary if line.startswith("  ok ") or "FAILED" in line]
    assert len(checks) >= 19
    assert not [line for line in checks if "FAILED" in line]
    assert f"{len(checks)} of {len(checks)} checks ok" in "\n".join(summary)
    assert not [line for line in run.seen if "\x1b" in line or len(line) > 100]
    run.wait_nothing_left()
    assert machines_own() == before
    refusals = [line for line in run.seen if REFUSAL in line]
    if refusals:
        pytest.skip(refusals[0].strip())
    assert len([line for line in checks if " dials " in line]) >= 10
    assert [line for line in checks if "new connections: " in line]
    assert [line for line in checks if "the open stream ran on" in line]
    assert len([line for line in checks if "meet silence" in line]) == 2


def test_without_bpf_it_says_so_and_shows_the_rest(runs: list[Run]) -> None:
    """A kernel without BPF has no /sys/fs/bpf to mount at: a line for each of two chapters, and all others."""
    hidden = 'mount -t tmpfs none /sys/fs && exec "$@"'
    runs.append(run := Run(within=("unshare", "--mount", "sh", "-c", hidden, "sh")))
    assert run.finish() == 0, "\n".join(run.seen)
    assert len([line for line in run.seen if REFUSAL in line]) == 2
    assert [line for line in run.seen if "the withdrawal came" in line]
    assert not [line for line in run.seen if "FAILED" in line]
    run.wait_nothing_left()


@pytest.mark.parametrize(
    "moment", ["network:", "bgpd doctor", "node2 ", "health checker dials", "Masquerade:", "taking everything down"]
)
def test_ctrl_c_leaves_nothing(runs: list[Run], moment: str) -> None:
    """Interrupted while it builds, starts daemons, watches or already tears down: it takes everything away."""
    runs.append(run := Run())
    run.read_until(moment)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == (0 if moment == "taking everything down" else 130), "\n".join(run.seen)
    assert not [line for line in run.seen if "Traceback" in line]
    run.wait_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends_leave_nothing(runs: list[Run], number: signal.Signals) -> None:
    """Ended by the system, or its terminal closed."""
    runs.append(run := Run())
    run.read_until("node1 ")
    run.process.send_signal(number)
    assert run.finish() == 128 + number
    run.wait_nothing_left()


def test_keep_stays_until_enter(runs: list[Run]) -> None:
    """The commands it prints work while it stays; Enter takes it down, and the verdict is the exit status."""
    runs.append(run := Run("--keep"))
    run.read_until("Enter or Ctrl-C")
    commands = [line.strip() for line in run.seen if line.strip().startswith("nsenter")]
    answers = [
        subprocess.run(["sh", "-c", it], capture_output=True, text=True, check=False, timeout=30)
        for it in commands
        if "tcpdump" not in it
    ]
    assert len(answers) >= 4
    assert not [it for it in answers if it.returncode], answers
    assert "188.188.2.0/24" in answers[0].stdout
    assert run.process.stdin is not None
    run.process.stdin.write("\n")
    run.process.stdin.flush()
    assert run.finish() == 0
    run.wait_nothing_left()


def test_kill_is_swept_by_the_next(runs: list[Run]) -> None:
    """After SIGKILL its processes are gone at once, and the next run removes its namespaces."""
    runs.append(run := Run())
    run.read_until("Masquerade:")
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    poll(lambda: not [it for it in command_lines() if run.mark in it], 5.0, lambda: str(run.leftovers()))
    runs.append(after := Run())
    after.read_until("ToRs:")
    run.wait_nothing_left()
