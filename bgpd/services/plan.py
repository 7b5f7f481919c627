"""Decides which service addresses are announced now: damps those that flap, and brakes when too many go. Pure.

An address goes at once and comes at once, with two exceptions:

- *Damping.* One that was lost sooner than `stableSeconds` after it was announced flaps. It comes back once it has
  been fit for that long without a lapse; so nobody sees it come more often than that.
- *The brake.* Not more than `maxWithdrawnPercent` of the addresses are withdrawn at a time because endpoints are
  there and none is ready; those that come after stay announced, for as long as it lasts. No other node serves these,
  so little is lost by it, and much is won if the news is wrong. An address whose endpoints have left, or are ready on
  other nodes only, is not the brake's: nothing is in doubt then.

A daemon that has just started does not know what was announced before it. It takes every address that is not fit for
one that was, so that a restart amid an outage withdraws no more than the brake allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from bgpd.config.services import Services
from bgpd.model.candidate import Candidate
from bgpd.services.reach import AddressKey, Reach, Standing


class State(StrEnum):
    """What became of an address. The first two are announced."""

    ANNOUNCED = "announced"
    KEPT = "kept"  # by the brake: no endpoint is ready
    WITHDRAWN = "withdrawn"  # it was announced; no endpoint is ready
    SETTLING = "settling"  # fit, but it flaps
    ABSENT = "absent"  # no endpoint where one is needed, or none that was ready yet
    FOREIGN = "foreign"


ANNOUNCED = (State.ANNOUNCED, State.KEPT)
COUNTED = (*ANNOUNCED, State.WITHDRAWN, State.SETTLING)  # what the brake's share is of


@dataclass(frozen=True, slots=True)
class Memory:
    """`since` is when `state` began, `announced_at` when it last came, both in monotonic seconds."""

    state: State
    since: float
    announced_at: float = -math.inf
    flaps: bool = False


@dataclass(frozen=True, slots=True)
class ServicesPlan:
    """`due` is when time alone will change it; None: never."""

    candidates: tuple[Candidate, ...] = ()
    memory: Mapping[AddressKey, Memory] = field(default_factory=dict)
    due: float | None = None


def plan(
    reaches: Iterable[Reach], before: Mapping[AddressKey, Memory] | None, settings: Services, now: float
) -> ServicesPlan:
    """`before` is what the last plan remembered; None: this is the first. `now` is monotonic seconds."""
    found = list(reaches)
    known = before or {}
    memory = {
        reach.key: was  # most of them stay what they were: these are told here, without a call each
        if reach.standing is Standing.FIT and (was := known.get(reach.key)) and was.state is State.ANNOUNCED
        else _next(reach.standing, before, reach.key, settings.stable_seconds, now)
        for reach in found
    }
    others = {key: each for key, each in memory.items() if each.state is not State.ANNOUNCED}
    memory |= _kept(memory, others, before, settings.max_withdrawn_percent, now)
    settling = [each.since for each in others.values() if each.state is State.SETTLING]
    return ServicesPlan(
        tuple(
            _candidate(reach, memory[reach.key].state, settings) if reach.key in others else reach.offer
            for reach in found
        ),
        memory,
        min(settling) + settings.stable_seconds if settling else None,
    )


def _next(
    standing: Standing, before: Mapping[AddressKey, Memory] | None, key: AddressKey, stable_s: float, now: float
) -> Memory:
    """What becomes of one address, the brake aside."""
    was = before.get(key) if before is not None else Memory(State.ANNOUNCED, now)
    if was is None:  # a new Service
        was = Memory(State.ABSENT, now)
    if standing is Standing.FIT:
        return _fit(was, stable_s, now)
    flaps = was.flaps or (was.state in ANNOUNCED and now - was.announced_at < stable_s)
    state = State.FOREIGN if standing is Standing.FOREIGN else State.ABSENT
    if standing is Standing.UNREADY and was.state in COUNTED:
        state = State.WITHDRAWN
    return Memory(state, was.since if was.state is state else now, was.announced_at, flaps)


def _fit(was: Memory, stable_s: float, now: float) -> Memory:
    if was.state in ANNOUNCED:
        return was if was.state is State.ANNOUNCED else replace(was, state=State.ANNOUNCED, since=now)
    since = was.since if was.state is State.SETTLING else now
    if was.flaps and now < since + stable_s:
        return replace(was, state=State.SETTLING, since=since)
    return Memory(State.ANNOUNCED, now, now)


def _kept(
    memory: Mapping[AddressKey, Memory],
    others: Mapping[AddressKey, Memory],
    before: Mapping[AddressKey, Memory] | None,
    percent: int,
    now: float,
) -> dict[AddressKey, Memory]:
    """The brake: of `others`, those in `memory` that are not announced, what would be withdrawn above the share. That
    is what was lost last, and by name where that is the same. An address of several Services counts once."""
    lost = [key for key, each in others.items() if each.state is State.WITHDRAWN]
    if not lost:
        return {}
    announced = {key.prefix for key in memory.keys() - others.keys()}
    going: dict[str, list[tuple[float, AddressKey]]] = {}
    gone = set()
    for key in lost:
        if key.prefix in announced:
            continue  # for another Service
        was = before[key] if before is not None else Memory(State.ANNOUNCED, now)
        if was.state in ANNOUNCED:
            going.setdefault(key.prefix, []).append((was.since if was.state is State.KEPT else now, key))
        else:
            gone.add(key.prefix)
    counted = announced | {key.prefix for key, each in others.items() if each.state in COUNTED}
    allowed = max(len(counted) * percent // 100, 1 if percent else 0)
    kept = {}
    for entries in sorted(going.values(), key=max)[max(allowed - len(gone - going.keys()), 0) :]:
        for since, key in entries:
            flaps = before[key].flaps if before is not None else False  # nobody sees it go
            kept[key] = replace(others[key], state=State.KEPT, since=since, flaps=flaps)
    return kept


def _candidate(reach: Reach, state: State, settings: Services) -> Candidate:
    """Of an address that is not announced as usual."""
    if state is State.KEPT:
        kept = f"kept: too many are without (services.maxWithdrawnPercent: {settings.max_withdrawn_percent})"
        return replace(reach.offer, remark=f"{reach.withheld.withheld}; {kept}")
    if state is State.SETTLING:
        wait = f"it comes back after {settings.stable_seconds} s with endpoints (services.stableSeconds)"
        return replace(reach.offer, withheld=f"{reach.offer.owner} flaps: {wait}")
    return reach.withheld
