"""An open map: its properties, and reading and writing many entries at once.

Keys and values are bytes; `layout` knows what they mean. Batches where the kernel has them for this kind of map,
one entry a call where not. Nothing here decides what should be in a map.

A longest-prefix-match map answers a lookup with the best match, so whether it holds one very entry can only be told
by reading all of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from bgpd.datapath.layout import MapSpec
from bgpd.datapath.libbpf import ENOTSUPP, DatapathError, check, library, map_create, map_info

K = TypeVar("K", bound=bytes)

BATCH = 4096  # entries in one call
NO_BATCH = (-errno.EINVAL, -ENOTSUPP)  # a kernel before 5.6; a map of a kind that has none


class Map:
    """Owns `fd` and closes it when it goes. `spec` is what the kernel says, which keeps 15 bytes of the name: give
    all of it where it is known.
    """

    def __init__(self, fd: int, name: str = "") -> None:
        self.fd = fd
        self._closed = weakref.finalize(self, os.close, fd)
        info = map_info(fd)
        self.id = int(info.id)
        self.spec = MapSpec(
            name or info.name.decode(),
            info.type,
            info.key_size,
            info.value_size,
            info.max_entries,
            info.map_flags,
        )

    @classmethod
    def create(cls, spec: MapSpec) -> Map:
        """A new map, which lasts as long as somebody holds or pins it."""
        fd = map_create(spec.type, spec.name, spec.key_size, spec.value_size, spec.max_entries, spec.flags)
        return cls(fd, spec.name)

    def close(self) -> None:
        """Twice does no harm."""
        self._closed()

    @property
    def batches(self) -> bool:
        """Whether this kernel takes batches for it."""
        code = library().bpf_map_delete_batch(self.fd, b"", ctypes.byref(ctypes.c_uint32(0)), None)
        return code not in NO_BATCH

    def update(self, entries: Mapping[K, bytes]) -> None:
        """Adds or overwrites, in their order. DatapathError: those before the failure are written."""
        call = library()
        for keys in _chunks(list(entries)):
            values = [entries[key] for key in keys]
            count = ctypes.c_uint32(len(keys))
            code = call.bpf_map_update_batch(self.fd, b"".join(keys), b"".join(values), ctypes.byref(count), None)
            if code in NO_BATCH:
                code = _first_failure(
                    call.bpf_map_update_elem(self.fd, key, value, 0) for key, value in zip(keys, values, strict=True)
                )
            self._check("writing", code)

    def delete(self, keys: Iterable[bytes]) -> None:
        """Removes, in their order; what is not there is as wanted. DatapathError: those before it are gone."""
        call = library()
        for chunk in _chunks(list(keys)):
            count = ctypes.c_uint32(len(chunk))
            code = call.bpf_map_delete_batch(self.fd, b"".join(chunk), ctypes.byref(count), None)
            if code in (*NO_BATCH, -errno.ENOENT):  # a batch stops at the first that is not there
                codes = (call.bpf_map_delete_elem(self.fd, key) for key in chunk)
                code = _first_failure(0 if code == -errno.ENOENT else code for code in codes)
            self._check("deleting", code)

    def lookup(self, key: bytes) -> bytes | None:
        """The value of `key`, in a longest-prefix-match map that of its best match; None: there is none."""
        value = ctypes.create_string_buffer(self.spec.value_size)
        code = library().bpf_map_lookup_elem(self.fd, key, value)
        if code == -errno.ENOENT:
            return None
        self._check("reading", code)
        return value.raw

    def lookup_each_cpu(self, key: bytes) -> list[bytes]:
        """The values of `key` in a map that has one for each CPU, of which the kernel gives all or none."""
        room = -(-self.spec.value_size // 8) * 8  # each begins at a multiple of 8 bytes
        cpus = check("counting CPUs", library().libbpf_num_possible_cpus())
        values = ctypes.create_string_buffer(room * cpus)
        self._check("reading", library().bpf_map_lookup_elem(self.fd, key, values))
        return [values.raw[start : start + self.spec.value_size] for start in range(0, room * cpus, room)]

    def entries(self) -> dict[bytes, bytes]:
        """Everything in it. What others write or delete meanwhile may be missing."""
        found: dict[bytes, bytes] = {}
        room = min(BATCH, self.spec.max_entries)  # a hash gives whole buckets: none is fuller than this
        place = ctypes.create_string_buffer(max(self.spec.key_size, 4))  # a key, or the number of a hash bucket
        start = None
        while True:
            keys = ctypes.create_string_buffer(room * self.spec.key_size)
            values = ctypes.create_string_buffer(room * self.spec.value_size)
            count = ctypes.c_uint32(room)
            code = library().bpf_map_lookup_batch(self.fd, start, place, keys, values, ctypes.byref(count), None)
            if code in NO_BATCH:
                return self._entries_one_by_one()
            if code != -errno.ENOENT:
                self._check("reading", code)
            found |= zip(
                _split(keys.raw, self.spec.key_size, count.value),
                _split(values.raw, self.spec.value_size, count.value),
                strict=True,
            )
            if code == -errno.ENOENT:  # that was the end
                return found
            start = place

    def _entries_one_by_one(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        key = None
        following = ctypes.create_string_buffer(self.spec.key_size)
        while (code := library().bpf_map_get_next_key(self.fd, key, following)) != -errno.ENOENT:
            self._check("reading", code)
            key = following.raw
            value = self.lookup(key)
            if value is not None:
                found[key] = value
        return found

    def _check(self, doing: str, code: int) -> None:
        what = f"{doing} the map {self.spec.name}"
        if code in (-errno.ENOSPC, -errno.E2BIG):  # a trie's, a hash's
            raise DatapathError(f"{what}: it is full, with {self.spec.max_entries:,} entries", -code)
        check(what, code)


def _chunks(keys: Sequence[K]) -> Iterator[Sequence[K]]:
    return (keys[start : start + BATCH] for start in range(0, len(keys), BATCH))


def _split(raw: bytes, size: int, count: int) -> list[bytes]:
    return [raw[start : start + size] for start in range(0, size * count, size)]


def _first_failure(codes: Iterable[int]) -> int:
    """Makes the calls until one fails; its code, or 0."""
    return next((code for code in codes if code < 0), 0)
