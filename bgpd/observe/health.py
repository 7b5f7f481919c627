"""Decides whether the node's routes can be relied on: ready, ready but degraded, or not ready. Pure.

Ready means that this daemon has seen everything once: each source was complete, the speaker is there, each
reconciler had nothing left to do. From then on a single lost session, a new configuration with faults or a
drain degrades the node and does not make it unready, because unready tells whoever waits for routes to wait
on. Only when every session is down are there no routes to speak of. What follows from it is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Condition:
    """What the daemon knows about itself. Names are those of the configuration.

    `unsynced`: sources that have not delivered a complete list yet. `unsettled`: reconcilers that have never
    been done. `speaker` and `config`: why it cannot be reached, why the newest file is not in use; empty when
    all is well. `sessions`: each configured peer and why its session is not Established, empty when it is.
    """

    unsynced: Collection[str] = ()
    unsettled: Collection[str] = ()
    speaker: str = ""
    config: str = ""
    draining: bool = False
    sessions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readiness:
    """`reasons` keep the node from being ready; `degraded` are told and change nothing."""

    reasons: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.reasons

    @property
    def text(self) -> str:
        """A line per reason, `ok` first when ready."""
        lines = ["ok"] if self.ready else [f"not ready: {reason}" for reason in self.reasons]
        return "\n".join([*lines, *(f"degraded: {reason}" for reason in self.degraded)]) + "\n"


def readiness(condition: Condition) -> Readiness:
    """The verdict, its reasons in an order that does not change from one call to the next."""
    reasons = [f"source: {name}: has not delivered its first complete list" for name in sorted(condition.unsynced)]
    if condition.speaker:
        reasons.append(f"bgp: speaker: {condition.speaker}")
    reasons += [f"{name}: has not finished its first round" for name in sorted(condition.unsettled)]
    down = [f"bgp: {peer}: {why}" for peer, why in sorted(condition.sessions.items()) if why]
    all_down = bool(down) and len(down) == len(condition.sessions)
    degraded = [] if all_down else down
    if condition.config:
        degraded.append(f"config: {condition.config}; the last good one stays in use")
    if condition.draining:
        degraded.append("bgp: drained; `bgpd undrain` announces again")
    return Readiness(tuple(reasons + (down if all_down else [])), tuple(degraded))
