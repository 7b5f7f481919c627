"""What the two sources have in common: which objects are wanted, where they go, and how the source is doing.

Values only. `watch` fills a feed from the API server, `manifests` from a directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Generic, TypeVar

from bgpd.kube.parse import Kind
from bgpd.model.fault import Fault
from bgpd.runtime.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Feed(Generic[T]):
    """The objects of one kind, by name or namespace/name, go into `store` as one mapping.

    `name` None: all of them; else only the object that has this as its key. `expected`: of all, one that should be
    there. `label`, name and value: of all, those that have it. `store.newest.synced` turns true with the first
    mapping that is complete, that is when every object the source holds could be read, and stays.
    """

    kind: Kind[T]
    store: Store[Mapping[str, T]]
    name: str | None = None
    expected: str | None = None
    label: tuple[str, str] | None = None

    def takes(self, key: str, labels: Mapping[str, str]) -> bool:
        """Whether an object of the kind is wanted."""
        has_label = self.label is None or labels.get(self.label[0]) == self.label[1]
        return has_label and self.name in (None, key)

    @property
    def emptiness(self) -> str:
        """Says that there is nothing, when that is allowed and seldom meant. With a label it may well be."""
        there, expected = self.store.newest.value, self.name or self.expected
        if self.label is not None:
            return ""
        if (expected in there if expected else there) or not (expected or self.kind.if_absent):
            return ""
        if expected is None:
            return f"there is no {self.kind.name}"
        return "; ".join(filter(None, (f"there is no {self.kind.name} named {expected}", self.kind.if_absent)))


class SourceState(StrEnum):
    STARTING = "starting"  # never complete so far
    SYNCED = "synced"
    RETRYING = "retrying"  # was complete; what is published may be out of date


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """`since` is monotonic seconds, when `state` began. `last_error` outlives its trouble.

    `faults` are objects and files that cannot be read now; what was last read of them still counts.
    `warning` is empty or something that is allowed and yet surprising.
    """

    state: SourceState
    since: float
    last_error: str = ""
    reconnects: int = 0
    faults: tuple[Fault, ...] = ()
    warning: str = ""


def entered(status: SourceStatus, state: SourceState, now: float) -> SourceStatus:
    """The status in `state`; `since` stays when it was in that state already."""
    return status if status.state is state else replace(status, state=state, since=now)
