"""A Kubernetes ConfigMap (core/v1) as far as somebody keeps a document in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file has it: line and column, counted from 1, of `data` and of each of its keys."""

    file: str
    data: tuple[int, int]
    keys: Mapping[str, tuple[int, int]]

    def place(self, key: str) -> tuple[int, int]:
        """Of one that is missing, where it should be."""
        return self.keys.get(key, self.data)


@dataclass(frozen=True, slots=True)
class ConfigMap:
    """`name` is namespace/name. `data` holds texts only: what kubectl finds to be binary is not in it.

    `created` is RFC 3339 in UTC, as the API writes it, so that the older is the lower; empty in a file. `origin` is
    None of one that an API server has.
    """

    name: str
    data: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    origin: Origin | None = None
