"""Which of the kernel's news another look for peers is worth its while for."""

from __future__ import annotations

import struct

import pytest

from bgpd.netlink.message import Received
from bgpd.netlink.route import AF_BRIDGE, DELNEIGH, FAMILY, NEWNEIGH
from bgpd.netlink.uplink import concerns

UPLINK, BRIDGE = 2, 5
ROUTER, STALE = 0x80, 0x04  # NTF_ROUTER, NUD_STALE


@pytest.mark.parametrize("kind", [NEWNEIGH, DELNEIGH])
@pytest.mark.parametrize(
    ("family", "interface", "flags", "worth"),
    [
        pytest.param(FAMILY[6], UPLINK, ROUTER, True, id="a router where a peer is expected"),
        pytest.param(FAMILY[6], BRIDGE, ROUTER, False, id="a router elsewhere"),
        pytest.param(FAMILY[6], UPLINK, 0, False, id="a host"),
        pytest.param(FAMILY[6], BRIDGE, 0, False, id="a pod"),
        pytest.param(FAMILY[4], UPLINK, ROUTER, False, id="an IPv4 neighbor"),
        pytest.param(AF_BRIDGE, UPLINK, ROUTER, False, id="a MAC address"),
    ],
)
def test_neighbors(kind: int, family: int, interface: int, flags: int, *, worth: bool) -> None:
    """Those of pods change their state all the time, and a look costs milliseconds."""
    body = struct.pack("=BxxxiHBB", family, interface, STALE, flags, 0)
    assert concerns(Received(kind, 0, 0, 0, body), {UPLINK}) is worth
