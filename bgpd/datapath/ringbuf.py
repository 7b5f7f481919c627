"""Reads a ring buffer map: what programs have to tell, in their order. Decides nothing about what it means.

One reader per map: whoever reads takes. Layout as in the kernel's Documentation/bpf/ringbuf.rst: a page with our
position, a page with the kernel's, then the data, mapped twice so that no record is ever split.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

from bgpd.datapath.maps import Map

_POSITION, _HEADER = struct.Struct("Q"), struct.Struct("II")
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_ALIGNED = 8


class RingBuffer:
    """`fileno` becomes readable when there is something to `take`."""

    def __init__(self, target: Map) -> None:
        self._map, self._size = target, target.spec.max_entries
        page = mmap.PAGESIZE
        self._ours = mmap.mmap(target.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._theirs = mmap.mmap(target.fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    def fileno(self) -> int:
        return self._map.fd

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    def take(self, most: int) -> Iterator[bytes]:
        """What is there, at most so many records; each is gone once the next is asked for."""
        (at,) = _POSITION.unpack_from(self._ours, 0)
        while most and at < _POSITION.unpack_from(self._theirs, 0)[0]:
            start = mmap.PAGESIZE + at % self._size
            length, _ = _HEADER.unpack_from(self._theirs, start)
            if length & _BUSY:
                return  # is being written
            at += -(-(_HEADER.size + (length & ~_DISCARDED)) // _ALIGNED) * _ALIGNED
            if not length & _DISCARDED:
                begin = start + _HEADER.size
                most -= 1
                yield self._theirs[begin : begin + length]
            _POSITION.pack_into(self._ours, 0, at)
