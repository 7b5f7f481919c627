"""Which packets between ports of bridges nobody judges but the bridge's own table."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgpd.policy.policing import BRIDGE_CALLS, are_filtering, unjudged


@pytest.mark.parametrize(
    ("calls", "filtering", "versions"),
    [("11", "00", ()), ("01", "00", (4,)), ("10", "00", (6,)), ("", "", (4, 6)), ("11", "01", (4, 6))],
)
def test_what_a_bridge_hands_to_nobody(tmp_path: Path, calls: str, filtering: str, versions: tuple[int, ...]) -> None:
    """No setting: there is no br_netfilter. One bridge that filters VLANs may hand over nothing."""
    for name, value in zip(BRIDGE_CALLS.values(), calls, strict=False):
        (tmp_path / name).write_text(f"{value}\n")
    for number, value in enumerate(filtering):
        bridge = tmp_path / f"cni{number}" / "bridge"
        bridge.mkdir(parents=True)
        (bridge / "vlan_filtering").write_text(f"{value}\n")
    assert unjudged(tmp_path, filtering=are_filtering(tmp_path)) == versions
