"""Another release of the product: a copy of this one with some lines changed, its objects built from its sources.

It runs as a daemon of its own. What differs between two releases, and what shall come of it, is for tests to say.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.bpf.source import ROOT, Source


class Release:
    """In `directory`; `program` is its `bgpd`, once it is built."""

    def __init__(self, directory: Path) -> None:
        self._source, self._package = Source(directory), directory / "release" / "bgpd"
        self.program = directory / "bgpd"
        shutil.copytree(ROOT / "bgpd", self._package, ignore=shutil.ignore_patterns("__pycache__"))

    def replace_c(self, file: str, *changes: tuple[str, str]) -> None:
        """Below bpf/."""
        for old, new in changes:
            self._source.replace(file, old, new)

    def replace(self, file: str, *changes: tuple[str, str]) -> None:
        """Below bgpd/."""
        path = self._package / file
        text = path.read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
            text = text.replace(old, new)
        path.write_text(text)

    def build(self, objects: Iterable[str]) -> Path:
        for name in objects:
            shutil.copy(self._source.build(name), self._package / "datapath" / "objects" / f"{name}.o")
        run = f'#!/bin/sh\nPYTHONPATH={self._package.parent} exec {sys.executable} -P -m bgpd "$@"\n'
        self.program.write_text(run)
        self.program.chmod(0o755)
        return self.program
