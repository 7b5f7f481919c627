"""Decides what a log line looks like, and is the only place that configures logging.

One line per event: JSON for machines, columns for a person at a terminal, and under systemd each line
carries its priority (sd-daemon(3)), so that `journalctl -p warning` works. Whatever libraries say through
`logging` and `warnings` takes the same way. The one line of a reconcile round is made here too. When to log,
and where the lines end up, is decided elsewhere.

Get loggers from `get`, not from structlog: importing it here keeps rich out of the process (see below).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from enum import Enum, StrEnum
from typing import Any, Protocol, TextIO, TypeAlias, cast

from bgpd.model.brief import brief

# structlog loads rich, when it is installed, for tracebacks that we do not use: 4 MB of a node's memory.
# A module that is None in sys.modules counts as not installed (importlib's rule); it is put right afterwards.
_RICH = sys.modules.get("rich")
if _RICH is None:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _RICH is None:
    del sys.modules["rich"]

Logger: TypeAlias = structlog.typing.FilteringBoundLogger
Fields: TypeAlias = MutableMapping[str, Any]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)


class Format(StrEnum):
    """`AUTO`: pretty on a terminal, JSON otherwise."""

    AUTO = "auto"
    PRETTY = "pretty"
    JSON = "json"


class Round(Protocol):
    """A reconcile round as it is told: `runtime.reconcile.Round`, which this layer must not know."""

    @property
    def subsystem(self) -> str: ...
    @property
    def added(self) -> int: ...
    @property
    def updated(self) -> int: ...
    @property
    def removed(self) -> int: ...
    @property
    def failed(self) -> Mapping[str, str]: ...
    @property
    def drift(self) -> int: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def latency_s(self) -> float | None: ...
    @property
    def suspicious(self) -> str: ...
    @property
    def error(self) -> str: ...


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Sends every log line of the process to `stream` (stderr). Calling it again replaces what was set.

    `level` is one of `LEVELS`, `format` a value of `Format`. Libraries are heard from warning up, at level
    debug from info up and never below: the Kubernetes client would print whole objects.
    """
    sink = _Sink(stream or sys.stderr, Format(format))
    number = LEVELS[level]
    structlog.configure(
        processors=[structlog.processors.add_log_level, _with_traceback, sink],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.ReturnLoggerFactory(),
        # A module's logger outlives a change of the level, so nothing may be remembered at its first use.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Foreign)]:
        root.removeHandler(handler)
    threshold = max(number, logging.WARNING if number > logging.DEBUG else logging.INFO)
    root.addHandler(_Foreign(sink, threshold))  # on the handler too: a library may set its own logger's level
    root.setLevel(threshold)
    logging.captureWarnings(True)


def get(name: str) -> Logger:
    """The logger of a part, `bgpd.routes` say. It may be made before `configure` and follows its changes."""
    return cast(Logger, structlog.get_logger(logger_name=name))


def log_round(logger: Logger, round: Round) -> None:
    """The one line of a round: what was done and what was not, only what is not zero.

    It is a warning when an object failed, the target was out of reach, or the source looked wrong.
    """
    trouble = round.failed or round.suspicious or round.error
    say = logger.warning if trouble else logger.info
    say("reconciled" if not round.error else "target not usable", **_round_fields(round))


class RoundLog:
    """Writes `log_round`'s line, at level debug when it would only repeat the failures of the round before.

    An object that waits is tried every quarter of a second: the first time is news, the rest is not.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._told: dict[str, Mapping[str, str]] = {}

    def __call__(self, round: Round) -> None:
        before = self._told.get(round.subsystem, {})
        self._told[round.subsystem] = round.failed
        news = round.added or round.updated or round.removed or round.drift or round.suspicious or round.error
        if round.failed and not news and round.failed == before:
            self._logger.debug("still failing", **_round_fields(round))
        else:
            log_round(self._logger, round)


def _round_fields(round: Round) -> dict[str, Any]:
    fields = {
        "added": round.added,
        "updated": round.updated,
        "removed": round.removed,
        "failed": len(round.failed),
        "failures": brief(round.failed.items(), ": ".join),
        "drift": round.drift,
        "suspicious": round.suspicious,
        "error": round.error,
        "duration_ms": _ms(round.duration_s),
        "latency_ms": None if round.latency_s is None else _ms(round.latency_s),
    }
    return {"subsystem": round.subsystem, **{key: value for key, value in fields.items() if value}}


def _ms(seconds: float) -> float:
    """Milliseconds with one decimal, for people; histograms get seconds."""
    return round(seconds * 1000, 1)


# --- from event to line -----------------------------------------------------------------------------------


class _Sink:
    """Renders an event and writes it, from any thread."""

    def __init__(self, stream: TextIO, format: Format) -> None:
        terminal = stream.isatty()
        pretty = format is Format.PRETTY or (format is Format.AUTO and terminal)
        self._render = _pretty(colors=terminal) if pretty else _json
        self._stream = stream
        self._journal = _is_journal(stream)
        self._lock = threading.Lock()

    def __call__(self, _logger: Any, _method: str, event: Fields) -> str:
        level = event["level"]
        text = self._render(event)
        if self._journal:
            text = "\n".join(f"<{_PRIORITY[level]}>{line}" for line in text.split("\n"))
        # A log on a full disk, or behind a pipe that nobody reads any more, must not end what works.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(text + "\n")
            self._stream.flush()
        return ""


class _Foreign(logging.Handler):
    """What libraries say through `logging`, warnings included."""

    def __init__(self, sink: _Sink, threshold: int) -> None:
        super().__init__(threshold)
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        level = max((name for name, number in LEVELS.items() if number <= record.levelno), key=LEVELS.__getitem__)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)  # a library's format does not fit its arguments: not our end
        event: Fields = {"event": text.strip(), "logger_name": record.name, "level": level}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        self._sink(None, level, _with_traceback(None, level, event))


def _with_traceback(_logger: Any, method: str, event: Fields) -> Fields:
    return structlog.processors.format_exc_info(_logger, method, event)


def _json(event: Fields) -> str:
    head = {
        "ts": _utc(time.time()),
        "level": event.pop("level"),
        "logger": event.pop("logger_name", ""),
        "event": event.pop("event"),
    }
    return json.dumps(_plain({**head, **event}))


def _pretty(*, colors: bool) -> Callable[[Fields], str]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        timestamp_key="ts",
        sort_keys=False,
        pad_event_to=0,
        exception_formatter=structlog.dev.plain_traceback,
    )

    def render(event: Fields) -> str:
        shown = {"ts": time.strftime("%H:%M:%S"), **_plain(event)}
        return renderer(None, event["level"], shown)

    return render


def _utc(now: float) -> str:
    """RFC 3339 with milliseconds: `2026-03-01T12:00:00.123Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


def _plain(value: Any) -> Any:
    """The value as JSON knows it. A subclass of str is asked for its text, or a `Secret` would be shown."""
    if value is None or type(value) in (str, int, bool):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return str(value)


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd connected the stream to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
