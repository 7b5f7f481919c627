"""Reads YAML into plain values that remember where they stood in the file. Pure; it knows no schema.

Shared by the configuration and by the manifest source: bytes in, documents and faults out, so that whatever
is found wrong later can be said with line and column. Built on libyaml's events with a stack of its own,
because composing recursively lets a file of 1,000 brackets end the process. `Limits` holds for any input.

Keys are always text (`on: x` has the key "on"), as in JSON; what a scalar means is decided in `scalar`.
Aliases and merge keys work. An aliased value is shared, so nobody may change what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from bgpd.config.scalar import PREFIX, scalar_value, short_tag, shown
from bgpd.model.fault import Fault

Value: TypeAlias = "dict[str, Value] | list[Value] | str | int | float | bool | None"
Path: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 8 * 1024 * 1024
_MOST_FAULTS = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """`nodes` counts an alias as everything it stands for, which stops alias bombs.

    8 MiB is five times what etcd takes for one object, real manifests nest 20 deep, and 8 MiB of them hold
    about 600,000 values.
    """

    bytes: int = MAX_BYTES
    depth: int = 64
    nodes: int = 1_000_000


@dataclass(slots=True)
class Place:
    """Counted from 1; an entry of a mapping stands at its key. `inner` is the places of what it holds."""

    line: int
    column: int
    inner: dict[str, Place] | list[Place] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file; an empty one has the value None."""

    value: Value
    root: Place

    def place(self, path: Path) -> tuple[int, int]:
        """Line and column of what `path` leads to, or of its nearest ancestor that is there."""
        here = self.root
        for step in path:
            inside = _inside(here, step)
            if inside is None:
                break
            here = inside
        return here.line, here.column


@dataclass(frozen=True, slots=True)
class Documents:
    """`values` are the documents before the fault that ended the reading, if one did."""

    values: tuple[Document, ...]
    faults: tuple[Fault, ...]


def parse(data: bytes, file: str, limits: Limits = Limits()) -> Documents:
    """Every document in `data`. `file` is how faults name it; nothing is opened."""
    reader = _Reader(file, limits)
    try:
        reader.check_text(data)
        for event in yaml.parse(data, Loader=yaml.CSafeLoader):
            reader.take(event)
    except _StopReadingError:
        pass
    except yaml.reader.ReaderError as error:
        line, column = _place_of_byte(data, error.position)
        reader.fault(line, column, f"the character U+{error.character:04X} is not allowed in YAML")
    except yaml.MarkedYAMLError as error:
        reader.fault(*_place_of_error(error), _syntax_problem(error, data))
    return Documents(tuple(reader.documents), tuple(sorted(reader.faults)))


def spell(path: Path) -> str:
    """A path as operators read it: `bgp.peers[1].peerAddress`. A key that is no plain word is quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]{1,64}", step):
            text += f".{step}" if text else step
        else:
            text += f"[{shown(step)}]"
    return text


class _StopReadingError(Exception):
    """The fault that was just noted leaves no sense in what follows."""


@dataclass(slots=True)
class _Node:
    """A finished value. `size` and `height` count what aliases stand for."""

    value: Value
    place: Place
    size: int = 1
    height: int = 0


@dataclass(slots=True)
class _Frame:
    """A mapping or list that is still open. `key` is the one whose value comes next."""

    node: _Node
    anchor: str | None
    key: _Key | None = None
    merges: list[_Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Key:
    text: str
    place: Place
    is_merge: bool


class _Reader:
    """Takes events in order; keeps the open containers on a list, never on Python's stack."""

    def __init__(self, file: str, limits: Limits) -> None:
        self._file, self._limits = file, limits
        self.documents: list[Document] = []
        self.faults: list[Fault] = []
        self._stack: list[_Frame] = []
        self._anchors: dict[str, _Node | None] = {}  # None: still open, so an alias would contain itself
        self._nodes = 0

    def fault(self, line: int, column: int, problem: str, path: Path = ()) -> None:
        if len(self.faults) == _MOST_FAULTS:
            self.faults.append(Fault(self._file, line, column, "", "more faults follow; these come first"))
            raise _StopReadingError
        self.faults.append(Fault(self._file, line, column, spell(path), problem))

    def check_text(self, data: bytes) -> None:
        if len(data) > self._limits.bytes:
            self.fault(0, 0, f"it has {len(data)} bytes; at most {self._limits.bytes} are read")
            raise _StopReadingError
        try:
            data.decode()
            bad = data.find(b"\0")
        except UnicodeDecodeError as error:
            bad = error.start
        if bad >= 0:
            self.fault(*_place_of_byte(data, bad), f"the byte 0x{data[bad]:02x} is not UTF-8 text")
            raise _StopReadingError

    def take(self, event: yaml.Event) -> None:
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)

    def _stop(self, place: Place, problem: str) -> None:
        self.fault(place.line, place.column, problem, self._path())
        raise _StopReadingError

    def _stop_too_deep(self, place: Place) -> None:
        self.fault(place.line, place.column, f"it nests deeper than {self._limits.depth} levels")
        raise _StopReadingError

    def _path(self) -> Path:
        """Of the value that comes next."""
        path: list[str | int] = []
        for frame in self._stack:
            if isinstance(frame.node.value, list):
                path.append(len(frame.node.value))
            elif frame.key is not None:
                path.append(frame.key.text)
        return tuple(path)

    def _start_document(self, event: yaml.DocumentStartEvent) -> None:
        self._anchors = {}

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        place = _place_of_event(event)
        if self._stack and self._awaits_key(self._stack[-1]):
            plain = event.tag is None and event.implicit[0]
            if event.anchor is not None:
                self._anchors[event.anchor] = _Node(event.value, place)
            self._key(self._stack[-1], _Key(event.value, place, plain and event.value == "<<"))
            return
        try:
            value = scalar_value(event)
        except ValueError as error:
            value = None
            self.fault(place.line, place.column, str(error), self._path())
        node = _Node(value, place)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        self._add(node)

    def _alias(self, event: yaml.AliasEvent) -> None:
        place = _place_of_event(event)
        name = str(event.anchor)
        known = self._anchors.get(name)
        if known is None:
            why = "stands inside what it names" if name in self._anchors else "names nothing above it"
            self._stop(place, f"the alias *{name} {why}")
            return
        self._refuse_key(place)
        if len(self._stack) + known.height > self._limits.depth:
            self._stop_too_deep(place)
        self._add(_Node(known.value, Place(place.line, place.column, known.place.inner), known.size, known.height))

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        place = _place_of_event(event)
        self._refuse_key(place)
        if len(self._stack) >= self._limits.depth:
            self._stop_too_deep(place)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", PREFIX + ("map" if is_mapping else "seq")):
            self.fault(place.line, place.column, f"the tag {short_tag(event.tag)} is not known", self._path())
        place.inner = {} if is_mapping else []
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._stack.append(_Frame(_Node({} if is_mapping else [], place, height=1), event.anchor))

    def _close_mapping(self, event: yaml.MappingEndEvent) -> None:
        frame = self._stack[-1]
        frame.key = None
        for merged in frame.merges:
            _merge(frame.node, merged)
        self._close(event)

    def _close(self, event: yaml.Event) -> None:
        frame = self._stack.pop()
        if frame.anchor is not None:
            self._anchors[frame.anchor] = frame.node
        self._add(frame.node, counted=True)

    def _add(self, node: _Node, *, counted: bool = False) -> None:
        """Puts a finished value where it belongs. `counted`: its content was added before, only it is new."""
        self._nodes += 1 if counted else node.size
        if self._nodes > self._limits.nodes:
            self._stop(node.place, f"it holds more than {self._limits.nodes} values, aliases written out")
        if not self._stack:
            self.documents.append(Document(node.value, node.place))
            return
        frame = self._stack[-1]
        parent = frame.node
        parent.size += node.size
        parent.height = max(parent.height, node.height + 1)
        if isinstance(parent.value, list) and isinstance(parent.place.inner, list):
            parent.value.append(node.value)
            parent.place.inner.append(node.place)
        elif isinstance(parent.value, dict) and isinstance(parent.place.inner, dict) and frame.key is not None:
            self._add_entry(frame, frame.key, parent.value, parent.place.inner, node)

    def _add_entry(
        self, frame: _Frame, key: _Key, values: dict[str, Value], places: dict[str, Place], node: _Node
    ) -> None:
        if key.is_merge:
            self._note_merge(frame, node)
        elif key.text not in values:
            values[key.text] = node.value
            places[key.text] = Place(key.place.line, key.place.column, node.place.inner)
        frame.key = None

    def _awaits_key(self, frame: _Frame) -> bool:
        return frame.key is None and isinstance(frame.node.value, dict)

    def _refuse_key(self, place: Place) -> None:
        if self._stack and self._awaits_key(self._stack[-1]):
            self._stop(place, "a key must be plain text, not a mapping, a list or an alias")

    def _key(self, frame: _Frame, key: _Key) -> None:
        frame.key = key
        places = frame.node.place.inner
        first = places.get(key.text) if isinstance(places, dict) else None
        if first is not None and not key.is_merge:
            text = f"the key is given twice; it is already on line {first.line}, column {first.column}"
            self.fault(key.place.line, key.place.column, text, self._path())

    def _note_merge(self, frame: _Frame, node: _Node) -> None:
        if isinstance(node.value, dict):
            frame.merges.append(node)
        elif isinstance(node.value, list) and all(isinstance(item, dict) for item in node.value):
            assert isinstance(node.place.inner, list)
            frame.merges += [_Node(*pair) for pair in zip(node.value, node.place.inner, strict=True)]
        else:
            problem = f"'<<' takes a mapping or a list of mappings, not {shown(node.value)}"
            self.fault(node.place.line, node.place.column, problem, self._path())


# Not in the reader, which would then hold itself: all it has read would stay until the garbage collector comes.
_HANDLERS: dict[type[yaml.Event], Callable[[_Reader, Any], None]] = {
    yaml.DocumentStartEvent: _Reader._start_document,
    yaml.ScalarEvent: _Reader._scalar,
    yaml.AliasEvent: _Reader._alias,
    yaml.MappingStartEvent: _Reader._open,
    yaml.SequenceStartEvent: _Reader._open,
    yaml.MappingEndEvent: _Reader._close_mapping,
    yaml.SequenceEndEvent: _Reader._close,
}


def _merge(into: _Node, merged: _Node) -> None:
    """Adds the entries that are not given explicitly; of several merges the first wins."""
    values, places = into.value, into.place.inner
    assert isinstance(values, dict)
    assert isinstance(places, dict)
    assert isinstance(merged.value, dict)
    assert isinstance(merged.place.inner, dict)
    for key, value in merged.value.items():
        if key not in values:
            values[key] = value
            places[key] = merged.place.inner[key]


# --- places -----------------------------------------------------------------------------------------------


def _inside(place: Place, step: str | int) -> Place | None:
    inner = place.inner
    if isinstance(inner, dict):
        return inner.get(step) if isinstance(step, str) else None
    if isinstance(inner, list) and isinstance(step, int) and 0 <= step < len(inner):
        return inner[step]
    return None


def _place_of_event(event: yaml.Event) -> Place:
    mark = event.start_mark
    assert mark is not None
    return Place(mark.line + 1, mark.column + 1)


def _place_of_byte(data: bytes, offset: int) -> tuple[int, int]:
    """The column counts characters, as every editor does."""
    start = data.rfind(b"\n", 0, offset) + 1
    return data.count(b"\n", 0, offset) + 1, len(data[start:offset].decode(errors="replace")) + 1


def _place_of_error(error: yaml.MarkedYAMLError) -> tuple[int, int]:
    mark = error.problem_mark or error.context_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _syntax_problem(error: yaml.MarkedYAMLError, data: bytes) -> str:
    line, column = _place_of_error(error)
    at_fault = b"".join(data.split(b"\n", line)[line - 1 : line]).decode(errors="replace")
    if at_fault[column - 1 : column] == "\t":
        return "not YAML: a tab; indent with spaces"
    context = f" ({error.context})" if error.context else ""
    return f"not YAML: {error.problem}{context}"
