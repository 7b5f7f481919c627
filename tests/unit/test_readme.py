"""The README is true where a machine can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bgpd.cli.main import COMMANDS
from tests.readme import README, between, metrics_table

TEXT = README.read_text()


def test_every_metric_is_in_the_readme() -> None:
    """Name, type and meaning as they are scraped; `python -m tests.readme` writes the table."""
    assert between(TEXT, "metrics") == metrics_table()


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"run", "speaker", "bfd"}))
def test_every_command_for_operators_is_in_the_readme(command: str) -> None:
    """What an operator can type, he can find."""
    assert f"bgpd {command}" in TEXT


def test_every_file_the_readme_points_to_exists() -> None:
    """Links and commands name files of this tree."""
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    named = re.findall(r"(?<!/)(?:tests|systemd|config)/[\w./]+\w", TEXT)
    assert [name for name in sorted({*links, *named}) if not (Path(README.parent) / name).exists()] == []
