"""What the tests of `systemd/install` share: the packages, so that each of many installations needs no network."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2]
LIMIT_S = 600.0  # the packages may have to come over a slow network


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every wheel that an installation without network needs, bgpd's own included."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("not installed: pip, in the environment that runs the tests")
    directory = tmp_path_factory.mktemp("wheels")
    copy = tmp_path_factory.mktemp("copy") / "source"  # setuptools writes into the tree that it builds
    copy.mkdir()
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / part, copy)
    shutil.copytree(SOURCE / "bgpd", copy / "bgpd", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    argv: list[str | Path] = [*pip, "wheel", "--wheel-dir", directory, copy, "setuptools>=68", "wheel"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return directory
