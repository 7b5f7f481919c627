"""Orders the writes that lead from one contents of the policy maps to the next. Pure.

Whatever is looked up last is written first: ports before the rules that send one there, rules before the classes and
sets that find them. Then addresses and prefixes flip, each by one atomic write. Only what nobody can be sent to any
more is removed, in the opposite order. So a packet finds either the old way or the new one, and all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bgpd.policy.entries import Contents
from bgpd.runtime.diff import gone, written

FLIPS = ("cidrs", "peers")
"""Maps whose entries decide which others are found."""
FOUND = ("ports", "ranges", "rules")
"""Maps whose entries are found by number; each comes before those that lead to it."""


@dataclass(frozen=True, slots=True)
class Write:
    """One entry of the map that `Contents` has under that name. `value` None: remove it."""

    map: str
    key: Any
    value: Any


def changes(have: Contents, want: Contents) -> Iterator[Write]:
    """To be done in this order. Nothing for contents that are the same."""
    for name in (*FOUND, *FLIPS):
        yield from _written(name, getattr(have, name), getattr(want, name))
    for name in (*FLIPS, *reversed(FOUND)):
        yield from _removed(name, getattr(have, name), getattr(want, name))


def _written(name: str, have: Mapping[Any, Any], want: Mapping[Any, Any]) -> Iterator[Write]:
    if have is not want:
        yield from (Write(name, key, want[key]) for key in written(want, have))


def _removed(name: str, have: Mapping[Any, Any], want: Mapping[Any, Any]) -> Iterator[Write]:
    if have is not want:
        yield from (Write(name, key, None) for key in gone(want, have))
