"""The reconcile loop's promises, with time as a value and a target that can refuse, lie and vanish."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.runtime.diff import Change, Kind, Uniform, diff
from bgpd.runtime.reconcile import EMPTY_GRACE_S, Desired, Reconciler, Round, TargetError

TABLES = st.dictionaries(st.integers(0, 20), st.integers(0, 3), max_size=12)


class Target:
    """A table that is all there is to the target, plus what it should answer."""

    def __init__(self) -> None:
        self.table: dict[str, int] = {}
        self.answers: dict[str, Outcome] = {}
        self.down = ""
        self.reads = 0
        self.applied: list[Change[str, int]] = []

    async def observe(self) -> Mapping[str, int]:
        self.reads += 1
        if self.down:
            raise TargetError(self.down)
        return dict(self.table)

    async def apply(self, changes: Sequence[Change[str, int]]) -> Sequence[Outcome]:
        if self.down:
            raise TargetError(self.down)
        outcomes = []
        for change in changes:
            outcome = self.answers.get(change.key, DONE)
            if outcome == DONE:
                self.applied.append(change)
                if change.want is None:
                    self.table.pop(change.key, None)
                else:
                    self.table[change.key] = change.want
            outcomes.append(outcome)
        return outcomes


class Bench:
    """A reconciler with its plan, target, clock and reports in the open."""

    def __init__(self, want: Mapping[str, int] | None = None) -> None:
        self.now = 1000.0
        self.target = Target()
        self.desired: Desired[str, int] = Desired(dict(want or {}), complete=True)
        self.reports: list[Round] = []
        self.loop: Reconciler[str, int] = Reconciler(
            "test", lambda: self.desired, self.target, str, self.reports.append, lambda: self.now, lambda: 0.0
        )

    def round(self, after_s: float = 0.0) -> None:
        self.now += after_s
        asyncio.run(self.loop.round())


@given(TABLES, TABLES)
def test_second_diff_is_empty(want: dict[int, int], have: dict[int, int]) -> None:
    """Applying a diff's changes leaves nothing to change, applied once or twice."""
    changes = diff(want, have, int, prune=True)
    result = dict(have)
    for change in [*changes, *changes]:
        if change.want is None:
            result.pop(change.key, None)
        else:
            result[change.key] = change.want
    assert result == want
    assert diff(want, result, int, prune=True) == []


@given(TABLES, TABLES, st.randoms())
def test_diff_does_not_depend_on_insertion_order(want: dict[int, int], have: dict[int, int], rnd: object) -> None:
    """Two tables with the same content give the same changes in the same order."""
    assert diff(want, have, int, prune=True) == diff(
        dict(reversed(want.items())), dict(reversed(have.items())), int, prune=True
    )


KEYS = st.frozensets(st.integers(0, 20), max_size=12)


@given(KEYS, st.integers(0, 1), KEYS, st.integers(0, 1), st.booleans())
def test_keys_of_one_value_differ_as_any_table_does(
    want: frozenset[int], value: int, have: frozenset[int], before: int, prune: bool
) -> None:
    """However the two sides are held, the changes are those of two dicts."""
    uniform, there = Uniform(want, value), Uniform(have, before)
    expected = diff(dict(uniform), dict(there), int, prune=prune)
    assert diff(uniform, there, int, prune=prune) == expected
    assert diff(uniform, dict(there), int, prune=prune) == expected
    assert diff(dict(uniform), there, int, prune=prune) == expected


def test_a_list_goes_on_being_known_where_some_of_it_is_refused() -> None:
    """What was done counts, what was refused does not, and the resync finds no difference to that."""
    bench = Bench()
    bench.desired = Desired(Uniform(frozenset("ab"), 1), complete=True)
    bench.round()
    assert bench.loop.have == bench.target.table == {"a": 1, "b": 1}
    bench.target.answers["c"] = Blocked("no")
    bench.desired = Desired(Uniform(frozenset("bcd"), 1), complete=True)
    bench.round()
    assert bench.loop.have == bench.target.table == {"b": 1, "d": 1}
    bench.desired = Desired(Uniform(frozenset("be"), 1), complete=True)
    bench.round(after_s=3600.0)
    assert bench.loop.have == bench.target.table == {"b": 1, "e": 1}
    assert not any(each.drift for each in bench.reports)


def test_what_left_a_long_list_by_itself_is_found_at_the_resync() -> None:
    """That the loop holds only the keys does not keep it from reading what there is."""
    bench = Bench()
    bench.desired = Desired(Uniform(frozenset("abc"), 1), complete=True)
    bench.round()
    bench.target.table = {"a": 1, "b": 2, "x": 1}
    bench.round(after_s=3600.0)
    assert bench.target.table == {"a": 1, "b": 1, "c": 1}
    assert bench.reports[-1].drift == 3


def test_what_is_as_wanted_is_held_once() -> None:
    """The target's copies go once they equal what is wanted: half the memory, and compared as pointers."""
    bench = Bench({"".join(("ke", "y")): 1, "new": 2})
    bench.target.table = {"".join(("k", "ey")): 1}
    bench.round()
    wanted = {id(key) for key in bench.desired.want}
    assert {id(key) for key in bench.loop.have} == wanted
    assert bench.loop.have is not bench.desired.want


def test_what_is_not_as_wanted_is_not_taken_for_it() -> None:
    """An incomplete plan, a refused change, a removal that waits: what the target has is what was seen there."""
    bench = Bench({"a": 1})
    bench.target.table = {"b": 2}
    bench.desired = Desired({"a": 1}, complete=False)
    bench.round()
    assert bench.loop.have == {"a": 1, "b": 2}
    bench.target.answers["c"] = Blocked("no")
    bench.desired = Desired({"a": 1, "c": 3}, complete=True)
    bench.round()
    assert bench.loop.have == {"a": 1}
    bench.desired = Desired({}, complete=True, emptied=True)
    bench.round()
    assert bench.loop.have == {"a": 1}


def test_additions_come_first_and_removals_in_reverse() -> None:
    """Make before break: in order while adding, against it while removing."""
    changes = diff({"b": 1, "a": 1}, {"y": 1, "z": 1}, str, prune=True)
    assert [(change.kind, change.key) for change in changes] == [
        (Kind.ADD, "a"),
        (Kind.ADD, "b"),
        (Kind.REMOVE, "z"),
        (Kind.REMOVE, "y"),
    ]


def test_nothing_is_removed_before_the_source_is_complete() -> None:
    """An incomplete plan adds but does not prune; the first complete one does."""
    bench = Bench()
    bench.target.table = {"old": 1}
    bench.desired = Desired({"new": 1}, complete=False)
    bench.round()
    assert bench.target.table == {"old": 1, "new": 1}
    bench.desired = Desired({"new": 1}, complete=True)
    bench.round()
    assert bench.target.table == {"new": 1}


def test_an_emptied_plan_removes_late_and_says_so_once() -> None:
    """A source that has nothing any more gets a grace period, a warning, and then its way."""
    bench = Bench()
    bench.target.table = {"a": 1}
    bench.desired = Desired({}, complete=True, emptied=True)
    bench.round()
    bench.round(after_s=EMPTY_GRACE_S / 2)
    assert bench.target.table == {"a": 1}
    assert [report.suspicious != "" for report in bench.reports] == [True]
    bench.round(after_s=EMPTY_GRACE_S / 2)
    assert bench.target.table == {}


def test_how_long_removals_are_held_can_be_asked() -> None:
    """Counted down while they wait, None before and after; the time they waited is not told as a latency."""
    bench = Bench({"a": 1})
    bench.round()
    assert bench.loop.held_s is None
    bench.desired = Desired({}, complete=True, emptied=True, at=bench.now)
    bench.round()
    assert bench.loop.held_s == EMPTY_GRACE_S
    bench.round(after_s=EMPTY_GRACE_S / 4)
    assert bench.loop.held_s == EMPTY_GRACE_S * 3 / 4
    bench.round(after_s=EMPTY_GRACE_S)
    assert bench.loop.held_s is None
    assert (bench.reports[-1].removed, bench.reports[-1].latency_s) == (1, None)


def test_an_emptied_plan_that_recovers_removes_nothing() -> None:
    """If the objects are back within the grace period, the target never saw them go."""
    bench = Bench()
    bench.target.table = {"a": 1}
    bench.desired = Desired({}, complete=True, emptied=True)
    bench.round()
    bench.desired = Desired({"a": 1}, complete=True)
    bench.round(after_s=EMPTY_GRACE_S * 2)
    assert bench.target.applied == []


def test_a_failing_object_hurts_only_itself_and_backs_off() -> None:
    """The other object is applied; the failing one is retried when due, not before, and later each time."""
    bench = Bench({"bad": 1, "good": 1})
    bench.target.answers = {"bad": Retry("no")}
    bench.round()
    assert bench.target.table == {"good": 1}
    assert bench.loop.trouble == {"bad": Retry("no")}
    failures = len(bench.reports)
    bench.round(after_s=0.1)
    assert len(bench.reports) == failures
    bench.round(after_s=0.1)
    assert bench.reports[-1].failed == {"bad": "no"}
    bench.target.answers = {}
    bench.round(after_s=0.39)
    assert "bad" not in bench.target.table
    bench.round(after_s=0.02)
    assert bench.target.table == {"good": 1, "bad": 1}
    assert bench.loop.settled


def test_a_blocked_object_waits_for_its_input_to_change() -> None:
    """Time does not unblock; another wanted value does."""
    bench = Bench({"big": 1})
    bench.target.answers = {"big": Blocked("too big")}
    bench.round()
    bench.target.answers = {}
    bench.round(after_s=3600)
    assert bench.target.table == {}
    bench.desired = Desired({"big": 2}, complete=True)
    bench.round()
    assert bench.target.table == {"big": 2}


def test_drift_is_repaired_and_counted() -> None:
    """A change behind our back is found at the resync, not before, and put right."""
    bench = Bench({"a": 1, "b": 1})
    bench.round()
    bench.target.table = {"a": 2}
    bench.round(after_s=1)
    assert bench.target.table == {"a": 2}
    bench.round(after_s=60)
    assert bench.target.table == {"a": 1, "b": 1}
    assert bench.reports[-1].drift == 2


def test_an_announced_change_is_not_drift() -> None:
    """When the target said that it changed, the difference is repaired but not held against anybody."""
    bench = Bench({"a": 1})
    bench.round()
    bench.target.table = {}
    bench.loop.kick(stale=True)
    bench.round()
    assert bench.target.table == {"a": 1}
    assert bench.reports[-1].drift == 0


def test_a_target_out_of_reach_is_reported_once_and_read_again() -> None:
    """One report per reason; afterwards the target is observed anew, because nobody knows what it holds."""
    bench = Bench({"a": 1})
    bench.round()
    bench.target.down = "gone"
    bench.desired = Desired({"a": 2}, complete=True)
    bench.round()
    bench.round(after_s=1)
    assert [report.error for report in bench.reports if report.error] == ["gone"]
    assert bench.loop.error == "gone"
    bench.target.down, bench.target.table = "", {}
    bench.round(after_s=1)
    assert bench.target.table == {"a": 2}
    assert bench.loop.error == ""


def test_latency_is_measured_once_per_cause() -> None:
    """The time from a cause to its effect is reported with the first round that applied it."""
    bench = Bench()
    bench.round()
    bench.desired = Desired({"a": 1}, complete=True, at=bench.now - 0.5)
    bench.round()
    bench.target.table = {}
    bench.round(after_s=120)
    assert [report.latency_s for report in bench.reports] == [0.5, None]


def test_wait_until_returns_when_the_plan_after_the_kick_is_applied() -> None:
    """It waits for trouble to end, and gives up at its deadline."""

    async def scenario() -> tuple[bool, bool]:
        bench = Bench({"a": 1})
        bench.target.answers = {"a": Retry("not yet")}
        revision = bench.loop.kick()
        waiting = asyncio.ensure_future(bench.loop.wait_until(revision, 5.0))
        await asyncio.sleep(0)
        await bench.loop.round()
        early = waiting.done()
        bench.target.answers = {}
        bench.now += 1
        await bench.loop.round()
        return early, await waiting

    assert asyncio.run(scenario()) == (False, True)


def test_who_waits_for_an_object_waits_for_no_other() -> None:
    """Nor is told that something is there which nobody wants, or which has its old value."""

    async def scenario() -> dict[str, bool]:
        bench = Bench({"done": 1, "refused": 2, "blocked": 3})
        bench.target.table = {"refused": 1}
        bench.target.answers = {"refused": Retry("not yet"), "blocked": Blocked("never")}
        revision = bench.loop.kick()
        keys = [*bench.desired.want, "unwanted"]
        waiting = {key: asyncio.ensure_future(bench.loop.wait_until(revision, 5.0, [key])) for key in keys}
        every = asyncio.ensure_future(bench.loop.wait_until(revision, 5.0))
        await asyncio.sleep(0)
        await bench.loop.round()
        await asyncio.sleep(0)
        assert (bench.loop.ever_applied, bench.loop.ever_settled) == (True, False)
        return {key: task.done() for key, task in {**waiting, "every": every}.items()}

    there = asyncio.run(scenario())
    assert there == {"done": True, "refused": False, "blocked": False, "unwanted": False, "every": False}


def test_a_target_that_fails_has_none_of_the_objects() -> None:
    async def scenario() -> bool:
        bench = Bench({"a": 1})
        bench.target.down = "no kernel"
        waiting = asyncio.ensure_future(bench.loop.wait_until(bench.loop.kick(), 0.01, ["a"]))
        await asyncio.sleep(0)
        await bench.loop.round()
        return bench.loop.ever_applied or await waiting

    assert asyncio.run(scenario()) is False


def test_wait_until_gives_up_at_its_deadline() -> None:
    """No round, no confirmation."""

    async def scenario() -> bool:
        bench = Bench()
        return await bench.loop.wait_until(bench.loop.kick(), 0.01)

    assert asyncio.run(scenario()) is False


def test_a_bug_in_the_actuator_ends_the_loop() -> None:
    """Only what belongs to the outside world is retried; anything else is ours and must surface."""
    bench = Bench({"a": 1})

    async def broken(changes: Sequence[Change[str, int]]) -> Sequence[Outcome]:
        raise AssertionError("bug")

    bench.target.apply = broken  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        bench.round()


def test_a_suspicion_while_the_target_is_read_is_not_lost() -> None:
    """Somebody empties the target just after it was read: the next round reads again, repairs, and counts it."""
    bench = Bench({"a": 1})
    bench.round()

    class Emptied(Target):
        async def observe(self) -> Mapping[str, int]:
            seen = await super().observe()
            if self.reads == 1:
                self.table.clear()
                bench.loop.suspect()
            return seen

    target = Emptied()
    target.table = {"a": 1}
    bench.loop = Reconciler(
        "test", lambda: bench.desired, target, str, bench.reports.append, lambda: bench.now, lambda: 0.0
    )
    bench.round()
    bench.round()
    assert (target.table, target.reads, bench.reports[-1].drift) == ({"a": 1}, 2, 1)
