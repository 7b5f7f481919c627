"""What becomes of a notice: the Event's limits and name, how often it is told, and who waits for whom."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bgpd.kube.event import (
    EACH_S,
    INSTANCE_LENGTH,
    NAME_LENGTH,
    NOTE_BYTES,
    REPEAT_S,
    Told,
    body,
    counted_on,
    name,
    next_due,
    worth_keeping,
)
from bgpd.model.notice import Notice, Reason, Reference

BIG = Notice(
    Reference("networking.k8s.io/v1", "NetworkPolicy", "x", "big", "1-2-3"),
    Reason.POLICY_BLOCKED,
    "Enforce",
    "NetworkPolicy x/big does not fit",
)
OTHER = replace(BIG, note="NetworkPolicy x/big does not fit either")
AT = 1_700_000_000.25


def test_the_name_is_that_of_node_object_and_text() -> None:
    """The same again has the same name; a policy made anew, another text and another node have another."""
    again = replace(BIG, regarding=replace(BIG.regarding, uid="4-5-6"))
    names = [name(BIG, "a"), name(OTHER, "a"), name(again, "a"), name(BIG, "b")]
    assert len(set(names)) == len(names)
    assert name(replace(BIG), "a") == names[0]
    assert names[0].startswith("big.")


@pytest.mark.parametrize("policy", ["p" * NAME_LENGTH, "p" * 235 + "." + "p" * 17, "p" * 234 + "-.p" + "p" * 16])
def test_what_is_too_long_is_cut(policy: str) -> None:
    """A name stays one (no label ends in a hyphen or is empty), and a text whole characters, and says it is cut."""
    regarding = replace(BIG.regarding, name=policy)
    event = body(replace(BIG, regarding=regarding, note="é" * NOTE_BYTES), "n" * NAME_LENGTH, AT)
    made = event["metadata"]["name"]
    assert len(made) <= NAME_LENGTH
    assert ".." not in made and "-." not in made
    assert len(event["note"].encode()) in (NOTE_BYTES, NOTE_BYTES - 1)
    assert event["note"].startswith("éé") and event["note"].endswith("é … (`bgpd policy list` has all of it)")
    assert event["reportingInstance"] == "n" * INSTANCE_LENGTH
    assert event["regarding"]["name"] == policy


def test_a_text_that_just_fits_is_whole() -> None:
    assert body(replace(BIG, note="x" * NOTE_BYTES), "a", AT)["note"] == "x" * NOTE_BYTES


def test_times_have_microseconds_and_are_utc() -> None:
    assert body(BIG, "a", AT)["eventTime"] == "2023-11-14T22:13:20.250000Z"


@pytest.mark.parametrize(("series", "count"), [(None, 2), ({"count": 2}, 3), ({"count": 41, "more": "x"}, 42)])
def test_an_event_is_counted_on_from_where_it_stands(series: dict[str, object] | None, count: int) -> None:
    """Its first telling has no series."""
    found = json.dumps({"note": "x", "series": series}).encode()
    patch = {"series": {"count": count, "lastObservedTime": "2023-11-14T22:13:20.250000Z"}}
    assert counted_on(found, AT) == patch


def test_the_same_is_repeated_seldom_and_another_text_waits_a_minute() -> None:
    told = {"x/big": Told(BIG, 100.0)}
    assert next_due({"x/big": BIG}, told) == (100.0 + REPEAT_S, "x/big")
    assert next_due({"x/big": OTHER}, told) == (100.0 + EACH_S, "x/big")
    assert next_due({}, told) is None


def test_the_new_comes_first_and_what_failed_after_everybody_who_has_not_been_told() -> None:
    """One that fails every time keeps nobody from being told."""
    wanted = {"x/failed": BIG, "x/failed-before": BIG, "x/new": BIG, "x/old": BIG}
    told = {"x/failed": Told(None, 100.0), "x/failed-before": Told(None, 99.0), "x/old": Told(BIG, 0.0)}
    order = []
    while (due := next_due(wanted, told)) is not None:
        order.append(due.key)
        del wanted[due.key]
    assert order == ["x/new", "x/failed-before", "x/failed", "x/old"]


def test_what_goes_and_comes_back_within_a_minute_is_no_news() -> None:
    told = {"x/big": Told(BIG, 100.0)}
    kept = worth_keeping(told, {}, 100.0 + EACH_S - 1)
    assert next_due({"x/big": OTHER}, kept) == (100.0 + EACH_S, "x/big")
    assert worth_keeping(told, {}, 100.0 + EACH_S) == {}
    assert worth_keeping(told, {"x/big": BIG}, 100.0 + REPEAT_S) == told
