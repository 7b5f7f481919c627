"""Fills and empties maps of the kernel, for tests and measurements."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from bgpd.datapath.maps import Map


def clear(place: Map) -> None:
    """A map whose entries can be deleted; one that is an array has all of them always."""
    place.delete(list(place.entries()))


def overwrite(place: Map, numbers: Iterable[int], value: bytes) -> None:
    """These slots of an array that each CPU has its own of, for all CPUs."""
    keys = [struct.pack("=I", number) for number in numbers]
    padded = value.ljust(-(-place.spec.value_size // 8) * 8, b"\0")  # as the kernel lays values side by side
    place.update(dict.fromkeys(keys, padded * len(place.lookup_each_cpu(keys[0]))))
