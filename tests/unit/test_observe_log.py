"""What a log line looks like, as the bytes that arrive at the stream."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from bgpd.model.bgp import Family, Secret
from bgpd.model.brief import LINES
from bgpd.observe import log
from bgpd.runtime.reconcile import Round


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is global to the process: other tests get it back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Full(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")


def configured(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    log.configure(level, "json", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def a_round(**changed: Any) -> Round:
    plain: dict[str, Any] = {
        "subsystem": "routes",
        "added": 0,
        "updated": 0,
        "removed": 0,
        "failed": {},
        "drift": 0,
        "duration_s": 0.01234,
        "latency_s": None,
    }
    return Round(**(plain | changed))


def test_json_has_time_level_logger_event_and_fields_in_this_order() -> None:
    """A JSON line starts with what every line has; the fields of the event follow."""
    stream = configured()
    log.get("bgpd.bgp").info("session up", peer="tor-a", families=[Family.IPV4])
    text = stream.getvalue()
    assert re.match(r'\{"ts": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "level": "info", "logger"', text)
    line = json.loads(text)
    assert list(line) == ["ts", "level", "logger", "event", "peer", "families"]
    assert (line["logger"], line["event"], line["families"]) == ("bgpd.bgp", "session up", ["ipv4-unicast"])


def test_auto_is_json_where_no_terminal_is() -> None:
    """A pipe or a file gets JSON."""
    stream = io.StringIO()
    log.configure("info", "auto", stream)
    log.get("x").info("hello")
    assert lines(stream)[0]["event"] == "hello"


def test_auto_is_columns_on_a_terminal() -> None:
    """A person at a terminal gets words, not JSON."""
    stream = Terminal()
    log.configure("info", "auto", stream)
    log.get("x").warning("hello", peer="tor-a")
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_level_hides_what_is_below() -> None:
    """At level warning, info lines are not written."""
    stream = configured("warning")
    log.get("x").info("no")
    log.get("x").warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_a_logger_made_before_follows_a_later_configure() -> None:
    """A reload of `log.level` reaches loggers that modules made when they were imported."""
    logger = log.get("early")
    configured("error")
    stream = configured("debug")
    logger.debug("seen")
    assert lines(stream)[0]["event"] == "seen"


def test_a_secret_is_not_shown() -> None:
    """A password that ends up in a field is masked, though it is a str to the JSON encoder."""
    stream = configured()
    log.get("x").info("peer", password=Secret("hunter2"), nested={"md5": Secret("hunter2")})
    (line,) = lines(stream)
    assert (line["password"], line["nested"]) == ("***", {"md5": "***"})


def test_odd_values_stay_valid_json() -> None:
    """Not-a-number and foreign objects become text instead of breaking the line."""
    stream = configured()
    log.get("x").info("odd", nan=float("nan"), thing=object, raw=b"\xff", pair=(1, {2}))
    line = lines(stream)[0]
    assert line["nan"] == "nan"
    assert line["pair"] == [1, [2]]


def test_an_exception_is_one_line() -> None:
    """A traceback travels inside its line, so that no reader has to put lines together."""
    stream = configured()
    try:
        raise ValueError("why")
    except ValueError:
        log.get("x").error("failed", exc_info=True)
    (line,) = lines(stream)
    assert line["exception"].endswith("ValueError: why")


def test_libraries_speak_through_the_same_lines() -> None:
    """`logging` of a library comes out like our own, with its logger's name and its arguments filled in."""
    stream = configured()
    logging.getLogger("urllib3.connectionpool").warning("retrying %s", "/api")
    (line,) = lines(stream)
    assert (line["level"], line["logger"], line["event"]) == ("warning", "urllib3.connectionpool", "retrying /api")


def test_libraries_never_get_to_debug() -> None:
    """The Kubernetes client prints response bodies at debug; our debug level does not bring them out."""
    stream = configured("debug")
    logger = logging.getLogger("kubernetes.client.rest")
    logger.setLevel(logging.DEBUG)
    logger.debug("response body: secret")
    logger.setLevel(logging.NOTSET)
    assert stream.getvalue() == ""


def test_a_library_whose_format_is_wrong_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's log call with too few arguments is shown as it stands."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would raise
    stream = configured()
    text = "%s and %s"
    logging.getLogger("lib").warning(text, "one")
    assert lines(stream)[0]["event"] == text


def test_warnings_are_lines_too() -> None:
    """Python's warnings do not go to stderr as plain text."""
    stream = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines(stream)
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in line["event"]


def test_configure_again_does_not_double_lines() -> None:
    """A reload replaces the way a library's line takes, it does not add one."""
    configured()
    stream = configured()
    logging.getLogger("lib").error("once")
    assert len(lines(stream)) == 1


def test_a_full_disk_does_not_stop_the_daemon() -> None:
    """A line that cannot be written is lost and nothing else."""
    log.configure("info", "json", Full())
    log.get("x").info("hello")


def test_each_line_has_its_priority_under_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the stream is the journal's, `<N>` starts each line, those of a traceback too."""
    with tempfile.TemporaryFile("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        log.configure("debug", "json", stream)
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(log.get("x"), level)("hello")
        log.configure("info", "pretty", stream)
        log.get("x").error("two\nlines")
        stream.seek(0)
        written = stream.read().splitlines()
    assert [line[:4] for line in written] == ["<7>{", "<6>{", "<4>{", "<3>{", "<2>{", written[5][:4], "<3>l"]
    assert written[5].startswith("<3>")


def test_no_priority_when_the_journal_is_another_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """JOURNAL_STREAM is inherited: a daemon whose output was redirected elsewhere writes no prefix."""
    with tempfile.TemporaryFile("w+") as stream:
        monkeypatch.setenv("JOURNAL_STREAM", "1:1")
        log.configure("info", "json", stream)
        log.get("x").info("hello")
        stream.seek(0)
        assert stream.read().startswith("{")


def test_a_round_is_one_line_with_what_is_not_zero() -> None:
    """A good round says what it did, in info, and leaves zeros out."""
    stream = configured()
    log.log_round(log.get("bgpd.routes"), a_round(added=2, latency_s=0.02))
    (line,) = lines(stream)
    del line["ts"]
    assert line == {
        "level": "info",
        "logger": "bgpd.routes",
        "event": "reconciled",
        "subsystem": "routes",
        "added": 2,
        "duration_ms": 12.3,
        "latency_ms": 20.0,
    }


def test_a_round_names_its_first_failures() -> None:
    """A round with many failures is a warning that names some and counts the rest."""
    stream = configured()
    log.log_round(log.get("x"), a_round(failed={f"10.0.{i}.0/24": "refused" for i in range(40)}))
    (line,) = lines(stream)
    assert (line["level"], line["failed"], len(line["failures"])) == ("warning", 40, LINES + 1)
    assert line["failures"][0] == "10.0.0.0/24: refused"
    assert line["failures"][-1] == f"and {40 - LINES} more"


@pytest.mark.parametrize("trouble", [{"suspicious": "empty"}, {"error": "unreachable"}, {"failed": {"a": "b"}}])
def test_a_round_with_trouble_is_a_warning(trouble: dict[str, Any]) -> None:
    """Failed objects, a target out of reach and a suspicious source are all worth a warning."""
    stream = configured()
    log.log_round(log.get("x"), a_round(**trouble))
    assert lines(stream)[0]["level"] == "warning"


def test_the_same_failures_again_are_no_news() -> None:
    """An object that waits is a warning once, debug while nothing changes, and news again when it fails anew."""
    stream = configured("debug")
    tell = log.RoundLog(log.get("x"))
    for failed in ({"a": "waits"}, {"a": "waits"}, {"a": "waits"}, {"a": "other"}, {}, {"a": "other"}):
        tell(a_round(failed=failed, added=0 if failed else 1))
    levels = [line["level"] for line in lines(stream)]
    assert levels == ["warning", "debug", "debug", "warning", "info", "warning"]


def test_rich_is_not_loaded() -> None:
    """rich, which structlog would load where it is installed, stays out; a later import of it works."""
    program = (
        "import sys, importlib.util as u; from bgpd.observe import log; log.configure('info', 'pretty');"
        "log.get('x').info('x'); there = 'rich' in sys.modules; print(there, u.find_spec('rich') is not None)"
    )
    plain = "import importlib.util as u; print(False, u.find_spec('rich') is not None)"
    run = [subprocess.run([sys.executable, "-c", it], capture_output=True, text=True) for it in (program, plain)]
    assert run[0].stdout == run[1].stdout, run[0].stderr
