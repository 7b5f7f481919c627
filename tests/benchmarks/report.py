"""What a measurement says, and the three forms it is said in: a table to read, JSON, a part of the README.

This decides how results look and when a goal is missed: a goal is an upper bound, and a value above it is a
miss, printed as one; where more is better, the other way round. It measures nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import files

CPU, CONGESTION_CONTROL = Path("/proc/cpuinfo"), Path("/proc/sys/net/ipv4/tcp_congestion_control")
RETURNS = Path("/sys/devices/system/cpu/vulnerabilities/spec_rstack_overflow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One number. `goal` None: only told. `beside` are the alternatives, measured in the same run."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    beside: Mapping[str, float] = field(default_factory=dict)
    more_is_better: bool = False

    @property
    def missed(self) -> bool:
        if self.goal is None:
            return False
        return self.value < self.goal if self.more_is_better else self.value > self.goal

    @property
    def ratio(self) -> float | None:
        """Ours divided by the best of the others; None when there is nothing to divide by."""
        best = (max if self.more_is_better else min)(self.beside.values(), default=0.0)
        return self.value / best if best > 0 else None

    @property
    def verdict(self) -> str:
        return "" if self.goal is None else "MISS" if self.missed else "ok"


HEADINGS = ("", "bgpd", "beside it", "ratio", "goal", "")
_RIGHT = (1, 3, 4)  # columns of numbers
_BESIDE, _BESIDE_WIDTH = 2, 33


def cells(result: Result) -> tuple[str, ...]:
    beside = ", ".join(f"{name} {number(value)}" for name, value in result.beside.items())
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    bound = ">=" if result.more_is_better else "<="
    goal = "" if result.goal is None else f"{bound} {number(result.goal)}"
    return result.name, f"{number(result.value)} {result.unit}", beside, ratio, goal, result.verdict


def table(results: Sequence[Result]) -> str:
    """For a terminal of 100 columns; what does not fit beside goes into a line of its own."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for row in map(cells, results):
        first, *others = textwrap.wrap(row[_BESIDE], _BESIDE_WIDTH) or [""]
        rows.append((*row[:_BESIDE], first, *row[_BESIDE + 1 :]))
        rows += [("", "", other, "", "", "") for other in others]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = []
    for row in rows:
        placed = (
            text.rjust(width) if column in _RIGHT else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(placed).rstrip())
    return "\n".join(lines)


def as_json(bench: str, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "bench": bench,
        "kernel": os.uname().release,
        "cores": os.cpu_count(),
        "processor": processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "results": [
            {
                "name": it.name,
                "value": round(it.value, 4),
                "unit": it.unit,
                "goal": it.goal,
                "beside": {name: round(value, 4) for name, value in it.beside.items()},
            }
            for it in results
        ],
    }


def write_json(file: Path, bench: str, results: Sequence[Result]) -> None:
    file.write_text(json.dumps(as_json(bench, results), indent=2) + "\n")


def markdown(results: Sequence[Result]) -> str:
    head = ["| | bgpd | beside it, in the same run | ratio to the best | goal | |", "|---|---|---|---|---|---|"]
    rows = []
    for name, value, beside, ratio, goal, verdict in map(cells, results):
        rows.append(f"| `{name}` | {value} | {beside} | {ratio} | {goal} | {verdict} |")
    return "\n".join([measured(), "", *head, *rows])


def measured() -> str:
    """When and on what: nanoseconds are a processor's, a stream is its congestion control's."""
    when = datetime.datetime.now(datetime.UTC).date().isoformat()
    kernel, tcp = os.uname().release.partition("-")[0], CONGESTION_CONTROL.read_text().strip()
    return f"Measured {when} on {os.cpu_count()} cores ({processor()}), Linux {kernel}, TCP by {tcp}."


def processor() -> str:
    """As the kernel names it, and whether each of its functions returns by a detour (SRSO, on AMD)."""
    found = re.search(r"(?m)^(?:model name|Model)\s*: (.*)$", CPU.read_text())
    detour = RETURNS.exists() and "Safe RET" in RETURNS.read_text()
    return (found[1] if found else os.uname().machine) + (", Safe RET" if detour else "")


def rewrite(readme: Path, bench: str, results: Sequence[Result]) -> None:
    """Puts the table between the marks of this bench. ValueError: the file has no such marks."""
    begin, end = f"<!-- bench:{bench}:begin -->", f"<!-- bench:{bench}:end -->"
    text, count = re.subn(
        f"(?s){re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}\n{markdown(results)}\n{end}",
        readme.read_text(),
    )
    if count != 1:
        raise ValueError(f"{readme} has {count} places between {begin} and {end}, not one")
    files.rewrite(readme, text)


def number(value: float) -> str:
    """Three digits that matter, and none that do not: 0.05, 1.23, 45.6, 789."""
    if value == int(value):
        return str(int(value))
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]
