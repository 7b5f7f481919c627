"""Keeps the objects of one kind as an API server's lists and events describe them.

Decides what each answer means for the objects, the resource version to resume at, and what cannot be read.
Bytes in, values out: it does not connect, wait or retry; `watch` does. Source: Kubernetes API Concepts,
"Efficient detection of changes".

An object that cannot be decoded keeps its last good value. When it never had one, the mirror is not complete,
so that nobody takes its absence for a removal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from bgpd.kube.parse import Kind, Malformed
from bgpd.model.fault import Fault, dotted

T = TypeVar("T")


class GoneError(Exception):
    """The server cannot continue the watch, as a rule because of 410 Gone; only a new list helps."""


class GarbledError(Exception):
    """What came is no answer of a Kubernetes API server; the text says what came instead."""


_TERMINATING = "because it is being terminated"  # k8s.io/apiserver, pkg/admission/plugin/namespace/lifecycle


class RefusedError(Exception):
    """The server said no. `retry_after_s` None: it did not say how long to wait."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.retry_after_s = status, message, retry_after_s

    @property
    def lacks_right(self) -> bool:
        """Whether the role does not allow it: in a namespace that is on its way out nobody may make anything."""
        return self.status == 403 and _TERMINATING not in self.message


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    more: str | None = msgspec.field(default=None, name="continue")


class _Page(msgspec.Struct, frozen=True):
    """The items stay undecoded so that a bad one harms no other."""

    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Versioned(msgspec.Struct, frozen=True):
    metadata: _ListMeta


class Refusal(msgspec.Struct, frozen=True):
    """A Status object (meta/v1)."""

    code: int | None = None
    message: str | None = None


def refusal(data: bytes | msgspec.Raw) -> Refusal:
    """The Status in an error answer; empty when it holds something else, such as a proxy's HTML."""
    try:
        return msgspec.json.decode(data, type=Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Refusal()


class Listing(Generic[T]):
    """A list that arrives page by page; only whole with its last one. `version` is what to watch from then."""

    def __init__(self, kind: Kind[T]) -> None:
        self._kind = kind
        self._count = 0
        self.objects: dict[str, T] = {}
        self.broken: dict[str, Fault] = {}
        self.version = ""

    def add(self, data: bytes) -> str | None:
        """Takes a page; returns the token that asks for the next one. Raises `GarbledError`."""
        try:
            page = msgspec.json.decode(data, type=_Page)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise GarbledError(f"not a list of Kubernetes objects ({error}): {_excerpt(data)}") from None
        for item in page.items or ():
            try:
                raw = self._kind.decode(item)
            except Malformed as error:
                key = error.key or f"items[{self._count}]"
                self.broken[key] = _fault(self._kind, key, error)
            else:
                self.objects[self._kind.key(raw)] = self._kind.to_model(raw)
            self._count += 1
        self.version = page.metadata.resource_version
        return page.metadata.more or None


class Mirror(Generic[T]):
    """`version` is the resource version to watch from; None: list first."""

    def __init__(self, kind: Kind[T]) -> None:
        self._kind = kind
        self._objects: dict[str, T] = {}
        self._broken: dict[str, Fault] = {}
        self.version: str | None = None

    @property
    def objects(self) -> Mapping[str, T]:
        """A copy that later events do not change."""
        return dict(self._objects)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Of objects that cannot be read, and of parts of those that can."""
        return tuple(sorted((*self._broken.values(), *self._flaws())))

    @property
    def complete(self) -> bool:
        """Whether each object that exists has a value, be it an older one."""
        return self._broken.keys() <= self._objects.keys()

    def adopt(self, listing: Listing[T]) -> None:
        """Replaces everything by a whole list, in one step."""
        kept = {key: self._objects[key] for key in listing.broken if key in self._objects}
        self._objects, self._broken = listing.objects | kept, listing.broken
        self.version = listing.version

    def apply(self, line: bytes) -> None:
        """One line of a watch. Raises `GoneError` for an ERROR event and `GarbledError` for what is none."""
        try:
            event = msgspec.json.decode(line, type=_Event)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise GarbledError(f"not a watch event ({error}): {_excerpt(line)}") from None
        if event.type in ("ADDED", "MODIFIED"):
            self._set(event.object)
        elif event.type == "DELETED":
            self._delete(event.object)
        elif event.type == "ERROR":
            status = refusal(event.object)
            raise GoneError(f"{status.code or 'no code'}: {status.message or _excerpt(line)}")
        # BOOKMARK says nothing but its resource version. A type yet to be invented must not stop us either.
        self._advance(event.object)

    def _flaws(self) -> Iterator[Fault]:
        if self._kind.faults is not None:
            for key, value in self._objects.items():
                for flaw in self._kind.faults(value):
                    yield Fault(f"{self._kind.name} {key}", 0, 0, dotted(flaw.path), flaw.problem)

    def _set(self, data: msgspec.Raw) -> None:
        try:
            raw = self._kind.decode(data)
        except Malformed as error:
            if error.key is None:
                raise GarbledError(f"an object without a name: {_excerpt(bytes(data))}") from None
            self._broken[error.key] = _fault(self._kind, error.key, error)
            return
        key = self._kind.key(raw)
        self._broken.pop(key, None)
        self._objects[key] = self._kind.to_model(raw)

    def _delete(self, data: msgspec.Raw) -> None:
        try:
            key: str | None = self._kind.key(self._kind.decode(data))
        except Malformed as error:
            key = error.key
        if key is None:
            raise GarbledError(f"an object without a name: {_excerpt(bytes(data))}")
        self._objects.pop(key, None)
        self._broken.pop(key, None)

    def _advance(self, data: msgspec.Raw) -> None:
        try:
            version = msgspec.json.decode(data, type=_Versioned).metadata.resource_version
        except msgspec.MsgspecError as error:
            raise GarbledError(f"an event without a resource version ({error})") from None
        self.version = version or self.version


def _fault(kind: Kind[Any], key: str, error: Malformed) -> Fault:
    return Fault(f"{kind.name} {key}", 0, 0, dotted(error.path), error.problem)


def _excerpt(data: bytes) -> str:
    return repr(data[:80].decode(errors="replace"))
