"""Decides which ups and downs of sessions become log lines, so that a peer that flaps does not fill the journal.

A peer's transitions are told one by one until it has gone down `FLAPS` times within `PERIOD_S`. That it flaps is
said once, how often once in `PERIOD_S`, and at the end how it came out. What is left out is there at level debug.
Pure: `view.transitions` and the time in, lines out. `daemon` writes them, and asks now and then with no transition,
because time passes too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FLAPS = 3
PERIOD_S = 60.0  # more than `steady` ever leaves a peer alone: that it is quiet must mean something

Transition = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A log line; `level` is one of `log.LEVELS`."""

    level: str
    event: str
    fields: dict[str, Any]


class SessionLog:
    """What was told, by the peers' addresses. A peer that has been quiet for `PERIOD_S` is forgotten."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}

    def lines(self, transitions: Sequence[Transition], now: float) -> list[Line]:
        """What there is to say at `now`, in monotonic seconds, when this has just happened."""
        said: list[Line] = []
        for transition in transitions:
            peer = self._peers.setdefault(transition["address"], _Peer())
            said += peer.hear(transition, now)
        for address, peer in list(self._peers.items()):
            said += peer.pass_time(now)
            if now - peer.at >= PERIOD_S:
                del self._peers[address]
        return said


@dataclass(slots=True)
class _Peer:
    newest: Transition = field(default_factory=dict)
    at: float = 0.0  # of `newest`
    reason: str = ""  # why it went down last
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=FLAPS))  # when it went down
    flaps_since: float | None = None
    downs: int = 0  # since it flaps
    told_at: float = 0.0
    told: int = 0  # of `downs`

    def hear(self, transition: Transition, now: float) -> Iterator[Line]:
        self.newest, self.at = transition, now
        down = transition["state"] == "down"
        level = "debug" if self.flaps_since is not None else "warning" if down else "info"
        yield Line(level, "session", dict(transition))
        if not down:
            return
        self.reason = transition.get("reason", "")
        self.downs += 1
        self.recent.append(now)
        if self.flaps_since is None and len(self.recent) == FLAPS and now - self.recent[0] < PERIOD_S:
            self.flaps_since, self.downs = self.recent[0], FLAPS
            yield self._count("warning", "session flaps", self.downs, now - self.flaps_since)
            self.told, self.told_at = self.downs, now

    def pass_time(self, now: float) -> Iterator[Line]:
        """The line that is due because nothing has happened for a while, or because nothing was said."""
        if self.flaps_since is None:
            return
        if now - self.at >= PERIOD_S:
            level = "info" if self.newest["state"] == "up" else "warning"
            yield self._count(level, "session no longer flaps", self.downs, self.at - self.flaps_since)
        elif self.downs > self.told and now - self.told_at >= PERIOD_S:
            yield self._count("warning", "session still flaps", self.downs - self.told, now - self.told_at)
            self.told, self.told_at = self.downs, now

    def _count(self, level: str, event: str, downs: int, in_s: float) -> Line:
        whose = {key: self.newest[key] for key in ("peer", "address", "state") if key in self.newest}
        reason = {"reason": self.reason} if self.reason else {}
        return Line(level, event, whose | {"downs": downs, "in_s": round(in_s, 1)} | reason)
