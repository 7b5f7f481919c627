"""What the README says is not tried on a kernel, beside what a guest's report says was skipped.

Decides which skips nobody has been told of; `__main__` makes failures of them. A row of the README's table names
tests (`FILE::NAME`, without `.py` and parameters), the kernels where they are skipped, and words of the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.readme import README, between
from tests.tally import Result

TABLE = "kernel-skips"


@dataclass(frozen=True, slots=True)
class Row:
    """`kernels` by number (`6.1`), `why` as it stands in the reason of the skip."""

    tests: frozenset[str]
    kernels: frozenset[str]
    why: str

    def tells(self, kernel: str, result: Result) -> bool:
        test = result.name.partition("[")[0].rpartition(".")[2]
        return test in self.tests and kernel.removeprefix("linux-") in self.kernels and self.why in result.detail


def rows(text: str) -> list[Row]:
    """Of the table in this README."""
    return [_row(line) for line in between(text, TABLE).splitlines()[2:]]


def _row(line: str) -> Row:
    tests, kernels, why = (cell.strip() for cell in line.strip("|").split(" | "))
    found = frozenset(re.findall(r"`(\w+::\w+)`", tests)), frozenset(re.findall(r"\d+\.\d+", kernels)), why
    if not all(found):
        raise ValueError(f"a row of {TABLE} without a test, a kernel or a reason: {line}")
    return Row(*found)


def untold(kernel: str, results: Iterable[Result], text: str | None = None) -> Iterator[Result]:
    """The skipped of a guest's results that no row tells; `text` None: of the README as it is."""
    table = rows(README.read_text() if text is None else text)
    for result in results:
        if result.verdict == "skipped" and not any(row.tells(kernel, result) for row in table):
            yield result
