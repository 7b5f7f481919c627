"""Adds up what the tiers of `tests/run` left behind, and prints the last line of a run.

Reads a directory with `TIER.xml` (JUnit, by pytest) and `TIER.outcomes` (lines `passed|failed NAME: DETAIL`,
by `tests/run` itself for what is not a pytest test). Prints each skip with its reason, each failure by name,
and as the last line `N passed, N failed, N skipped`. With `--strict`, as in CI, a skip that `allowed-skips`
does not excuse is a failure. Exit status 1 when anything failed or nothing ran. Standard library only.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from xml.etree import ElementTree

EXCUSES = Path(__file__).resolve().with_name("allowed-skips")


@dataclass(frozen=True, slots=True)
class Result:
    """One test: `verdict` is passed, failed or skipped; `detail` is the reason, empty when there is none."""

    verdict: str
    name: str
    detail: str


def read(directory: Path) -> Iterator[Result]:
    for file in sorted(directory.glob("*.xml")):
        yield from from_junit(file)
    for file in sorted(directory.glob("*.outcomes")):
        yield from from_outcomes(file)


def from_junit(file: Path) -> Iterator[Result]:
    """The results of one pytest run; a file that pytest did not finish is one failure."""
    try:
        cases = list(ElementTree.parse(file).iter("testcase"))  # noqa: S314 - written by our own pytest
    except ElementTree.ParseError as error:
        yield Result("failed", file.stem, f"pytest did not finish its report: {error}")
        return
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if bad is not None:
            yield Result("failed", name, first_line(bad))
        elif skipped is not None:
            yield Result("skipped", name, first_line(skipped))
        else:
            yield Result("passed", name, "")


def first_line(element: ElementTree.Element) -> str:
    return (element.get("message") or element.text or "").strip().partition("\n")[0]


def from_outcomes(file: Path) -> Iterator[Result]:
    for line in file.read_text().splitlines():
        verdict, _, rest = line.partition(" ")
        name, _, detail = rest.partition(": ")
        yield Result(verdict, name, detail)


def excuses(file: Path) -> list[str]:
    """The patterns of the skips that CI accepts. Raises ValueError for a pattern without a reason."""
    patterns = []
    for line in file.read_text().splitlines():
        pattern, _, reason = (part.strip() for part in line.partition("#"))
        if pattern and not reason:
            raise ValueError(f"{file}: `{pattern}` has no reason after #")
        if pattern:
            patterns.append(pattern)
    return patterns


def judged(result: Result, excused: list[str], *, strict: bool) -> Result:
    """The result as this run counts it: where strict, a skip nobody excused has failed."""
    if not strict or result.verdict != "skipped" or any(fnmatchcase(result.name, each) for each in excused):
        return result
    return Result("failed", result.name, f"skipped, which CI does not accept: {result.detail}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--strict", action="store_true", help="skips are failures, but for allowed-skips")
    arguments = parser.parse_args()
    excused = excuses(EXCUSES)
    results = [judged(result, excused, strict=arguments.strict) for result in read(arguments.directory)]
    for verdict in ("skipped", "failed"):
        for result in results:
            if result.verdict == verdict:
                print(f"{verdict.upper():7} {result.name}: {result.detail or 'no reason given'}")
    count = Counter(result.verdict for result in results)
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped", flush=True)
    return 1 if count["failed"] or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
