"""What a measurement looks like, to people and to machines; and how a route is read from rtnetlink."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.benchmarks import report, tap
from tests.benchmarks.report import Result

HELD = Result(name="a_ms", value=8.091, unit="ms", goal=25, beside={"bird+script": 8.95, "gobgp+script": 23.5})
MISSED = Result(name="b_s", value=2, unit="s", goal=1)
TOLD = Result(name="c", value=0, unit="")


def test_a_miss_is_called_one() -> None:
    """A goal is an upper bound; without one there is no verdict."""
    assert [it.verdict for it in (HELD, MISSED, TOLD)] == ["ok", "MISS", ""]


def test_where_more_is_better_a_goal_is_a_lower_bound() -> None:
    held, missed = (Result(name="e", value=it, unit="x", goal=4, more_is_better=True) for it in (4, 3.9))
    assert [it.verdict for it in (held, missed)] == ["ok", "MISS"]
    assert ">= 4" in report.table([held])


def test_the_ratio_is_to_the_best() -> None:
    """And there is none without somebody to compare with, or with a zero."""
    assert HELD.ratio == pytest.approx(8.091 / 8.95)
    assert Result(name="f", value=6, unit="/s", beside={"x": 8, "y": 3}, more_is_better=True).ratio == 0.75
    assert MISSED.ratio is None
    assert Result(name="d", value=1, unit="", beside={"x": 0}).ratio is None


def test_the_table_fits_a_terminal() -> None:
    """Names of thirty characters and long comparisons included."""
    long = Result(name="n" * 28, value=999, unit="messages", goal=100, beside={"x" * 20: 1.5, "y" * 20: 222})
    assert max(map(len, report.table([HELD, long, TOLD]).splitlines())) <= 100


def test_json_has_the_agreed_form() -> None:
    """Bench, kernel, cores, processor, date and the results with what stood beside them."""
    said = report.as_json("routes", [HELD])
    assert said.keys() == {"bench", "kernel", "cores", "processor", "date", "results"}
    assert said["results"] == [
        {
            "name": "a_ms",
            "value": 8.091,
            "unit": "ms",
            "goal": 25,
            "beside": {"bird+script": 8.95, "gobgp+script": 23.5},
        }
    ]


def test_only_the_marked_part_of_the_readme_is_rewritten(tmp_path: Path) -> None:
    """Twice, so that the marks are still there after the first time."""
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:routes:begin -->\nold\n<!-- bench:routes:end -->\nafter\n")
    for _ in range(2):
        report.rewrite(readme, "routes", [HELD])
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:routes:begin -->\n")
    assert text.endswith("<!-- bench:routes:end -->\nafter\n")
    assert "old" not in text
    assert text.count("`a_ms`") == 1


def test_a_readme_without_marks_is_refused(tmp_path: Path) -> None:
    """Nothing is written then."""
    readme = tmp_path / "README.md"
    readme.write_text("no marks\n")
    with pytest.raises(ValueError, match="not one"):
        report.rewrite(readme, "routes", [HELD])
    assert readme.read_text() == "no marks\n"


@pytest.mark.parametrize(("count", "share", "value"), [(200, 0.5, 100), (200, 0.99, 198), (1, 0.99, 1), (4, 0.5, 2)])
def test_a_percentile_is_a_value_that_was_measured(count: int, share: float, value: int) -> None:
    """The smallest that so many do not exceed."""
    assert report.percentile(list(range(count, 0, -1)), share) == value


def test_a_route_is_read_from_rtnetlink() -> None:
    """Two messages in a datagram: a new route, and one of no destination, which is a default route."""
    with_destination = _message(24, 24, struct.pack("=HH4s", 8, 1, ip_address("188.188.0.0").packed))
    default = _message(24, 0, struct.pack("=HHI", 8, 6, 32))
    assert list(tap.routes(with_destination + default)) == [(24, "188.188.0.0/24")]


def _message(kind: int, length: int, attributes: bytes) -> bytes:
    body = struct.pack("=BBBBBBBBI", 2, length, 0, 0, 254, 12, 0, 1, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
