"""What became of one object that a reconciler tried to bring about (after MetalLB's sync states)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Done:
    """The target has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The outside world refused or was slow. `reason` is shown to the operator.

    `again_s` None: after the usual backoff. A number: after so many seconds, because something is being waited
    for rather than failing.
    """

    reason: str
    again_s: float | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """Trying again cannot help until the wanted value changes; shown in `bgpd status` until it does."""

    reason: str


Outcome: TypeAlias = Done | Retry | Blocked
DONE = Done()
