"""What `tests/run kernel` says of a guest, by what the guest left: nothing that went wrong there is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel import skips, suite
from tests.kernel.__main__ import CONSOLE_LINES, report
from tests.kernel.image import KERNELS, Image
from tests.kernel.machine import Guest
from tests.readme import README
from tests.tally import Result

TABLE = """<!-- kernel-skips:begin -->
| what is not tried, and its test | not on | because |
|---|---|---|
| one (`test_a::test_x`), another (`test_a::test_y`) | 6.12, 6.1 | Linux 6.15 does |
| the same where it is refused (`test_a::test_x`) | 6.12 | no pod can |
<!-- kernel-skips:end -->
"""
CONSOLE = [f"line {number}" for number in range(2 * CONSOLE_LINES)]


def said(
    tmp_path: Path,
    status: int | None,
    *,
    name: str = "linux-1.0",
    cases: str = "",
    written: bool = True,
    cut: bool = False,
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
        (place / "report.xml").write_text(f"<testsuites>{cases}</testsuites>")
    report(results, name, guest, place, cut=cut)
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


@pytest.mark.parametrize(
    ("kernel", "test", "why", "told"),
    [
        pytest.param("linux-6.1", "test_x[v4-1.2]", "not here: Linux 6.15 does", True, id="a parameter of it"),
        pytest.param("linux-6.12", "test_y", "not here: Linux 6.15 does", True, id="another of its row"),
        pytest.param("linux-6.12", "test_x", "no pod can", True, id="another reason of it"),
        pytest.param("linux-6.1", "test_x", "no pod can", False, id="another kernel's reason"),
        pytest.param("linux-6.18", "test_x", "Linux 6.15 does", False, id="another kernel"),
        pytest.param("linux-6.12", "test_y", "no pod can", False, id="another test's reason"),
        pytest.param("linux-6.12", "test_x", "not installed: tc", False, id="a reason that nobody has named"),
        pytest.param("linux-6.12", "test_z", "Linux 6.15 does", False, id="a test that nobody has named"),
    ],
)
def test_a_skip_is_told_by_test_kernel_and_reason(kernel: str, test: str, why: str, told: bool) -> None:
    skipped = Result("skipped", f"{kernel}.tests.bpf.test_a::{test}", why)
    passed = Result("passed", f"{kernel}.tests.bpf.test_a::test_z", "")
    assert list(skips.untold(kernel, [passed, skipped], TABLE)) == ([] if told else [skipped])


def test_a_skip_that_the_readme_does_not_tell_fails_by_name(tmp_path: Path) -> None:
    row = skips.rows(README.read_text())[0]
    cases = "".join(
        f'<testcase classname="linux-6.1.tests.bpf.{file}" name="{name}"><skipped message="{row.why}"/></testcase>'
        for file, _, name in (each.partition("::") for each in [*row.tests, "test_maps::test_new"])
    )
    _, (line,) = said(tmp_path, 0, cases=cases, name="linux-6.1")
    assert line.startswith("failed linux-6.1.tests.bpf.test_maps::test_new: skipped, ") and line.endswith(row.why)


def test_the_readme_tells_of_kernels_and_tests_that_there_are() -> None:
    numbers = {kernel.name.removeprefix("linux-") for kernel in KERNELS}
    files = {README.parent / each.partition("::")[0] for each in suite.FILES}
    texts = {file.stem: file.read_text() for file in files}
    for row in skips.rows(README.read_text()):
        assert row.kernels <= numbers
        for file, _, name in (test.partition("::") for test in row.tests):
            assert f"def {name}(" in texts[file]
