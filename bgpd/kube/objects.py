"""Finds the objects of the wanted kinds in the bytes of one manifest file, each with its place.

Pure: bytes in, objects and faults out. It takes several documents, `kind: List` and `NodeList` apart, skips
kinds nobody asked for, and never stops at an object that is wrong. What counts of a file that is partly wrong
is decided in `manifests`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from bgpd.config import document
from bgpd.config.document import Document, Path, Value
from bgpd.kube.feed import Feed
from bgpd.kube.parse import Malformed
from bgpd.model.fault import Fault


class ObjectKey(NamedTuple):
    """The kind's name, and name or namespace/name."""

    kind: str
    key: str

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


@dataclass(frozen=True, slots=True)
class Found:
    """An object and where it begins."""

    key: ObjectKey
    value: Any
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


_Kinds: TypeAlias = Mapping[str, Feed[Any]]


def read_objects(data: bytes, file: str, feeds: Sequence[Feed[Any]]) -> Reading:
    """`file` is how faults name it; nothing is opened."""
    documents = document.parse(data, file)
    if documents.faults:
        # What stands before a syntax fault may be half of what was meant.
        return Reading(faults=documents.faults, is_partial=True)
    reader = _Reader(file, {feed.kind.name: feed for feed in feeds})
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
        for path, value, feed in self._candidates(source, (), source.value, None):
            try:
                raw = feed.kind.convert(value)
            except Malformed as error:
                self._malformed(source, path, feed, error)
                continue
            key = feed.kind.key(raw)
            if feed.name in (None, key):
                named = ObjectKey(feed.kind.name, key)
                model = feed.kind.to_model(raw)
                self.found.append(Found(named, model, self.file, *source.place(path)))
                for fault in feed.kind.faults(model) if feed.kind.faults else ():
                    self._fault(source, (*path, *fault.path), f"{named}: {fault.problem}", named=True)

    def _candidates(
        self, source: Document, path: Path, value: Value, listed: Feed[Any] | None
    ) -> Iterator[tuple[Path, Value, Feed[Any]]]:
        """What claims to be of a wanted kind. `listed` is the kind that its list says, for it may not itself."""
        if value is None:
            return
        if not isinstance(value, dict):
            self._fault(source, path, "is not a Kubernetes object")
            return
        name = value.get("kind") if listed is None else value.get("kind", listed.kind.name)
        if not isinstance(name, str):
            self._fault(source, path, "is not a Kubernetes object: it has no kind")
        elif name.endswith("List") and (name == "List" or name[:-4] in self.kinds):
            yield from self._listed(source, path, value, self.kinds.get(name[:-4]))
        elif name in self.kinds:
            feed = self.kinds[name]
            version = value.get("apiVersion", feed.kind.api_version if listed is not None else None)
            if version == feed.kind.api_version:
                yield path, value, feed
            elif not isinstance(version, str):
                self._fault(source, path, f"has no apiVersion; write apiVersion: {feed.kind.api_version}")

    def _listed(
        self, source: Document, path: Path, value: dict[str, Value], feed: Feed[Any] | None
    ) -> Iterator[tuple[Path, Value, Feed[Any]]]:
        items = value.get("items")
        if not isinstance(items, list | None):
            self._fault(source, (*path, "items"), "must be a list")
            return
        for index, item in enumerate(items or ()):
            yield from self._candidates(source, (*path, "items", index), item, feed)

    def _malformed(self, source: Document, path: Path, feed: Feed[Any], error: Malformed) -> None:
        if error.key is None:
            self._fault(source, (*path, *error.path), error.problem)
        elif feed.name in (None, error.key):
            key = ObjectKey(feed.kind.name, error.key)
            self.broken.add(key)
            self._fault(source, (*path, *error.path), f"{key}: {error.problem}", named=True)

    def _fault(self, source: Document, path: Path, problem: str, *, named: bool = False) -> None:
        line, column = source.place(path)
        self.faults.append(Fault(self.file, line, column, document.spell(path), problem))
        self.is_partial = self.is_partial or not named
