"""What maps hold, as Python reads and writes it: the twin of bpf/include/bgpd/layout.h.

The header is the definition. A test holds this file to it through the objects' BTF, and the loader refuses an object
of another ABI. Values only, no I/O.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network

from bgpd.model.prefix import Prefix

ABI = 1

STRUCTS: Mapping[str, Mapping[str, str]] = {
    "lpm_key_v4": {"prefixlen": "I", "addr": "4s"},
    "lpm_key_v6": {"prefixlen": "I", "addr": "16s"},
}
"""The C structs: fields in their order, as the `struct` module names their types."""

_LENGTH = struct.calcsize(STRUCTS["lpm_key_v4"]["prefixlen"])
_LOW = 0 if sys.byteorder == "little" else _LENGTH - 1  # no prefix is longer than one byte can say
_KEY_V4 = struct.Struct("".join(STRUCTS["lpm_key_v4"].values()))
_KEY_V6 = struct.Struct("".join(STRUCTS["lpm_key_v6"].values()))

PRESENT = b"\0"  # the value of a list entry: to be there is all
COUNTER = struct.Struct("Q")


class Verdict(IntEnum):
    """enum masq_verdict: why a flow keeps its address or not, and the index of its counter."""

    LISTED = 0
    NOT_LISTED = 1
    NOT_IP = 2
    TRUNCATED = 3
    BAD_HEADER = 4


class MapType(IntEnum):
    """enum bpf_map_type, as far as used."""

    HASH = 1
    ARRAY = 2
    LPM_TRIE = 11


NO_PREALLOC = 1  # BPF_F_NO_PREALLOC, which a trie must have


@dataclass(frozen=True, slots=True)
class MapSpec:
    """All that decides whether two programs can share a map. `type` may be one that `MapType` does not know."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


IPMASQ_ENTRIES = 16384
MAPS = {
    spec.name: spec
    for spec in (
        MapSpec("ipmasq_v4", MapType.LPM_TRIE, _KEY_V4.size, len(PRESENT), IPMASQ_ENTRIES, NO_PREALLOC),
        MapSpec("ipmasq_v6", MapType.LPM_TRIE, _KEY_V6.size, len(PRESENT), IPMASQ_ENTRIES, NO_PREALLOC),
        MapSpec("ipmasq_hits_v4", MapType.LPM_TRIE, _KEY_V4.size, COUNTER.size, IPMASQ_ENTRIES, NO_PREALLOC),
        MapSpec("ipmasq_hits_v6", MapType.LPM_TRIE, _KEY_V6.size, COUNTER.size, IPMASQ_ENTRIES, NO_PREALLOC),
        MapSpec("masq_verdicts", MapType.ARRAY, struct.calcsize("I"), COUNTER.size, len(Verdict)),
    )
}


class LpmKey(bytes):
    """A prefix as a longest-prefix-match map has it. Compares and hashes as fast as bytes; prints as the prefix."""

    __slots__ = ()

    @classmethod
    def of(cls, prefix: Prefix) -> LpmKey:
        codec = _KEY_V4 if prefix.version == 4 else _KEY_V6
        return cls(codec.pack(prefix.prefixlen, prefix.network_address.packed))

    @classmethod
    def read(cls, key: bytes) -> LpmKey:
        """The key of an entry that is there, without host bits.

        The kernel compares as many bits as the length says and gives keys back as they were written: an entry
        2.2.2.2/16 *is* 2.2.0.0/16. Taken for another one it would be replaced: 2.2.0.0/16 added, which changes
        nothing, and 2.2.2.2/16 deleted, which leaves neither.
        """
        host_bits = 8 * (len(key) - _LENGTH) - key[_LOW]
        address = int.from_bytes(key[_LENGTH:], "big")
        if not address & ((1 << host_bits) - 1):
            return cls(key)
        return cls(key[:_LENGTH] + (address >> host_bits << host_bits).to_bytes(len(key) - _LENGTH, "big"))

    @property
    def prefix(self) -> Prefix:
        network = IPv4Network if len(self) == _KEY_V4.size else IPv6Network
        return network((self[_LENGTH:], self[_LOW]))

    @property
    def order(self) -> tuple[int, bytes]:
        """Sorts the most specific first, then by address."""
        return -self[_LOW], self[_LENGTH:]

    def __str__(self) -> str:
        return str(self.prefix)
