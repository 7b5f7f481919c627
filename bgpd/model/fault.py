"""One thing an operator got wrong, said so that it can be put right without reading code.

Used by the configuration and by the manifest source alike: file, place, cause, remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

FieldPath: TypeAlias = tuple[str | int, ...]


def dotted(path: FieldPath) -> str:
    """A path as Kubernetes writes it: `spec.podCIDRs[1]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


@dataclass(frozen=True, slots=True)
class FieldFault:
    """Something wrong inside an object that still counts; `path` leads there from the object."""

    path: FieldPath
    problem: str


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """`line` and `column` count from 1; 0 means that the fault has no place in the file (it is unreadable, say)."""

    file: str
    line: int
    column: int
    key: str
    problem: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.key}: {self.problem}" if self.key else f"{place}: {self.problem}"


class FaultsError(Exception):
    """Everything wrong with one input, never only the first."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults
