"""Builds the objects from a copy of their sources, changed or not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("make", "clang-16", "llvm-strip-16", "clang-format-16")


class Source:
    """A copy of bpf/ in `directory`."""

    def __init__(self, directory: Path) -> None:
        lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
        if lacking:
            pytest.skip(f"not installed: {', '.join(lacking)}")
        self.directory = directory / "bpf"
        shutil.copytree(ROOT / "bpf", self.directory)

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.directory / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))

    def build(self, name: str = "masq") -> Path:
        self.make("OUT=out", "all")
        return self.directory / "out" / f"{name}.o"

    def make(self, *arguments: str) -> None:
        subprocess.run(["make", "--silent", "-C", self.directory, *arguments], check=True, timeout=120)
