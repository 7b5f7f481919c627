"""`python -m tests.benchmarks NAME [--json FILE]`, as root: measures, prints a table; `all` rewrites the README.

This decides what there is to measure by name, and where results go. `tests/bench` installs what is needed and
calls it. The exit status says whether it could be measured, not whether the goals were met: that is in the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.benchmarks import report, routes
from tests.benchmarks.report import Result
from tests.fabric.netns import missing
from tests.fabric.screen import Screen

README = Path(__file__).parents[2] / "README.md"
BENCHES: Mapping[str, Callable[[Screen], list[Result]]] = {"routes": routes.run}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench", description="Measures, side by side with alternatives.")
    parser.add_argument("name", choices=[*BENCHES, "all"], help="all: every one, and rewrite the README's tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    if options.json is not None and options.name == "all":
        parser.error("--json is for one bench, not for all")
    reason = missing(*routes.PROGRAMS)
    if reason is not None:
        sys.stderr.write(f"tests/bench: {reason}\n")
        return 1
    screen = Screen()
    for name in BENCHES if options.name == "all" else [options.name]:
        results = BENCHES[name](screen)
        screen.out.write(f"\n{name}\n{report.measured()}\n{report.table(results)}\n")
        missed = sum(it.missed for it in results)
        with_goal = sum(it.goal is not None for it in results)
        screen.out.write(f"\n{with_goal - missed} of {with_goal} goals met\n")
        if options.json is not None:
            report.write_json(options.json, name, results)
        if options.name == "all":
            report.rewrite(README, name, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
