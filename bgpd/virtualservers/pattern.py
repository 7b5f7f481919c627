"""Whether a monitor's `recv` is in an answer: extended regular expressions of POSIX, as BIG-IP has them. Pure.

Whoever may write a ConfigMap writes these, and what they are held against is whatever a pod answers. RE2 looks: in
time that grows with the answer, never with what expression and answer make of each other, and in `MEMORY`. Python's
`re`, and the C library's, let both of them together stop the daemon for hours.

This decides where POSIX and RE2 differ. In brackets a backslash is a character; `.` is any byte but zero; `\\w` and
`\\s` are GNU's, and a backslash before another letter is nothing; a character that is not ASCII stands for all of its
bytes. What F5's library has and RE2 has not, or reads as something else, is refused by name: back references, word
boundaries, collating elements, and classes of characters that are not ASCII.

Source: F5 K5917, IEEE 1003.1 section 9.4, regex(3) of glibc, and doc/syntax.txt of RE2.
"""

from __future__ import annotations

import functools
import re

import re2

LONGEST = 255  # characters, unless it means just its own text
MEMORY = 32 * 1024  # bytes that RE2 may use for one: its program, and as many sets of places as fit beside it
_COMPILED = 1024  # of those with the most recent use; others are compiled again
_MEANS_MORE = re.compile(r"[\\^$.|?*+()\[\]{}]")
_DIFFERS = re.compile(
    r"\\(?P<escaped>.)|\[(?P<bracket>\^?\]?(?:\[:[a-z]+:\]|[^\]])*)\]|(?P<any>\.)|(?P<wide>[^\x00-\x7f])"
    r"|(?P<upto>\{,(?=[0-9]+\}))",
    re.DOTALL,
)
_CLASS = re.compile(r"\[:[a-z]+:\]")
_LETTERED = {"w": "[_[:alnum:]]", "W": "[^_[:alnum:]]", "s": "[[:space:]]", "S": "[^[:space:]]"}
_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1  # a byte is a character
_OPTIONS.posix_syntax = _OPTIONS.one_line = _OPTIONS.never_capture = True
_OPTIONS.longest_match = _OPTIONS.log_errors = False
_OPTIONS.max_mem = MEMORY


class PatternError(ValueError):
    """No pattern that can be used; the text says why, and what to write."""


class Pattern:
    """One `recv`, ready to be looked for. `literal`: it means just its own text, which is found in no time."""

    def __init__(self, text: str) -> None:
        self.literal = not _MEANS_MORE.search(text)
        self._bytes = text.encode()
        if self.literal:
            return
        if len(text) > LONGEST:
            raise PatternError(f"it has {len(text)} characters; a regular expression may have {LONGEST}")
        if "\0" in text:
            raise PatternError("a zero byte cannot be looked for; leave it out")
        try:
            self._compiled = re2.compile(_DIFFERS.sub(_as_posix, text).encode(), _OPTIONS)
        except re2.error as error:
            raise PatternError(f"it is no extended regular expression: {_said(error)}") from None

    def found_in(self, answer: bytes) -> bool:
        """Anywhere in it."""
        return self._bytes in answer if self.literal else self._compiled.search(answer) is not None


@functools.lru_cache(_COMPILED)
def pattern(text: str) -> Pattern:
    """PatternError: it cannot be used."""
    return Pattern(text)


def _as_posix(match: re.Match[str]) -> str:
    """What RE2 has to read for it to mean what POSIX says."""
    kind, text = match.lastgroup, match[0]
    if kind == "bracket":
        return _bracket(match["bracket"])
    if kind == "escaped":
        return _escaped(match["escaped"])
    return {"any": r"[^\x00]", "upto": "{0,"}.get(kind or "", f"({text})")


def _escaped(sign: str) -> str:
    if sign in "123456789":
        raise _unsupported(f"back references (\\{sign})", "leave it out")
    if sign in "bB<>`'":
        raise _unsupported(f"word boundaries (\\{sign})", "leave it out")
    if not sign.isascii():
        return f"({sign})"
    return _LETTERED.get(sign, sign) if sign.isalnum() or sign == "_" else f"\\{sign}"


def _bracket(body: str) -> str:
    characters = _CLASS.sub("", body)
    if "[." in characters or "[=" in characters:
        raise _unsupported("collating elements", "leave them out")
    if "[:" in characters:
        raise PatternError("it is no extended regular expression: there is no such class of characters")
    if not characters.isascii():
        raise _unsupported("other than ASCII characters in []", "write (x|y)")
    return "[" + body.replace("\\", "\\\\") + "]"


def _said(error: Exception) -> str:
    """RE2's words, and what helps."""
    (text,) = error.args
    words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    if words.startswith("pattern too large"):
        return f"it takes more than {MEMORY // 1024} KiB; repeat less, or less often"
    return f"{words}; put \\\\ before a character that is to stand for itself"


def _unsupported(what: str, remedy: str) -> PatternError:
    return PatternError(f"{what} are not supported; {remedy}")
