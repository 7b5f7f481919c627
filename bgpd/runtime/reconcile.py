"""The one reconcile loop: brings a target to what a plan wants, and keeps it there.

A subsystem gives a `plan` (values in, desired values out, see `Desired`) and an `Actuator` (reads the target,
applies changes). The loop promises:

- *Level-triggered.* It wakes on a kick, on a retry that is due and on the resync tick, asks for the newest plan
  and compares it with what it has. Nothing is queued, nothing replayed.
- *Observed, not remembered.* The target is read at the start, at every resync, after a failed apply, and when
  the actuator says that it may have changed (`stale`).
- *No pruning before synced*: a plan that is not `complete` removes nothing. One that was `emptied` is suspicious:
  its removals are held for `EMPTY_GRACE_S`, logged and counted.
- *One bad object hurts only itself*: an outcome per object; Retry with backoff, Blocked until its input changes.
- *Revisions*: `wait_until(kick())` returns once a plan made after that kick is in the target, or what it has of
  some objects: who waits for these waits for no other.
- *Drift is counted*: a resync that finds a difference nobody asked for repairs and reports it.

It does not know what the objects are, does no I/O of its own, and never stops because of an actuator's error.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from bgpd.model.outcome import DONE, Blocked, Done, Outcome, Retry
from bgpd.runtime.backoff import Backoff
from bgpd.runtime.diff import Change, Kind, Uniform, diff
from bgpd.runtime.store import Revision

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

EMPTY_GRACE_S = 10.0
RESYNC_S = 60.0
RESYNC_SHARE = 1 / 200  # reading a big target back costs at most this share of the time


@dataclass(frozen=True, slots=True)
class Desired(Generic[K, V]):
    """`complete`: every source has delivered, so what is not wanted may go.

    `emptied`: a source has nothing any more and nobody said that this is meant; what goes, goes late.
    `at` is the monotonic time in seconds of the newest input; it only serves the latency histogram.
    """

    want: Mapping[K, V]
    complete: bool
    emptied: bool = False
    at: float | None = None


class Actuator(Protocol[K, V]):
    """The target. Both methods may raise OSError or TargetError; the loop then backs off and reads again."""

    async def observe(self) -> Mapping[K, V]:
        """Everything of ours that the target holds."""

    async def apply(self, changes: Sequence[Change[K, V]]) -> Sequence[Outcome]:
        """An outcome per change, in their order. Applying a change twice must do no harm."""


class TargetError(Exception):
    """The target as a whole is not usable now; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round that did or found something: what a canonical log line and the metrics are made of."""

    subsystem: str
    added: int
    updated: int
    removed: int
    failed: Mapping[str, str]
    drift: int
    duration_s: float
    latency_s: float | None
    suspicious: str = ""
    error: str = ""


@dataclass(slots=True)
class _Trouble(Generic[V]):
    outcome: Retry | Blocked
    want: V | None
    attempt: int
    due: float


@dataclass(slots=True)
class _Waiter(Generic[K]):
    revision: Revision
    keys: Collection[K] | None
    event: asyncio.Event = field(default_factory=asyncio.Event)


class Reconciler(Generic[K, V]):
    """One subsystem's loop. `order` sorts keys, the most specific first."""

    def __init__(
        self,
        name: str,
        plan: Callable[[], Desired[K, V]],
        actuator: Actuator[K, V],
        order: Callable[[K], Any],
        report: Callable[[Round], None],
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
        resync_s: Callable[[], float] = lambda: RESYNC_S,
    ) -> None:
        self.name = name
        self._plan, self._actuator, self._order, self._report = plan, actuator, order, report
        self._clock, self._rand, self._resync_s = clock, rand, resync_s
        self._backoff = Backoff()
        self._have: Mapping[K, V] | None = None
        self._trouble: dict[K, _Trouble[V]] = {}
        self._target_attempt = 0
        self._target_error = ""
        self._kicked = asyncio.Event()
        self._revision = Revision(0)
        self._completed = Revision(0)
        self._waiters: list[_Waiter[K]] = []
        self._stale = True
        self._wake_at = clock()
        self._read_at, self._read_took_s = clock(), 0.0
        self._suspected = False
        self._latest_cause: float | None = None
        self._empty_since: float | None = None
        self.ever_settled = False
        self.ever_applied = False  # all of a plan, but for single objects that may be in trouble

    # --- what others see ----------------------------------------------------------------------------------

    @property
    def have(self) -> Mapping[K, V]:
        """What the target holds as far as known; empty before the first look."""
        return self._have or {}

    @property
    def trouble(self) -> Mapping[K, Retry | Blocked]:
        """Objects that are not as wanted, and why."""
        return {key: trouble.outcome for key, trouble in self._trouble.items()}

    @property
    def error(self) -> str:
        """Why the target as a whole is not usable; empty when it is."""
        return self._target_error

    def reason(self, keys: Collection[K] | None = None) -> str:
        """Why the target is not as wanted, as far as these objects go; None: all. Empty: it is."""
        found = self._trouble if keys is None else (key for key in keys if key in self._trouble)
        return self._target_error or next((self._trouble[key].outcome.reason for key in found), "")

    @property
    def held_s(self) -> float | None:
        """For how many seconds removals still wait because the plan was emptied; None: none waits."""
        if self._empty_since is None:
            return None
        left_s = self._empty_since + EMPTY_GRACE_S - self._clock()
        return left_s if left_s > 0 else None

    @property
    def settled(self) -> bool:
        """Whether the target is known and nothing is waiting to be done."""
        return self._have is not None and not self._trouble and not self._target_error and not self._stale

    @property
    def kicked(self) -> Revision:
        """Of the newest kick: for whoever waits for an input that has kicked by itself."""
        return self._revision

    def kick(self, *, stale: bool = False) -> Revision:
        """Asks for a round now. `stale`: the target may have changed by itself, read it first."""
        self._revision = Revision(self._revision + 1)
        self._stale = self._stale or stale
        self._kicked.set()
        return self._revision

    def suspect(self) -> None:
        """Somebody else may have changed the target: resyncs now, and counts as drift what is not as it was left."""
        self._suspected = True
        self._kicked.set()

    async def wait_until(self, revision: Revision, deadline_s: float, keys: Collection[K] | None = None) -> bool:
        """Whether a plan at least as new as `revision` was in the target, without trouble, in `deadline_s`.

        With `keys`: whether it had these objects there, after a round that ended since this was called. One that is
        not wanted never is.
        """
        if keys is None and self._completed >= revision:
            return True
        waiter = _Waiter(revision, keys)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(deadline_s):
                await waiter.event.wait()
        except TimeoutError:
            return waiter.event.is_set()  # a round may have ended between the deadline and this line
        finally:
            self._waiters.remove(waiter)
        return True

    async def run(self) -> None:
        """Never returns; cancel it. The target stays as it is."""
        while True:
            delay = max(0.0, self._wake_at - self._clock())
            try:
                async with asyncio.timeout(delay):
                    await self._kicked.wait()
            except TimeoutError:
                pass
            self._kicked.clear()
            await self.round()

    @property
    def _resync_at(self) -> float:
        return self._read_at + max(self._resync_s(), self._read_took_s / RESYNC_SHARE)

    # --- one round ----------------------------------------------------------------------------------------

    async def round(self) -> None:
        """Plans, reads if need be, applies, and decides when to wake next."""
        revision, started = self._revision, self._clock()
        drift = 0
        try:
            if self._stale or self._suspected or self._have is None or started >= self._resync_at:
                drift = await self._read()
            desired = self._plan()
            changes, suspicious = self._due(desired)
            outcomes = await self._actuator.apply(changes) if changes else []
        except (OSError, TargetError) as error:
            self._target_failed(error, started)
            return
        self._target_error, self._target_attempt = "", 0
        self._note_trouble(changes, outcomes)
        if desired.complete and not self._trouble and self._empty_since is None:
            # equal by now, and its very objects: the next diff compares pointers
            self._have = desired.want if isinstance(desired.want, Uniform) else dict(desired.want)
        else:
            self._have = _applied(self.have, changes, outcomes)
        self._finish(revision, started, desired, changes, outcomes, drift, suspicious)

    async def _read(self) -> int:
        """Reads the target; returns how many objects differ from what this loop left there."""
        told, self._stale, self._suspected = self._stale, False, False
        started = self._clock()
        try:
            observed = dict(await self._actuator.observe())
        except (OSError, TargetError):
            self._stale = True
            raise
        before, self._have = self._have, observed
        now = self._clock()
        self._read_at, self._read_took_s = now, now - started
        if told or before is None:
            return 0  # somebody said that it changed: that is news, not drift
        return len(diff(before, observed, self._order, prune=True))

    def _due(self, desired: Desired[K, V]) -> tuple[list[Change[K, V]], str]:
        """The changes to apply now, and a warning if the plan became empty without saying why."""
        assert self._have is not None
        changes = diff(desired.want, self._have, self._order, prune=desired.complete)
        changes, suspicious = self._without_rash_removals(desired, changes)
        wanted = {change.key: change.want for change in changes}
        for key in [key for key, trouble in self._trouble.items() if wanted.get(key, ...) != trouble.want]:
            del self._trouble[key]  # its input changed, or it is as wanted now
        now = self._clock()
        return [change for change in changes if self._is_due(change.key, now)], suspicious

    def _is_due(self, key: K, now: float) -> bool:
        trouble = self._trouble.get(key)
        return trouble is None or (isinstance(trouble.outcome, Retry) and trouble.due <= now)

    def _without_rash_removals(
        self, desired: Desired[K, V], changes: list[Change[K, V]]
    ) -> tuple[list[Change[K, V]], str]:
        """Leaves the removals of an emptied plan out for a while: sources have lied before."""
        removals = sum(change.kind is Kind.REMOVE for change in changes)
        if not desired.emptied or not removals:
            self._empty_since = None
            return changes, ""
        now, warning = self._clock(), ""
        if self._empty_since is None:
            self._empty_since = now
            warning = f"the source became empty: {removals} removals wait {EMPTY_GRACE_S:.0f} s"
        if now - self._empty_since >= EMPTY_GRACE_S:
            return changes, ""
        return [change for change in changes if change.kind is not Kind.REMOVE], warning

    def _note_trouble(self, changes: Sequence[Change[K, V]], outcomes: Sequence[Outcome]) -> None:
        """What was not done, and when it is due again."""
        now = self._clock()
        for change, outcome in zip(changes, outcomes, strict=True):
            if isinstance(outcome, Done):
                self._trouble.pop(change.key, None)
                continue
            before = self._trouble.get(change.key)
            attempt = before.attempt + 1 if before else 1
            delay = self._backoff.delay_s(attempt, self._rand())
            if isinstance(outcome, Retry):
                if outcome.again_s is None:
                    self._stale = True  # a failed apply leaves the target unknown
                else:
                    delay = outcome.again_s
            self._trouble[change.key] = _Trouble(outcome, change.want, attempt, now + delay)

    def _target_failed(self, error: OSError | TargetError, started: float) -> None:
        """The target is out of reach: say so once per reason, back off, read it again afterwards."""
        self._stale = True
        self._target_attempt += 1
        now = self._clock()
        self._wake_at = now + self._backoff.delay_s(self._target_attempt, self._rand())
        text = str(error) or type(error).__name__
        if text != self._target_error:
            self._target_error = text
            self._report(Round(self.name, 0, 0, 0, {}, 0, now - started, None, error=text))

    def _finish(
        self,
        revision: Revision,
        started: float,
        desired: Desired[K, V],
        changes: Sequence[Change[K, V]],
        outcomes: Sequence[Outcome],
        drift: int,
        suspicious: str,
    ) -> None:
        now = self._clock()
        done = [change for change, outcome in zip(changes, outcomes, strict=True) if outcome == DONE]
        failed = {
            str(change.key): outcome.reason
            for change, outcome in zip(changes, outcomes, strict=True)
            if isinstance(outcome, Retry | Blocked)
        }
        self._wake_at = self._next_wake(now)
        if not any(isinstance(trouble.outcome, Retry) for trouble in self._trouble.values()) and not self._stale:
            self._completed, self.ever_settled = revision, True
        self.ever_applied = True
        self._answer(revision)
        if done or failed or drift or suspicious:
            latency = None
            held = self._empty_since is not None  # on purpose, and no measure of how fast we are
            if done and not held and desired.at is not None and desired.at != self._latest_cause:
                latency, self._latest_cause = now - desired.at, desired.at
            kinds = [change.kind.value for change in done]
            self._report(
                Round(
                    self.name,
                    kinds.count("add"),
                    kinds.count("update"),
                    kinds.count("remove"),
                    failed,
                    drift,
                    now - started,
                    latency,
                    suspicious,
                )
            )

    def _answer(self, revision: Revision) -> None:
        """Those who wait for what is in the target after a round that began at `revision`."""
        for waiter in self._waiters:
            if waiter.keys is None:
                is_there = self._completed >= waiter.revision
            else:
                is_there = waiter.revision <= revision and all(map(self._is_there, waiter.keys))
            if is_there:
                waiter.event.set()

    def _is_there(self, key: K) -> bool:
        return key in self.have and key not in self._trouble

    def _next_wake(self, now: float) -> float:
        due = [trouble.due for trouble in self._trouble.values() if isinstance(trouble.outcome, Retry)]
        if self._empty_since is not None and now < self._empty_since + EMPTY_GRACE_S:
            due.append(self._empty_since + EMPTY_GRACE_S)
        if self._stale and not due:
            due.append(now + self._backoff.first_s)
        return min([self._resync_at, *due])


def _applied(
    have: Mapping[K, V], changes: Sequence[Change[K, V]], outcomes: Sequence[Outcome]
) -> Mapping[K, V]:
    """What the target is known to have after that."""
    now = dict(have)
    for change, outcome in zip(changes, outcomes, strict=True):
        if not isinstance(outcome, Done):
            continue
        if change.want is None:
            now.pop(change.key, None)
        else:
            now[change.key] = change.want
    return now
