"""A prefix as the kernel's longest-prefix-match maps have it (struct bpf_lpm_trie_key, linux/bpf.h).

A third of the memory of the standard library's, and faster to compare: what lists of many thousands are made of.
"""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Network, IPv6Network

from bgpd.model.prefix import Prefix

_V4, _V6 = struct.Struct("I4s"), struct.Struct("I16s")
_LENGTH = struct.calcsize("I")
_LOW = 0 if sys.byteorder == "little" else _LENGTH - 1  # no prefix is longer than one byte can say


class LpmKey(bytes):
    """A prefix as a longest-prefix-match map has it. Compares and hashes as fast as bytes; prints as the prefix."""

    __slots__ = ()

    @classmethod
    def of(cls, prefix: Prefix) -> LpmKey:
        codec = _V4 if prefix.version == 4 else _V6
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
    def version(self) -> int:
        return 4 if len(self) == _V4.size else 6

    @property
    def prefix(self) -> Prefix:
        network = IPv4Network if len(self) == _V4.size else IPv6Network
        return network((self[_LENGTH:], self[_LOW]))

    @property
    def order(self) -> tuple[int, bytes]:
        """Sorts the most specific first, then by address."""
        return -self[_LOW], self[_LENGTH:]

    def __str__(self) -> str:
        return str(self.prefix)
