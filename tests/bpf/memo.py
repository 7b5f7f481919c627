"""Where the programs keep what they remember of an address: the twin of `see` in bpf/include/bgpd/memo.h.

For tests and measurements that need two addresses in one place. Whoever uses it looks whether they are (`holds`).
"""

from __future__ import annotations

import struct
from random import Random

from bgpd.datapath import layout
from bgpd.datapath.layout import policy_address
from bgpd.datapath.loader import Installed
from bgpd.model.prefix import Address
from tests.bpf.fill import overwrite

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_SLOTS = layout.MAPS["policy_seen"].max_entries


def slot(address: Address, revision: int) -> int:
    place = revision
    for word in reversed(struct.unpack("=2Q", policy_address(address))):
        place ^= word
        place = (place ^ place >> 32) * _GOLDEN & _WORD
        place ^= place >> 29
    return place % _SLOTS


def sharing(one: Address, other: Address, rand: Random) -> int:
    """A revision under which both have one slot, so that each takes it from the other."""
    while True:
        revision = rand.getrandbits(64) or 1
        if slot(one, revision) == slot(other, revision):
            return revision


def forget(installed: Installed, address: Address, revision: int) -> None:
    """What any CPU has in its place, of whatever revision."""
    place = installed.maps["policy_seen"]
    overwrite(place, [slot(address, revision)], b"")


def holds(installed: Installed, address: Address, revision: int) -> bool:
    """Whether some CPU has it where it belongs."""
    key = slot(address, revision).to_bytes(4, "little")
    found = installed.maps["policy_seen"].lookup_each_cpu(key)
    return any(policy_address(address) in each for each in found)
