"""What a notice is as an Event (events.k8s.io/v1), and which notice is due when. Pure.

The API lets nothing of an Event change but its series, so another text is another Event. Its name follows from node,
object and text: whoever says the same again, be it after a restart, finds the Event and counts it on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from bgpd.model.notice import Notice

GROUP = "events.k8s.io"
RESOURCE = "events"
CONTROLLER = "bgpd.io/bgpd"
EACH_S = 60.0  # between two of one object: its text may change with each pod that comes
REPEAT_S = 1800.0  # as client-go: an API server forgets an Event after an hour (--event-ttl) of silence
# limits of the API server (pkg/apis/core/validation/events.go), and of the name of an object (RFC 1123)
NOTE_BYTES = 1024
INSTANCE_LENGTH = 128
NAME_LENGTH = 253
_CUT = " … (`bgpd policy list` has all of it)"
_DIGEST_BYTES = 8


class _Series(msgspec.Struct, frozen=True):
    count: int = 1


class _Event(msgspec.Struct, frozen=True):
    series: _Series | None = None


def path(namespace: str, name: str = "") -> str:
    """The collection, or one of it."""
    collection = f"/apis/{GROUP}/v1/namespaces/{namespace}/{RESOURCE}"
    return f"{collection}/{name}" if name else collection


def name(notice: Notice, node: str) -> str:
    """The same for the same, on any day."""
    told = "\0".join((node, notice.regarding.uid, notice.reason, notice.action, notice.note))
    digest = hashlib.blake2b(told.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{notice.regarding.name[: NAME_LENGTH - len(digest) - 1].rstrip('.-')}.{digest}"


def body(notice: Notice, node: str, at: float) -> dict[str, Any]:
    """The Event as it is created; `at` is Unix seconds."""
    about = notice.regarding
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Event",
        "metadata": {"name": name(notice, node), "namespace": about.namespace},
        "eventTime": _micro_time(at),
        "type": "Warning",
        "reason": notice.reason.value,
        "action": notice.action,
        "note": _shortened(notice.note),
        "reportingController": CONTROLLER,
        "reportingInstance": node[:INSTANCE_LENGTH],
        "regarding": {
            "apiVersion": about.api_version,
            "kind": about.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        },
    }


def counted_on(found: bytes, at: float) -> dict[str, Any]:
    """The merge patch that makes an Event as it was found say so once more. Raises `msgspec.MsgspecError`."""
    series = msgspec.json.decode(found, type=_Event).series or _Series()
    return {"series": {"count": series.count + 1, "lastObservedTime": _micro_time(at)}}


class Due(NamedTuple):
    """The notice of `key` is to be told at this monotonic second."""

    at: float
    key: str


@dataclass(frozen=True, slots=True)
class Told:
    """What was last told under a key, at a monotonic second. None: that failed, and whoever failed last goes last."""

    notice: Notice | None
    at: float


def next_due(wanted: Mapping[str, Notice], told: Mapping[str, Told]) -> Due | None:
    """The first of all; None: there is nothing to tell."""
    return min((Due(_due_at(notice, told.get(key)), key) for key, notice in wanted.items()), default=None)


def worth_keeping(told: Mapping[str, Told], wanted: Mapping[str, Notice], now: float) -> dict[str, Told]:
    """Without those that may be forgotten: what comes back within a minute is no news."""
    return {key: last for key, last in told.items() if key in wanted or now - last.at < EACH_S}


def _due_at(notice: Notice, last: Told | None) -> float:
    if last is None:
        return 0.0
    if last.notice is None:
        return last.at
    return last.at + (REPEAT_S if last.notice == notice else EACH_S)


def _shortened(text: str) -> str:
    whole = text.encode()
    if len(whole) <= NOTE_BYTES:
        return text
    return whole[: NOTE_BYTES - len(_CUT.encode())].decode(errors="ignore") + _CUT


def _micro_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
