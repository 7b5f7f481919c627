"""Whether a monitor's `recv` is in an answer: extended regular expressions of POSIX, as BIG-IP has them.

Whoever may write a ConfigMap writes these, and what they are held against is whatever a pod answers: Python's `re`
would let both of them together stop the daemon for hours. The C library's takes time in proportion to the answer
once back references and counted repetitions are left out, and does not keep other threads from running meanwhile.

Source: F5 K5917, and regex(3) of glibc.
"""

from __future__ import annotations

import ctypes
import functools
import re
import weakref

_EXTENDED = 1  # REG_EXTENDED
_GIVEN_RANGE = 4  # REG_STARTEND: the text has a length, and may hold zeros
_REGEX_ROOM = 64  # sizeof(regex_t) of glibc on 64 bits
LONGEST = 255
_MEANS_MORE = re.compile(r"[\\^$.|?*+()\[\]{}]")
_COSTLY = re.compile(r"(?<!\\)(?:\\\\)*(\\[1-9]|\{)")

_libc = ctypes.CDLL(None, use_errno=True)


class _Regmatch(ctypes.Structure):
    _fields_ = (("start", ctypes.c_int), ("end", ctypes.c_int))


class PatternError(ValueError):
    """No pattern that can be used; the text says why."""


class Pattern:
    """One `recv`, ready to be looked for."""

    def __init__(self, text: str) -> None:
        self._literal = text.encode() if not _MEANS_MORE.search(text) else None
        if self._literal is not None:
            return
        if len(text) > LONGEST:
            raise PatternError(f"it has {len(text)} characters; a regular expression may have {LONGEST}")
        costly = _COSTLY.search(text)
        if costly:
            remedy = "write \\\\{ for the brace itself" if costly[1] == "{" else "leave it out"
            raise PatternError(f"back references and counted repetitions ({costly[1]}) are not supported; {remedy}")
        if "\0" in text:
            raise PatternError("a zero byte cannot be looked for")
        self._compiled = ctypes.create_string_buffer(_REGEX_ROOM)
        code = _libc.regcomp(self._compiled, text.encode(), _EXTENDED)
        if code:
            said = ctypes.create_string_buffer(200)
            _libc.regerror(code, self._compiled, said, len(said))
            raise PatternError(f"it is no extended regular expression: {said.value.decode(errors='replace')}")
        weakref.finalize(self, _libc.regfree, self._compiled)

    @property
    def literal(self) -> bool:
        """Whether it means just its own text, which is found in no time."""
        return self._literal is not None

    def found_in(self, answer: bytes) -> bool:
        """Anywhere in it."""
        if self._literal is not None:
            return self._literal in answer
        place = _Regmatch(0, len(answer))
        return bool(_libc.regexec(self._compiled, answer, 1, ctypes.byref(place), _GIVEN_RANGE) == 0)


@functools.lru_cache(maxsize=4096)
def pattern(text: str) -> Pattern:
    """PatternError: it cannot be used."""
    return Pattern(text)
