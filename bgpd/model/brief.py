"""Shortens what a person is to read: a few lines and how many more there are, and no line without an end.

For every list of messages that somebody else's input can make long (a Node with thousands of pod CIDRs, a
directory of broken manifests), in `bgpd status`, in answers and in the log. Rows of data are not messages: a
table of routes is shown whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

LINES = 10
CHARACTERS = 1000  # several times the longest message of our own; what is longer quotes its input


def brief(items: Collection[T], say: Callable[[T], str] = str) -> list[str]:
    """The first items as lines, then a line that counts the rest, which is never about a single one."""
    shown = len(items) if len(items) <= LINES + 1 else LINES
    lines = [_line(say(item)) for item in islice(items, shown)]
    rest = len(items) - shown
    return [*lines, f"and {rest:,} more"] if rest else lines


def _line(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}... ({len(text):,} characters)"
