"""Lays out what commands print: tables that fit 100 columns, durations people read, JSON for machines.

And what becomes of it when nobody takes it: a reader that has seen enough ends the command as one that has seen all,
a disk that is full ends it with one line and FAILED. Every command prints by `show`, or its output is not told apart
from the other things that can fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bgpd.cli.exits import FAILED, FINE, Exit

WIDTH = 100


def show(text: str) -> None:
    """On standard output, which need not have it before `flush`. Exit: it is not taken."""
    with _taken():
        sys.stdout.write(text)


def flush() -> None:
    """All that was shown is out. Exit: it is not taken, which the interpreter would say in its own words."""
    with _taken():
        sys.stdout.flush()


def discard() -> None:
    """The interpreter flushes once more as it ends; what it cannot write would be an exit code 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: Any) -> None:
    """Stable, indented, keys in the order they were made."""
    show(json.dumps(value, indent=2) + "\n")


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """`columns` maps a row's key to its heading. The last column takes what is left of the width and wraps."""
    if not rows:
        return ""
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    heads = list(columns.values())
    widths = [max(len(head), *(len(row[index]) for row in cells)) for index, head in enumerate(heads)]
    lines = ["  ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)).rstrip()]
    indent = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = max(20, WIDTH - indent)
    for row in cells:
        first, *rest = _wrap(row[-1], room)
        shown = [*row[:-1], first]
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(shown, widths, strict=True)).rstrip())
        lines += [" " * indent + line for line in rest]
    return "\n".join(lines) + "\n"


def by_family(counts: Mapping[str, int]) -> str:
    """`12 IPv4 and 1 IPv6`, from what a daemon counts by `ipv4` and `ipv6`."""
    return " and ".join(f"{count:,} {family.replace('ip', 'IP')}" for family, count in counts.items())


def duration(seconds: float | None) -> str:
    """`12s`, `5m`, `3h12m`, `4d7h`: the two largest units."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for unit, size, below, lesser in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // lesser
            return f"{whole // size}{unit}" + (f"{rest}{below}" if rest else "")
    return f"{whole}s"


@contextlib.contextmanager
def _taken() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        discard()
        raise Exit(FINE) from None
    except OSError as error:
        discard()
        sys.stderr.write(f"bgpd: the output cannot be written: {error.strerror}\n")
        raise Exit(FAILED) from None


def _cell(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def _wrap(text: str, width: int) -> list[str]:
    lines, current = [], ""
    for word in text.split(" "):
        if current and len(current) + 1 + len(word) > width:
            lines.append(current)
            current = word
        else:
            current = f"{current} {word}" if current else word
    return [*lines, current]
