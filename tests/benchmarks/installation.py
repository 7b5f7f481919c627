"""bgpd as an operator has it on a node: installed and upgraded by `systemd/install`, under a directory.

This decides how there come to be two releases of one source tree: wheels that differ in their version. Everything
an installation needs is fetched before, so that an upgrade takes as long as it does without a network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from bgpd import __version__

SOURCE = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "bgpd")


class Installation:
    """`wheels` are those of two releases, in the order of their versions; `program` is what the units start."""

    def __init__(self, directory: Path) -> None:
        self._root, self._packages = directory / "root", directory / "packages"
        self.program = self._root / "opt/bgpd/current/bin/bgpd"
        versions = __version__, f"{__version__}.post1"
        for version in versions:
            self._build(directory / version, version)
        self.wheels = [self._packages / f"bgpd-{version}-py3-none-any.whl" for version in versions]

    def install(self, wheel: Path) -> None:
        """Installs or upgrades, but for `systemctl`: whatever shall run, or run anew, is for the caller to start."""
        options = ("--root", self._root, "--find-links", self._packages, "--python", sys.executable)
        _run(SOURCE / "systemd/install", "--wheel", wheel, *options)

    def _build(self, copy: Path, version: str) -> None:
        """The wheel of this version, and of every package that it needs."""
        copy.mkdir(parents=True)
        for part in PARTS:
            source = SOURCE / part
            shutil.copytree(source, copy / part) if source.is_dir() else shutil.copy(source, copy)
        said = copy / "bgpd/__init__.py"
        said.write_text(re.sub('^__version__ = ".*"$', f'__version__ = "{version}"', said.read_text(), flags=re.M))
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel")
        _run(*pip, "--find-links", self._packages, "--wheel-dir", self._packages, copy)


def _run(*argv: str | Path) -> None:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}:\n{done.stdout}")
