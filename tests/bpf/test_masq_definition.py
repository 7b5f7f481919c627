"""Masquerade's program on random lists. Apart from test_masq, which other kernels run too: there it takes minutes."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgpd.datapath.loader import Installed
from bgpd.model.prefix import Prefix
from tests.bpf.packets import packet
from tests.bpf.test_masq import KEEP, MASQUERADE, ask, listed


def prefixes(version: int) -> st.SearchStrategy[Prefix]:
    """Few addresses, so that prefixes contain each other."""
    bits = 32 if version == 4 else 128
    addresses = st.integers(0, 15).map(lambda number: number << (bits - 4) | number)
    return st.builds(
        lambda address, length: ip_network((address, length), strict=False), addresses, st.integers(0, bits)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("version", [4, 6])
def test_the_program_agrees_with_the_definition(masq: Installed, version: int, data: st.DataObject) -> None:
    """Kept if and only if some entry contains the destination, as Python's `ipaddress` has it."""
    entries = data.draw(st.sets(prefixes(version), max_size=8))
    to = data.draw(prefixes(version)).network_address
    listed(masq, *map(str, entries))
    assert ask(masq, packet(to)) == (KEEP if any(to in entry for entry in entries) else MASQUERADE)
