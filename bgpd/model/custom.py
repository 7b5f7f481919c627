"""An object of a custom resource as it was read: what it asks for, what is wrong with it, what its status says.

Values only. What its spec holds is up to whoever knows the kind; the kinds are read in `kube`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from bgpd.model.fault import FieldFault

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Condition:
    """One entry of status.conditions (meta/v1 Condition).

    `since` is when it began to have this status, as the API server writes times; empty: with this very write. Two
    that differ in nothing else are the same.
    """

    type: str
    status: bool
    reason: str
    message: str
    generation: int
    since: str = field(default="", compare=False)

    def from_time(self, since: str) -> Condition:
        return replace(self, since=since)


class Target(NamedTuple):
    """An object whose status is written: its kind and name."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Custom(Generic[T]):
    """`spec` None: the object cannot be used as it is, and `faults` say why; what was last good of it counts.

    `created` is as the API server writes it, so that the older is the lower; empty in a file.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    generation: int = 0
    spec: T | None = None
    faults: tuple[FieldFault, ...] = ()
    conditions: tuple[Condition, ...] = ()
