"""`tests/bench kernel`: what policy costs on the other kernels that nodes have, in the guests of tests/kernel.

A guest is emulated, so its times say nothing but their ratio to the same without policy in the same guest. Only how
long a filter is missing that a pod has removed has a goal of its own: elsewhere it is shorter. This boots the guests,
one after the other; `kernel_guest` measures in them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.report import Result
from tests.contract.cni_runtime import DEBIAN
from tests.fabric.process import poll
from tests.fabric.screen import Screen
from tests.kernel.image import KERNELS, Kernel, image
from tests.kernel.machine import VIRTIOFSD, Guest

PLUGINS = tuple(str(DEBIAN / name) for name in ("ipvlan", "host-local", "tuning"))
PROGRAMS = ("nft", "mount", "tc", "qemu-system-x86_64", VIRTIOFSD, "cpio", "depmod", *PLUGINS)
LIMIT_S, BOOT_S = 300.0, 100.0


def run(screen: Screen) -> list[Result]:
    """Some two minutes for each kernel on two cores."""
    found: list[Result] = []
    for kernel in KERNELS:
        with screen.step(f"{kernel.name}, emulated"):
            found += results(kernel.name, measured(kernel))
    return found


def results(name: str, measured: Mapping[str, float]) -> list[Result]:
    prefix = name.replace("-", "_").replace(".", "_")
    round_trips = (
        Result(
            name=f"{prefix}_{kind}_round_trip_us",
            value=measured[f"{kind}_bgpd_us"],
            unit="us",
            beside={"nothing": measured[f"{kind}_nothing_us"]},
        )
        for kind in ("veth", "macvlan", "ipvlan")
    )
    found = [*round_trips, Result(name=f"{prefix}_memory_mb", value=measured["memory_mb"], unit="MB")]
    for what in ("removed_filter_back_ms", "filter_removed_again_back_ms"):
        if what in measured:
            found.append(Result(name=f"{prefix}_ipvlan_{what}", value=measured[what], unit="ms", goal=1000))
    return found


def measured(kernel: Kernel) -> dict[str, float]:
    """RuntimeError: the guest did not come to its end; the text has its console."""
    command = [sys.executable, "-m", "tests.benchmarks.kernel_guest", "/run/results/measured.json"]
    with tempfile.TemporaryDirectory(prefix="bgpdt-guest-") as text:
        place = Path(text)
        with Guest(image(kernel), command, place, LIMIT_S) as guest:
            poll(lambda: not guest.running(), LIMIT_S + BOOT_S, lambda: f"it hangs:\n{guest.console()}", 0.2)
            if guest.status != 0:
                raise RuntimeError(f"{kernel.name}: exit status {guest.status}:\n{guest.console()}")
        numbers: dict[str, float] = json.loads((place / "measured.json").read_text())
        return numbers
