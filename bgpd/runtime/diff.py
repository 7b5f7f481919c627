"""Compares what is wanted with what was observed and orders the changes: make before break. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import compress, filterfalse
from operator import is_not
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Kind(StrEnum):
    ADD = "add"
    UPDATE = "update"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Change(Generic[K, V]):
    """`want` None: remove. `have` None: add. Both: replace one by the other."""

    key: K
    want: V | None
    have: V | None

    @property
    def kind(self) -> Kind:
        if self.want is None:
            return Kind.REMOVE
        return Kind.ADD if self.have is None else Kind.UPDATE


def diff(
    want: Mapping[K, V], have: Mapping[K, V], order: Callable[[K], Any], *, prune: bool
) -> list[Change[K, V]]:
    """Additions and updates in `order` (most specific first), then removals in the reverse of it.

    Without `prune` nothing is removed: the wanted side may still be incomplete.
    """
    # of 16,000 entries nearly all are the very objects that were applied: no bytecode is run for these
    others = compress(want, map(is_not, map(have.get, want), want.values()))
    changed = [key for key in others if have.get(key) != want[key]]
    changes = [Change(key, want[key], have.get(key)) for key in sorted(changed, key=order)]
    if prune and len(have) + sum(change.have is None for change in changes) != len(want):
        gone = sorted(filterfalse(want.__contains__, have), key=order, reverse=True)
        changes += [Change(key, None, have[key]) for key in gone]
    return changes
