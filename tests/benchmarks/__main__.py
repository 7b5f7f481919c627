"""`python -m tests.benchmarks NAME [--json FILE]`, as root: measures, prints a table; `all` rewrites the README.

This decides what there is to measure by name, and where results go. `tests/bench` installs what is needed and
calls it. The exit status says whether it could be measured, not whether the goals were met: that is in the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import failover, kernel, masq, noderoutes, policy, report, routes, services
from tests.benchmarks.report import Result
from tests.fabric.netns import missing
from tests.fabric.screen import Screen

README = Path(__file__).parents[2] / "README.md"


@dataclass(frozen=True, slots=True)
class Bench:
    """`programs` have to be installed."""

    run: Callable[[Screen], list[Result]]
    programs: Sequence[str]


BENCHES: Mapping[str, Bench] = {
    "routes": Bench(routes.run, routes.PROGRAMS),
    "masq": Bench(masq.run, masq.PROGRAMS),
    "noderoutes": Bench(noderoutes.run, noderoutes.PROGRAMS),
    "policy": Bench(policy.run, policy.PROGRAMS),
    "kernel": Bench(kernel.run, kernel.PROGRAMS),
    "failover": Bench(failover.run, failover.PROGRAMS),
    "services": Bench(services.run, services.PROGRAMS),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench", description="Measures, side by side with alternatives.")
    parser.add_argument("name", choices=[*BENCHES, "all"], help="all: every one, and rewrite the README's tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    if options.json is not None and options.name == "all":
        parser.error("--json is for one bench, not for all")
    wanted = [*BENCHES] if options.name == "all" else [options.name]
    reason = missing(*(program for name in wanted for program in BENCHES[name].programs))
    if reason is not None:
        sys.stderr.write(f"tests/bench: {reason}\n")
        return 1
    screen = Screen()
    for name in wanted:
        results = BENCHES[name].run(screen)
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
