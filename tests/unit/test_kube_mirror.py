"""What lists and watch events mean for the objects: bytes in, mappings out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.kube.mirror import GarbledError, GoneError, Listing, Mirror
from bgpd.kube.parse import NODE
from bgpd.kube.watch import LINE_LIMIT, Lines
from bgpd.model.node import Node


def node(name: str, cidr: Any = "10.1.2.0/24", version: str = "7") -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}, "spec": {"podCIDR": cidr}}


def event(kind: str, content: Any) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode()


def listed(*items: Any, version: str = "5") -> Mirror[Node]:
    mirror = Mirror(NODE)
    relist(mirror, *items, version=version)
    return mirror


def relist(mirror: Mirror[Node], *items: Any, version: str = "9") -> None:
    listing = Listing(NODE)
    assert listing.add(json.dumps({"metadata": {"resourceVersion": version}, "items": items}).encode()) is None
    mirror.adopt(listing)


def test_events_in_order() -> None:
    """Added, modified, deleted; the version to resume at is the newest one."""
    mirror = listed(node("a"))
    mirror.apply(event("ADDED", node("b", version="6")))
    mirror.apply(event("MODIFIED", node("a", "10.9.9.0/24", version="8")))
    assert str(mirror.objects["a"].pod_cidrs[0]) == "10.9.9.0/24"
    assert set(mirror.objects) == {"a", "b"}
    mirror.apply(event("DELETED", node("b", version="9")))
    assert (set(mirror.objects), mirror.version, mirror.complete) == ({"a"}, "9", True)


def test_bookmark_moves_only_the_version() -> None:
    """A bookmark is where to resume and nothing else."""
    mirror = listed(node("a"))
    mirror.apply(event("BOOKMARK", {"kind": "Node", "metadata": {"resourceVersion": "90"}}))
    assert (set(mirror.objects), mirror.version) == ({"a"}, "90")


def test_type_of_a_later_kubernetes_is_passed_over() -> None:
    """An event type that does not exist yet moves the version and harms nothing."""
    mirror = listed(node("a"))
    mirror.apply(event("REPLAYED", node("b", version="90")))
    assert (set(mirror.objects), mirror.version) == ({"a"}, "90")


def test_pages_make_one_list() -> None:
    """The objects of all pages count, and the version of the last one."""
    listing = Listing(NODE)
    first = {"metadata": {"resourceVersion": "5", "continue": "token"}, "items": [node("a")]}
    last = {"metadata": {"resourceVersion": "6", "continue": ""}, "items": [node("b")]}
    assert listing.add(json.dumps(first).encode()) == "token"
    assert listing.add(json.dumps(last).encode()) is None
    assert (set(listing.objects), listing.version) == ({"a", "b"}, "6")


def test_empty_list_may_be_null() -> None:
    """Go writes a nil slice as null."""
    assert Listing(NODE).add(b'{"metadata": {"resourceVersion": "5"}, "items": null}') is None


def test_malformed_object_keeps_its_last_good_form() -> None:
    """It is a fault while it lasts, in events and in lists, and the mirror stays complete."""
    mirror = listed(node("a"), node("b"))
    mirror.apply(event("MODIFIED", node("a", 5, version="8")))
    assert str(mirror.objects["a"].pod_cidrs[0]) == "10.1.2.0/24"
    (fault,) = mirror.faults
    assert str(fault) == "Node a: spec.podCIDR: expected a string or nothing, got a number"
    relist(mirror, node("a", 5))
    assert set(mirror.objects) == {"a"}
    assert (len(mirror.faults), mirror.complete) == (1, True)
    mirror.apply(event("MODIFIED", node("a", "10.9.9.0/24")))
    assert mirror.faults == ()
    assert str(mirror.objects["a"].pod_cidrs[0]) == "10.9.9.0/24"


def test_malformed_object_that_was_never_good_is_not_an_absence() -> None:
    """Nobody may take it for removed: the mirror is not complete until it is readable or gone."""
    mirror = listed(node("a", 5), node("b"))
    assert (set(mirror.objects), mirror.complete) == ({"b"}, False)
    mirror.apply(event("DELETED", node("a", 5)))
    assert (mirror.faults, mirror.complete) == ((), True)


@pytest.mark.parametrize(("code", "message"), [(410, "too old resource version: 1 (5)"), (500, "no idea")])
def test_error_event_calls_for_a_list(code: int, message: str) -> None:
    """An error inside a watch ends it, and what was known stays."""
    mirror = listed(node("a"))
    with pytest.raises(GoneError, match=f"{code}"):
        mirror.apply(event("ERROR", {"kind": "Status", "code": code, "message": message}))
    assert (set(mirror.objects), mirror.version) == ({"a"}, "5")


GARBLED = [
    b'{"type": "ADDED", "object": {"metadata"',
    b"<html>",
    b"[]",
    b'{"type": "ADDED", "object": 5}',
    b'{"type": "ADDED", "object": {"metadata": {}}}',
    b'{"type": "DELETED", "object": {}}',
    b'{"type": "BOOKMARK", "object": {}}',
    b'{"type": "\xff", "object": {}}',
]


@pytest.mark.parametrize("line", GARBLED)
def test_garbled_event(line: bytes) -> None:
    """A line that is no event is refused with an excerpt and changes nothing."""
    mirror = listed(node("a"))
    with pytest.raises(GarbledError):
        mirror.apply(line)
    assert (set(mirror.objects), mirror.version) == ({"a"}, "5")


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"items": []}', b'{"metadata": {}, "items": 5}', b"\xff"])
def test_garbled_list(data: bytes) -> None:
    """A body that is no list is refused."""
    with pytest.raises(GarbledError):
        Listing(NODE).add(data)


@given(st.lists(st.binary(min_size=1).map(lambda line: line.replace(b"\n", b"x"))), st.data())
def test_lines_do_not_depend_on_the_pieces(lines: list[bytes], data: st.DataObject) -> None:
    """However the network cuts the stream, the lines are the same, and none is left over."""
    stream = b"".join(line + b"\n" for line in lines)
    cutter, found, position = Lines(), [], 0
    while position < len(stream):
        size = data.draw(st.integers(1, len(stream) - position))
        found += cutter.take(stream[position : position + size])
        position += size
    assert found == lines
    assert not cutter.rest


def test_endless_line_is_refused() -> None:
    """A line beyond any object's size is garbage, whatever comes after it."""
    cutter = Lines()
    with pytest.raises(GarbledError):
        for _ in range(LINE_LIMIT // 65536 + 1):
            cutter.take(b"x" * 65536)
