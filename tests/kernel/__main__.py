"""The tier: boots every kernel, each once and all at the same time, and says what became of them.

    python -m tests.kernel RESULTS [KERNEL...]

Leaves in RESULTS, for tests/tally.py, NAME.xml by the pytest in each guest, and what is not a test of its own in
kernel.outcomes. Decides how long a guest may take. Exit status 0 whatever the tests say.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.fabric.process import poll
from tests.kernel import skips, suite
from tests.kernel.image import KERNELS, ImageError, image
from tests.kernel.machine import Guest
from tests.tally import from_junit

LIMIT_S = 1800.0  # the suite, by which it is interrupted: it hangs, or twice as much goes on on this machine as fits
BOOT_S = 200.0  # what comes before and after it, by which the guest is ended
NICE = 10  # guests only compute: the tests that wait for timers of this machine come first
CONSOLE_LINES = 60  # of a guest in which something went wrong
CUT = (124, 137)  # what timeout(1) ends with


def main(results: Path, names: list[str]) -> None:
    os.nice(NICE)
    kernels = [each for each in KERNELS if not names or each.name in names]
    suite.compile_all()
    with ExitStack() as stack:
        guests: dict[str, tuple[Guest, Path]] = {}
        for kernel in kernels:
            try:
                found = image(kernel)
            except ImageError as error:
                failed(results, kernel.name, f"there is no kernel to boot: {error}")
                continue
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bgpdt-guest-")))
            command = suite.command(kernel.name, Path("/run/results/report.xml"))
            guest = stack.enter_context(Guest(found, command, place, LIMIT_S))
            guests[kernel.name] = (guest, place)
            print(f"{kernel.name}: booting {found.package}", flush=True)
        started = time.monotonic()
        while guests:
            left = started + LIMIT_S + BOOT_S - time.monotonic()
            ended = wait(guests, left)
            for name in ended or list(guests):
                guest, place = guests.pop(name)
                report(results, name, guest, place, cut=not ended)


def wait(guests: dict[str, tuple[Guest, Path]], left_s: float) -> list[str]:
    """Those that have ended, as soon as there is one; none, if there is none in time."""

    def ended() -> list[str]:
        return [name for name, (guest, _) in guests.items() if not guest.running()]

    try:
        return poll(lambda: ended() or None, left_s, str, 0.2)
    except TimeoutError:
        return []


def report(results: Path, name: str, guest: Guest, place: Path, *, cut: bool) -> None:
    """`cut`: it does not end by itself."""
    written = place / "report.xml"
    if written.exists():
        shutil.copy(written, results / f"{name}.xml")
        for each in skips.untold(name, from_junit(written)):
            failed(results, each.name, f"skipped, which the README's table of kernels does not tell: {each.detail}")
    lines = guest.console().splitlines()
    fine = guest.status == 0 and not cut
    shown = [line for line in lines if line.startswith("===")][-1:] if fine else lines[-CONSOLE_LINES:]
    print("\n".join(f"{name}: {line}" for line in shown), flush=True)
    if cut:
        failed(results, name, f"the guest hung: ended after {LIMIT_S + BOOT_S:.0f} s, its console is above")
    elif guest.status is None:
        failed(results, name, "the guest went down before its tests had ended, its console is above")
    elif guest.status in CUT:
        failed(results, name, f"a test hung: interrupted after {LIMIT_S:.0f} s, its console is above")
    elif guest.status > 1 or not written.exists():
        failed(results, name, f"pytest ended with status {guest.status}, its console is above")


def failed(results: Path, name: str, why: str) -> None:
    print(f"{name}: {why}", flush=True)
    with (results / "kernel.outcomes").open("a") as file:
        file.write(f"failed {name}: {' '.join(why.split())}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
