"""What the results of a monitor mean for the pod it looks at: up or down, since when, and why. Pure.

As BIG-IP has it: a pod is up after a success (`rise` of them in a row), and stays up until there has been none for
the monitor's timeout; failures alone do not take it out sooner, unless `fall` says after how many in a row they do.
Times are monotonic seconds, given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bgpd.model.virtualserver import Monitor


@dataclass(frozen=True, slots=True)
class Rule:
    """`fall` None: only the timeout takes a pod out."""

    rise: int = 1
    fall: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """`up` None: there was no result yet, or no failure and fewer successes than it takes. `since` is when that
    began, `good_at` when the last success was.

    `streak` counts equal results. `reason` is what the last failure said, `note` what is strange about the last
    success.
    """

    up: bool | None
    since: float
    good_at: float
    streak: int = 0
    failing: bool = False
    reason: str = ""
    note: str = ""


def started(now: float, *, was_up: bool) -> Check:
    """Of a pod that is new, or `was_up` when the daemon ended: it is so until the timeout says otherwise."""
    return Check(True if was_up else None, now, now)


def judged(check: Check, monitor: Monitor, rule: Rule, now: float, failure: str, note: str = "") -> Check:
    """After one more result; an empty `failure` is a success."""
    failing = bool(failure)
    streak = check.streak + 1 if failing == check.failing else 1
    if not failing:
        check = replace(check, streak=streak, failing=False, good_at=now, note=note)
        return _turned(check, now, up=True) if streak >= rule.rise else check  # it has not failed for that
    check = replace(check, streak=streak, failing=True, reason=failure)
    if not check.up or (rule.fall is not None and streak >= rule.fall):
        return _turned(check, now, up=False)
    return expired(check, monitor, now)


def expired(check: Check, monitor: Monitor, now: float) -> Check:
    """After time has passed."""
    due = expires_at(check, monitor)
    if due is None or now < due:
        return check
    last = check.reason if check.failing else "no answer"
    reason = f"no success for {grace_s(monitor)} s: {last}"
    return _turned(replace(check, failing=True, reason=reason), now, up=False)


def expires_at(check: Check, monitor: Monitor) -> float | None:
    """When a pod that is up will be down unless there is a success before. None: it is not up."""
    return check.good_at + grace_s(monitor) if check.up else None


def grace_s(monitor: Monitor) -> int:
    """How old the last success may be. A timeout shorter than the interval counts from the next try on."""
    waits = monitor.interval_s if monitor.timeout_s <= monitor.interval_s else 0
    return waits + monitor.timeout_s


def delayed(check: Check, by_s: float) -> Check:
    """After a try that had to wait for its turn: that is not the pod's fault."""
    return replace(check, good_at=check.good_at + by_s)


def _turned(check: Check, now: float, *, up: bool) -> Check:
    return check if check.up is up else replace(check, up=up, since=now)
