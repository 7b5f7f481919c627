"""What the decision costs: the program on one packet in the kernel (BPF_PROG_TEST_RUN), on three lengths of list.

It is asked about the first packet of a flow only (`masq_flow`), so this is nanoseconds per new connection. A number
is the mean over many destinations of the best of several runs each: whatever else the machine does only adds.
`program_ns` is for what is not listed, which looks as deep into the list as it goes; `program_listed_ns` is for what
is, and counts the hit. To each length comes what the daemon puts into every list: link-local addresses.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bgpd.datapath import layout, loader
from bgpd.model.lpm import LpmKey
from bgpd.model.masq import LINK_LOCAL_V4
from tests.benchmarks.masq_stage import prefixes, somewhere
from tests.benchmarks.report import Result
from tests.bpf.packets import ipv4
from tests.bpf.program import run

LENGTHS = {"0": 0, "100": 100, "16k": 16_000}
PROGRAM = "masquerade"
DESTINATIONS, RUNS, REPEAT = 100, 5, 20_000
FLAT = 1.25  # the goal of what is called a flatness


def results(place: Path) -> list[Result]:
    """With the shipped object, pinned at `place`."""
    installed = loader.install(loader.shipped("masq"), place / "packet")
    pin = installed.programs[PROGRAM].pin
    _put(installed, [LINK_LOCAL_V4])
    missed, hit = {}, {}
    rand = random.Random(2)
    unlisted, there = _unlisted(rand), 0
    for name, length in LENGTHS.items():
        _put(installed, prefixes(length)[there:])
        there = length
        missed[name] = _mean_ns(pin, unlisted, 1)
        if length:
            listed = rand.choices(prefixes(length), k=DESTINATIONS)
            hit[name] = _mean_ns(pin, [_inside(each, rand) for each in listed], 0)
    return [
        *(Result(name=f"program_ns_{name}", value=value, unit="ns") for name, value in missed.items()),
        *(Result(name=f"program_listed_ns_{name}", value=value, unit="ns") for name, value in hit.items()),
        flatness("program_flatness", missed),
        flatness("program_listed_flatness", hit),
    ]


def _put(installed: loader.Installed, entries: Sequence[IPv4Network]) -> None:
    keys = list(map(LpmKey.of, entries))
    installed.maps["ipmasq_hits_v4"].update(dict.fromkeys(keys, layout.COUNTER.pack(0)))
    installed.maps["ipmasq_v4"].update(dict.fromkeys(keys, layout.PRESENT))


def _unlisted(rand: random.Random) -> list[IPv4Address]:
    """Addresses among the longest list, but in no entry."""
    listed = {int(each.network_address) >> 8 for each in prefixes(max(LENGTHS.values()))}
    anywhere = (somewhere(rand) for _ in itertools.count())
    return list(itertools.islice((each for each in anywhere if int(each) >> 8 not in listed), DESTINATIONS))


def _inside(prefix: IPv4Network, rand: random.Random) -> IPv4Address:
    return prefix[rand.randrange(prefix.num_addresses)]


def _mean_ns(pin: Path, destinations: Sequence[IPv4Address], verdict: int) -> float:
    """RuntimeError: the program does not say `verdict` of one of them."""
    best = []
    for destination in destinations:
        runs = [run(pin, ipv4(destination), REPEAT) for _ in range(RUNS)]
        if {it.value for it in runs} != {verdict}:
            raise RuntimeError(f"the program says {runs[0].value} of {destination}, not {verdict}")
        best.append(min(it.duration_ns for it in runs))
    return statistics.fmean(best)


def flatness(name: str, by_length: Mapping[str, float], goal: float | None = None) -> Result:
    """The dearest length divided by the cheapest."""
    return Result(name=name, value=max(by_length.values()) / min(by_length.values()), unit="x", goal=goal)
