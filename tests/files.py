"""A file replaced as careful programs do it, which is what whoever reads it has to cope with."""

from __future__ import annotations

from pathlib import Path


def rewrite(file: Path, text: str) -> None:
    """In one step: at no time is there half of it, or nothing, under its name."""
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(text)
    beside.replace(file)
