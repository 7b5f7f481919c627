"""How contenders are compared: they take turns, in another order each time, and who is ahead is told from pairs.

So what the machine does meanwhile hits them all, and a ratio is the median over the rounds of ours divided by theirs
of the same round. This does not decide what a turn is.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tests.benchmarks.masq_stage import Wire
from tests.benchmarks.report import Result


@dataclass(frozen=True, slots=True)
class Sample:
    """`rate` in connections or gigabits per second, `cpu_us` of both ends per connection or megabyte.

    `latency_us` is of a connection, `resent` the segments per gigabyte of a stream that were sent again.
    """

    rate: float
    cpu_us: float
    latency_us: float = 0.0
    resent: float = 0.0


Samples: TypeAlias = Mapping[str, Sequence[Sample]]


def in_turns(wires: Mapping[str, Wire], measure: Callable[[str, Wire], Sample], rounds: int) -> Samples:
    """Nobody's turn begins with flows that conntrack knows from one before."""
    taken: dict[str, list[Sample]] = {name: [] for name in wires}
    rand = random.Random(1)
    for _ in range(rounds):
        for name in rand.sample(list(wires), len(wires)):
            taken[name].append(measure(name, wires[name]))
            wires[name].forget_flows()
    return taken


def medians(taken: Samples, of: Callable[[Sample], float]) -> dict[str, float]:
    return {name: statistics.median(map(of, samples)) for name, samples in taken.items()}


def rates(taken: Samples) -> dict[str, float]:
    return medians(taken, lambda it: it.rate)


def costs(taken: Samples) -> dict[str, float]:
    return medians(taken, lambda it: it.cpu_us)


def value(name: str, values: Mapping[str, float], ours: str, others: Iterable[str], unit: str) -> Result:
    """Ours, with the others beside it. More of a rate is better, less of anything else."""
    beside = {other: values[other] for other in others}
    return Result(name=name, value=values[ours], unit=unit, beside=beside, more_is_better=unit.endswith("/s"))


def share(name: str, taken: Samples, ours: str, other: str, goal: float | None = None) -> Result:
    """Our rate divided by the other's."""
    pairs = zip(taken[ours], taken[other], strict=True)
    ratio = statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)
    return Result(name=name, value=ratio, unit="x", goal=goal, more_is_better=True)
