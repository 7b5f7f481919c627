"""Finds the objects of the wanted kinds in the bytes of one manifest file, each with its place.

Pure: bytes in, objects and faults out. It takes several documents, `kind: List` and `NodeList` apart, skips
kinds nobody asked for, and never stops at an object that is wrong. What counts of a file that is partly wrong
is decided in `manifests`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from bgpd.config import document
from bgpd.config.document import Document, Path, Value
from bgpd.kube.feed import Feed
from bgpd.kube.parse import Kind, Malformed
from bgpd.model.fault import Fault


class ObjectKey(NamedTuple):
    """The kind's name, and name or namespace/name."""

    kind: str
    key: str

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


@dataclass(frozen=True, slots=True)
class Found:
    """An object and where it begins. `labels` are what feeds choose by."""

    key: ObjectKey
    value: Any
    labels: Mapping[str, str]
    file: str
    line: int
    column: int

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one file holds. `found` is in file order and may define an object twice.

    `broken` are objects that are there and cannot be read. `is_partial`: there is something whose name cannot
    be read either (a syntax fault, say), so that what is not in `found` need not be gone. `is_unreadable`:
    nothing of the file could be had, and trying again may help though it does not change.
    """

    found: tuple[Found, ...] = ()
    faults: tuple[Fault, ...] = ()
    broken: frozenset[ObjectKey] = frozenset()
    is_partial: bool = False
    is_unreadable: bool = False


_Kinds: TypeAlias = Mapping[str, Sequence[Feed[Any]]]


def read_objects(data: bytes, file: str, feeds: Sequence[Feed[Any]]) -> Reading:
    """`file` is how faults name it; nothing is opened."""
    documents = document.parse(data, file)
    if documents.faults:
        # What stands before a syntax fault may be half of what was meant.
        return Reading(faults=documents.faults, is_partial=True)
    kinds: dict[str, list[Feed[Any]]] = {}
    for feed in feeds:
        kinds.setdefault(feed.kind.name, []).append(feed)
    reader = _Reader(file, kinds)
    for each in documents.values:
        reader.take(each)
    return Reading(tuple(reader.found), tuple(reader.faults), frozenset(reader.broken), reader.is_partial)


@dataclass(slots=True)
class _Reader:
    file: str
    kinds: _Kinds
    found: list[Found] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    broken: set[ObjectKey] = field(default_factory=set)
    is_partial: bool = False

    def take(self, source: Document) -> None:
        for path, value, kind in self._candidates(source, (), source.value, None):
            try:
                raw = kind.convert(value)
            except Malformed as error:
                self._malformed(source, path, kind, error)
                continue
            key, labels = kind.key(raw), raw.metadata.labels or {}
            if any(feed.takes(key, labels) for feed in self.kinds[kind.name]):
                named = ObjectKey(kind.name, key)
                model = kind.to_model(raw)
                if kind.located is not None:
                    model = kind.located(model, self.file, partial(_place, source, path))
                self.found.append(Found(named, model, labels, self.file, *source.place(path)))
                for fault in kind.faults(model) if kind.faults else ():
                    self._fault(source, (*path, *fault.path), f"{named}: {fault.problem}", named=True)

    def _candidates(
        self, source: Document, path: Path, value: Value, listed: Kind[Any] | None
    ) -> Iterator[tuple[Path, Value, Kind[Any]]]:
        """What claims to be of a wanted kind. `listed` is the kind that its list says, for it may not itself."""
        if value is None:
            return
        if not isinstance(value, dict):
            self._fault(source, path, "is not a Kubernetes object")
            return
        name = value.get("kind") if listed is None else value.get("kind", listed.name)
        if not isinstance(name, str):
            self._fault(source, path, "is not a Kubernetes object: it has no kind")
        elif name.endswith("List") and (name == "List" or name[:-4] in self.kinds):
            feeds = self.kinds.get(name[:-4])
            yield from self._listed(source, path, value, feeds[0].kind if feeds else None)
        elif name in self.kinds:
            kind = self.kinds[name][0].kind
            version = value.get("apiVersion", kind.api_version if listed is not None else None)
            if version == kind.api_version:
                yield path, value, kind
            elif not isinstance(version, str):
                self._fault(source, path, f"has no apiVersion; write apiVersion: {kind.api_version}")

    def _listed(
        self, source: Document, path: Path, value: dict[str, Value], kind: Kind[Any] | None
    ) -> Iterator[tuple[Path, Value, Kind[Any]]]:
        items = value.get("items")
        if not isinstance(items, list | None):
            self._fault(source, (*path, "items"), "must be a list")
            return
        for index, item in enumerate(items or ()):
            yield from self._candidates(source, (*path, "items", index), item, kind)

    def _malformed(self, source: Document, path: Path, kind: Kind[Any], error: Malformed) -> None:
        """What has no name or no labels that can be read may be one that is wanted."""
        if error.key is None:
            self._fault(source, (*path, *error.path), error.problem)
        elif any(feed.name in (None, error.key) for feed in self.kinds[kind.name]):
            key = ObjectKey(kind.name, error.key)
            self.broken.add(key)
            self._fault(source, (*path, *error.path), f"{key}: {error.problem}", named=True)

    def _fault(self, source: Document, path: Path, problem: str, *, named: bool = False) -> None:
        line, column = source.place(path)
        self.faults.append(Fault(self.file, line, column, document.spell(path), problem))
        self.is_partial = self.is_partial or not named


def _place(source: Document, path: Path, inner: Path) -> tuple[int, int]:
    """Line and column of what `inner` leads to from the object at `path`."""
    return source.place((*path, *inner))
