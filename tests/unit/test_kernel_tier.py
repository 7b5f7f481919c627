"""What `tests/run kernel` says of a guest, by what the guest left: nothing that went wrong there is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.__main__ import CONSOLE_LINES, report
from tests.kernel.image import Image
from tests.kernel.machine import Guest

CONSOLE = [f"line {number}" for number in range(2 * CONSOLE_LINES)]


def said(
    tmp_path: Path, status: int | None, *, written: bool = True, cut: bool = False
) -> tuple[list[str], list[str]]:
    """The reports that tests/tally.py finds, and its lines of outcomes."""
    place, results = tmp_path / "guest", tmp_path / "results"
    place.mkdir()
    results.mkdir()
    guest = Guest(Image("linux-image", tmp_path), ["true"], place, 1.0)
    (place / "console").write_text("\n".join([*CONSOLE, "=== 1 passed ==="]))
    if status is not None:
        (place / "status").write_text(f"{status}\n")
    if written:
        (place / "report.xml").write_text("<testsuites/>")
    report(results, "linux-1.0", guest, place, cut=cut)
    outcomes = results / "kernel.outcomes"
    lines = outcomes.read_text().splitlines() if outcomes.exists() else []
    return [path.name for path in results.glob("*.xml")], lines


def test_a_guest_that_passed_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(tmp_path, 0) == (["linux-1.0.xml"], [])
    assert capsys.readouterr().out == "linux-1.0: === 1 passed ===\n"


def test_tests_that_failed_are_in_the_report_and_the_console_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(tmp_path, 1) == (["linux-1.0.xml"], [])
    assert CONSOLE[-1] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "cut", "reason"),
    [
        pytest.param(124, False, "a test hung", id="interrupted"),
        pytest.param(137, False, "a test hung", id="killed"),
        pytest.param(None, True, "the guest hung", id="cut"),
        pytest.param(None, False, "the guest went down", id="panic"),
        pytest.param(4, False, "pytest ended with status 4", id="usage"),
    ],
)
def test_what_is_no_result_of_a_test_is_a_failure_and_the_console_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int | None, cut: bool, reason: str
) -> None:
    """Whatever had been written by then."""
    reports, (line,) = said(tmp_path, status, cut=cut)
    assert line.startswith(f"failed linux-1.0: {reason}") and reports == ["linux-1.0.xml"]
    assert CONSOLE[-1] in capsys.readouterr().out


def test_no_report_is_a_failure(tmp_path: Path) -> None:
    reports, (line,) = said(tmp_path, 0, written=False)
    assert (reports, line) == ([], "failed linux-1.0: pytest ended with status 0, its console is above")
