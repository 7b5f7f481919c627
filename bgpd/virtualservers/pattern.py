"""Whether a monitor's `recv` is in an answer: extended regular expressions of POSIX, as BIG-IP has them. Pure.

Whoever may write a ConfigMap writes these, and what they are held against is whatever a pod answers. Python's `re`
would let both of them together stop the daemon for hours. So would the C library's: `((a+)+)+`, deep enough, takes
minutes and gigabytes just to be compiled, and a few anchors or a few `.*` do as much. So an automaton is made here,
by Thompson's construction: as many places as the text has characters, and one step for each byte of an answer. Sets
of places that have come up are remembered, which makes the next step from them one look into a dict.

Bytes are compared: `.` is any but zero. Back references, counted repetitions, word boundaries and classes of other
than ASCII characters are refused.

Source: F5 K5917, IEEE 1003.1 section 9.4, and regex(3) of glibc; K. Thompson, CACM 11(6), 1968.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

LONGEST = 255
REMEMBERED = 1000  # sets of places; a text that makes more has them worked out again
_MEANS_MORE = re.compile(r"[\\^$.|?*+()\[\]{}]")
_CLASSES = {
    "alnum": string.ascii_letters + string.digits, "alpha": string.ascii_letters, "blank": " \t",
    "cntrl": "".join(map(chr, (*range(32), 127))), "digit": string.digits,
    "graph": string.digits + string.ascii_letters + string.punctuation, "lower": string.ascii_lowercase,
    "print": string.digits + string.ascii_letters + string.punctuation + " ", "punct": string.punctuation,
    "space": string.whitespace, "upper": string.ascii_uppercase, "xdigit": string.hexdigits,
}  # fmt: skip
_ALL = frozenset(range(256))
_WORD = frozenset((_CLASSES["alnum"] + "_").encode())
_SPACE = frozenset(_CLASSES["space"].encode())
_LETTERED = {"w": _WORD, "W": _ALL - _WORD, "s": _SPACE, "S": _ALL - _SPACE}  # of GNU
_Tree: TypeAlias = "tuple[str, *tuple[object, ...]]"


class PatternError(ValueError):
    """No pattern that can be used; the text says why."""


@dataclass(slots=True)
class _Place:
    """Where a match may have come to. With `takes`, one of these bytes leads to all of `then`; else nothing has to be
    there but, `only_at`, the start or the end of the answer."""

    then: list[_Place] = field(default_factory=list)
    takes: frozenset[int] | None = None
    only_at: str = ""
    accepts: bool = False


@dataclass(slots=True)
class _Set:
    """All places at once. `found`: a match has been seen. `at_end`: it has, if nothing follows."""

    places: Sequence[_Place]
    found: bool
    at_end: bool
    after: dict[int, _Set] = field(default_factory=dict)


class Pattern:
    """One `recv`, ready to be looked for."""

    def __init__(self, text: str) -> None:
        self._literal = text.encode() if not _MEANS_MORE.search(text) else None
        if self._literal is not None:
            return
        if len(text) > LONGEST:
            raise PatternError(f"it has {len(text)} characters; a regular expression may have {LONGEST}")
        self._start = _built(_Reader(text).tree(), _Place(accepts=True))
        self._known: dict[frozenset[int], _Set] = {}
        self._again = _reached([self._start], "")  # a match may begin at any byte
        self._first = self._set(_reached([self._start], "start"))

    @property
    def literal(self) -> bool:
        """Whether it means just its own text, which is found in no time."""
        return self._literal is not None

    def found_in(self, answer: bytes) -> bool:
        """Anywhere in it."""
        if self._literal is not None:
            return self._literal in answer
        now = self._first
        for byte in answer:
            if now.found:
                return True
            now = now.after.get(byte) or self._step(now, byte)
        return now.found or now.at_end

    def _step(self, now: _Set, byte: int) -> _Set:
        led = [then for place in now.places if place.takes and byte in place.takes for then in place.then]
        found = now.after[byte] = self._set(_reached(led, "") | self._again)
        return found

    def _set(self, places: dict[int, _Place]) -> _Set:
        key = frozenset(places)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._forget()
            ended = _reached(places.values(), "end")
            seen, seen_then = (any(each.accepts for each in group.values()) for group in (places, ended))
            found = self._known[key] = _Set([each for each in places.values() if each.takes], seen, seen_then)
        return found  # several threads may look at once: what one forgets the other works out again

    def _forget(self) -> None:
        known, self._known = self._known, {}
        for each in list(known.values()):
            each.after = {}  # or they would keep one another


@functools.lru_cache(maxsize=4096)
def pattern(text: str) -> Pattern:
    """PatternError: it cannot be used."""
    return Pattern(text)


def _reached(begin: Iterable[_Place], at: str) -> dict[int, _Place]:
    """Where these lead without a byte, by identity: `at` is the start or the end of the answer, or neither."""
    found: dict[int, _Place] = {}
    todo = list(begin)
    while todo:
        place = todo.pop()
        if id(place) not in found:
            found[id(place)] = place
            if place.takes is None and place.only_at in ("", at):
                todo += place.then
    return found


def _built(tree: _Tree, then: _Place) -> _Place:
    """The first place of what `tree` means, which leads to `then`."""
    match tree:
        case ("bytes", frozenset() as takes):
            return _Place([then], takes)
        case ("at", str() as where):
            return _Place([then], only_at=where)
        case ("all", *parts):
            for part in reversed(parts):
                then = _built(part, then)  # type: ignore[arg-type]
            return then
        case ("any", *parts):
            return _Place([_built(part, then) for part in parts])  # type: ignore[arg-type]
        case (sign, part):
            turn = _Place([then])
            first = _built(part, then if sign == "?" else turn)  # type: ignore[arg-type]
            turn.then.append(first)
            return first if sign == "+" else turn
    raise AssertionError(tree)


class _Reader:
    """Reads an expression from left to right."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def tree(self) -> _Tree:
        found = self._either()
        if self._more:
            raise PatternError("it is no extended regular expression: ) without (")
        return found

    @property
    def _more(self) -> bool:
        return self._at < len(self._text)

    def _next(self, missing: str) -> str:
        if not self._more:
            raise PatternError(f"it is no extended regular expression: {missing} is missing")
        self._at += 1
        return self._text[self._at - 1]

    def _takes(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _either(self) -> _Tree:
        parts = [self._sequence()]
        while self._takes("|"):
            parts.append(self._sequence())
        return ("any", *parts) if len(parts) > 1 else parts[0]

    def _sequence(self) -> _Tree:
        parts: list[_Tree] = []
        while self._more and self._text[self._at] not in "|)":
            part = self._one()
            while self._more and self._text[self._at] in "*+?":
                part = (self._next(""), part)
            parts.append(part)
        return ("all", *parts)

    def _one(self) -> _Tree:
        sign = self._next("")
        match sign:
            case "(":
                found = self._either()
                if not self._takes(")"):
                    raise PatternError("it is no extended regular expression: ) is missing")
                return found
            case "[":
                return "bytes", self._bracket()
            case ".":
                return "bytes", _ALL - {0}
            case "^" | "$":
                return "at", "start" if sign == "^" else "end"
            case "*" | "+" | "?":
                raise PatternError(f"it is no extended regular expression: nothing is there for {sign} to repeat")
            case "{":
                raise _unsupported("counted repetitions ({)", "write \\\\{ for the brace itself")
            case "\0":
                raise PatternError("a zero byte cannot be looked for")
            case "\\":
                return self._escaped(self._next("what \\ stands before"))
        return _text(sign)

    def _escaped(self, sign: str) -> _Tree:
        if sign in "123456789":
            raise _unsupported(f"back references (\\{sign})", "leave it out")
        if sign in "bB<>`'":
            raise _unsupported(f"word boundaries (\\{sign})", "leave it out")
        return ("bytes", _LETTERED[sign]) if sign in _LETTERED else _text(sign)

    def _bracket(self) -> frozenset[int]:
        """What follows [. A ] that comes first is one of its characters."""
        others, taken, first = self._takes("^"), set[int](), True
        while first or not self._takes("]"):
            first = False
            if self._takes("[:"):
                taken |= self._class()
                continue
            low = self._character()
            high = low
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._character()
            if high < low:
                raise PatternError("it is no extended regular expression: a range ends before it begins")
            taken |= set(range(low, high + 1))
        return _ALL - taken if others else frozenset(taken)

    def _class(self) -> set[int]:
        name, _, _ = self._text[self._at :].partition(":]")
        if name not in _CLASSES:
            raise PatternError("it is no extended regular expression: there is no such class of characters")
        self._at += len(name) + 2
        return set(_CLASSES[name].encode())

    def _character(self) -> int:
        if self._text.startswith(("[.", "[="), self._at):
            raise _unsupported("collating elements", "leave them out")
        sign = self._next("]")
        if ord(sign) not in range(1, 128):
            raise _unsupported("other than ASCII characters in []", "write (x|y)")
        return ord(sign)


def _text(sign: str) -> _Tree:
    return ("all", *(("bytes", frozenset([byte])) for byte in sign.encode()))


def _unsupported(what: str, remedy: str) -> PatternError:
    return PatternError(f"{what} are not supported; {remedy}")
