"""The list put into the kernel and edited there; beside it the same list reloaded as ip-masq-agent does.

`apply` is the writing of the map and of the map of hits, by the daemon's own code in this process. `change_one` is a
whole round of the running daemon's loop, as it says in its log: it has the parsed document, plans, finds the
difference to what is there, and writes it; whatever else the daemon does at that moment is in it. Theirs is the time
of the program that is given the text, from its start to its end. Neither has the reading of the document in it, nor
its way from the API server: `masq_latency` has.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from bgpd.datapath import loader
from bgpd.masq.map import MasqList, own_maps, wanted
from bgpd.model.lpm import LpmKey
from bgpd.runtime.diff import diff
from tests.benchmarks.masq_contenders import LONG, ipset_lines, iptables_chain
from tests.benchmarks.masq_stage import MasqDaemon, Wire, prefixes
from tests.benchmarks.report import Result, percentile
from tests.fabric.netns import Lab
from tests.fabric.process import poll

RUNS, CHANGES = 5, 30
TIMEOUT_S = 30.0
LOOP = "masq_ipv4"
REST_S = 0.3  # what a daemon does after a round is not in the next one


class Ours:
    """The daemon, and what it says of its rounds. Nobody asks it anything meanwhile: that would be in its way."""

    def __init__(self, daemon: MasqDaemon) -> None:
        self._daemon = daemon
        self._seen = len(self._rounds())

    def round_ms(self, entries: Sequence[IPv4Network]) -> float:
        """Milliseconds of the one round that makes the list this one."""
        self._daemon.write(entries)
        poll(lambda: len(self._rounds()) > self._seen, TIMEOUT_S, self._daemon.process.log_tail)
        new = self._rounds()[self._seen :]
        assert len(new) == 1, new
        self._seen += 1
        time.sleep(REST_S)
        return float(new[0]["duration_ms"])

    def _rounds(self) -> list[dict[str, Any]]:
        """What the log has of the rounds that did something."""
        said = (json.loads(line) for line in self._daemon.process.log().splitlines(keepends=True) if line[-1] == "\n")
        return [line for line in said if line.get("subsystem") == LOOP]


@dataclass(frozen=True, slots=True)
class Program:
    """Something that is given the whole list as text: ip-masq-agent's iptables in both flavours, a set."""

    argv: tuple[str, ...]
    empty: str
    text: Callable[[Sequence[IPv4Network]], str]

    def ms(self, text: str) -> float:
        """How long it runs, without the commands that put it into the namespace."""
        began = time.perf_counter()
        subprocess.run(self.argv, input=text, text=True, capture_output=True, check=True)
        return 1e3 * (time.perf_counter() - began)


EMPTY_CHAIN = "*nat\n:IP-MASQ - [0:0]\nCOMMIT\n"
ALTERNATIVES = {
    "iptables-nft": Program(("iptables-nft-restore", "--noflush"), EMPTY_CHAIN, iptables_chain),
    "iptables-legacy": Program(("iptables-legacy-restore", "--noflush"), EMPTY_CHAIN, iptables_chain),
    "ipset": Program(("ipset", "restore"), "flush masq\n", ipset_lines),
}


def results(lab: Lab, place: Path, daemon: MasqDaemon) -> list[Result]:
    """From nothing to 16,000 entries, then one of them replaced by another, again and again; so the list stays."""
    lists = edits(prefixes(LONG + CHANGES), LONG)
    wires = {name: Wire(lab, f"load-{name}") for name in ALTERNATIVES}
    fresh, changed = _ours(Ours(daemon), lists)
    first, again = {"bgpd": asyncio.run(_applied_ms(place / "write", lists[0]))}, {"bgpd": changed}
    for name, program in ALTERNATIVES.items():
        first[name], again[name] = wires[name].node.call(partial(_theirs, program, lists))
    middle = {name: statistics.median(taken) for name, taken in again.items()}
    found = [
        _result("apply_16k_ms", {name: statistics.median(taken) for name, taken in first.items()}, 60.0),
        Result(name="apply_16k_round_ms", value=statistics.median(fresh), unit="ms"),
        _result("change_one_of_16k_ms", middle, 5.0),
        Result(name="change_one_of_16k_p99_ms", value=percentile(changed, 0.99), unit="ms"),
    ]
    ratios = {"iptables": "iptables-nft", "legacy": "iptables-legacy", "ipset": "ipset"}
    goals = {"iptables": 20.0}
    for name, other in ratios.items():
        ratio = middle[other] / middle["bgpd"]
        found.append(_ahead(f"ratio_vs_{name}_change", ratio, goals.get(name)))
    return found


def edits(entries: Sequence[IPv4Network], length: int) -> list[list[IPv4Network]]:
    """Lists of this length, each with one entry of the one before replaced by another."""
    found = [list(entries[:length])]
    for number, entry in enumerate(entries[length:]):
        found.append([*found[-1]])
        found[-1][number * 523 % length] = entry  # here and there
    return found


async def _applied_ms(place: Path, entries: Sequence[IPv4Network]) -> list[float]:
    """Milliseconds of each writing into empty maps, which are pinned at `place`."""
    installed = loader.install(loader.shipped("masq"), place)
    target = MasqList(lambda: own_maps(installed, place, 4))
    want = wanted(frozenset(map(LpmKey.of, entries)), counted=True)
    taken = []
    for _ in range(RUNS):
        await target.apply(diff({}, await target.observe(), lambda key: key.order, prune=True))
        changes = diff(want, await target.observe(), lambda key: key.order, prune=True)
        began = time.perf_counter()
        await target.apply(changes)
        taken.append(1e3 * (time.perf_counter() - began))
        assert await target.observe() == want
    return taken


def _ours(ours: Ours, lists: Sequence[Sequence[IPv4Network]]) -> tuple[list[float], list[float]]:
    """Milliseconds of each round from nothing, and of each change."""
    fresh = []
    for run in range(RUNS):
        if run:
            ours.round_ms([])
        fresh.append(ours.round_ms(lists[0]))
    return fresh, [ours.round_ms(each) for each in lists[1:]]


def _theirs(program: Program, lists: Sequence[Sequence[IPv4Network]]) -> tuple[list[float], list[float]]:
    """As `_ours`; it is called in the namespace of a node."""
    texts = [program.text(each) for each in lists[: RUNS + 1]]
    program.ms(texts[0])  # makes what lasts: the set, the table
    fresh = []
    for _ in range(RUNS):
        program.ms(program.empty)
        fresh.append(program.ms(texts[0]))
    return fresh, [program.ms(each) for each in texts[1:]]


def _result(name: str, medians: Mapping[str, float], goal: float) -> Result:
    others = {other: value for other, value in medians.items() if other != "bgpd"}
    return Result(name=name, value=medians["bgpd"], unit="ms", goal=goal, beside=others)


def _ahead(name: str, ratio: float, goal: float | None) -> Result:
    return Result(name=name, value=ratio, unit="x", goal=goal, more_is_better=True)
