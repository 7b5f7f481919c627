"""One line of `bgpd doctor`: what was looked at, how it is, and, when it is not right, what to do."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, BAD = "ok", "warn", "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """`state` is ok, warn (works, but look at it) or bad (does not work)."""

    what: str
    state: str
    text: str
