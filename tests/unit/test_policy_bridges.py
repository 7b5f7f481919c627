"""Which packets between ports of bridges no inet table may be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgpd.policy.bridges import CALLS, unjudged


@pytest.mark.parametrize(
    ("calls", "filtering", "versions"),
    [("11", False, ()), ("01", False, (4,)), ("10", False, (6,)), ("", False, (4, 6)), ("11", True, (4, 6))],
)
def test_what_a_bridge_hands_to_nobody(
    tmp_path: Path, calls: str, filtering: bool, versions: tuple[int, ...]
) -> None:
    """No setting: there is no br_netfilter. One bridge that filters VLANs may hand over nothing."""
    for name, value in zip(CALLS.values(), calls, strict=False):
        (tmp_path / name).write_text(f"{value}\n")
    assert unjudged(tmp_path, filtering=filtering) == versions
