"""Maps in the kernel: many entries at once, one at a time where there are no batches, and what is no error."""

from __future__ import annotations

import errno
import os
import random
import struct
import time
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network

import pytest

from bgpd.datapath.layout import MAPS, NO_PREALLOC, PRESENT, MapSpec, MapType
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.maps import BATCH, Map
from bgpd.model.lpm import LpmKey

pytestmark = pytest.mark.usefixtures("bpffs")
DEVMAP_HASH = 25  # the plainest kind of map that the kernel has no batches for
LOOPBACK = 1  # its ifindex, in every namespace
MANY = 16_000


def trie_entries(version: int, count: int, seed: int = 0) -> dict[bytes, bytes]:
    chance = random.Random(seed)
    found: set[LpmKey] = set()
    while len(found) < count:
        if version == 4:
            found.add(LpmKey.of(IPv4Network((chance.getrandbits(24) << 8, 24))))
        else:
            found.add(LpmKey.of(IPv6Network((chance.getrandbits(48) << 80, 48))))
    return dict.fromkeys(found, PRESENT)


@pytest.mark.parametrize("version", [4, 6])
def test_a_full_size_list_goes_in_and_out_in_batches(version: int) -> None:
    """All there, nothing else, and the same again. Prints how long it took."""
    trie, entries = Map.create(MAPS[f"ipmasq_v{version}"]), trie_entries(version, MANY)
    assert trie.batches
    times = {}
    steps: dict[str, Callable[[], object]] = {
        "update": lambda: trie.update(entries),
        "update again": lambda: trie.update(entries),
        "read": trie.entries,
        "delete half": lambda: trie.delete(list(entries)[::2]),
        "delete all": lambda: trie.delete(entries),
    }
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        times[name] = f"{(time.perf_counter() - started) * 1e3:.1f} ms"
        expected = {"delete half": MANY // 2, "delete all": 0}.get(name, MANY)
        assert len(trie.entries()) == expected, name
    print(f"\nIPv{version}, {MANY:,} entries: {times}")


def test_what_was_written_is_read_back_across_batches() -> None:
    """One entry less than a batch, exactly one, one more."""
    for count in (0, 1, BATCH - 1, BATCH, BATCH + 1):
        trie, entries = Map.create(MAPS["ipmasq_v4"]), trie_entries(4, count)
        trie.update(entries)
        assert trie.entries() == entries


def test_lookup_gives_the_best_match_so_presence_is_told_by_reading_everything() -> None:
    """A trie with 10.0.0.0/8 answers for 10.1.0.0/16, which it does not hold."""
    trie, wide = Map.create(MAPS["ipmasq_v4"]), LpmKey.of(IPv4Network("10.0.0.0/8"))
    narrow = LpmKey.of(IPv4Network("10.1.0.0/16"))
    trie.update({wide: PRESENT})
    assert trie.lookup(narrow) == PRESENT
    assert set(trie.entries()) == {wide}
    assert trie.lookup(LpmKey.of(IPv4Network("11.0.0.0/8"))) is None


def test_deleting_what_is_not_there_is_no_error_and_stops_nothing() -> None:
    trie, entries = Map.create(MAPS["ipmasq_v4"]), trie_entries(4, 20)
    there = dict(list(entries.items())[1::2])
    trie.update(there)
    trie.delete(entries)
    assert trie.entries() == {}


def test_a_full_map_says_so() -> None:
    trie = Map.create(MapSpec("small", MapType.LPM_TRIE, 8, 1, 3, NO_PREALLOC))
    with pytest.raises(DatapathError, match=r"writing the map small: it is full, with 3 entries") as caught:
        trie.update(trie_entries(4, 4))
    assert caught.value.code == errno.ENOSPC
    assert len(trie.entries()) == 3


def test_a_hash_is_read_whole_across_batches() -> None:
    """Which end between two of its buckets, as the kernel likes. The smallest there can be is read as well."""
    table = Map.create(MapSpec("flat", MapType.HASH, 4, 8, 3 * BATCH, NO_PREALLOC))
    entries = {struct.pack("I", number): struct.pack("Q", number * number) for number in range(3 * BATCH)}
    table.update(entries)
    assert table.entries() == entries
    one = Map.create(MapSpec("one", MapType.HASH, 4, 8, 1, NO_PREALLOC))
    one.update({bytes(4): bytes(8)})
    assert one.entries() == {bytes(4): bytes(8)}


def test_a_full_hash_says_so_as_well() -> None:
    """By its whole name, of which the kernel keeps 15 bytes."""
    table = Map.create(MapSpec("tiny_but_named_at_length", MapType.HASH, 4, 1, 2))
    with pytest.raises(DatapathError, match="the map tiny_but_named_at_length: it is full, with 2 entries"):
        table.update({struct.pack("I", number): b"\0" for number in range(3)})


def test_a_map_without_batches_is_worked_one_entry_a_call() -> None:
    """The same contract: written, read back, deleted, absent ones ignored, the errors those of single entries."""
    devices = Map.create(MapSpec("devices", DEVMAP_HASH, 4, 4, 8))
    entries = {struct.pack("I", number): struct.pack("I", LOOPBACK) for number in range(8)}
    assert not devices.batches
    devices.update(entries)
    assert devices.entries() == entries
    assert devices.lookup(struct.pack("I", 3)) == struct.pack("I", LOOPBACK)
    with pytest.raises(DatapathError, match="it is full, with 8 entries"):
        devices.update({struct.pack("I", 99): struct.pack("I", LOOPBACK)})
    devices.delete([struct.pack("I", 99), *entries])
    assert devices.entries() == {}


def test_a_key_that_cannot_be_is_refused() -> None:
    """A length of 33 bits: EINVAL, which must not be taken for a kernel without batches."""
    trie = Map.create(MAPS["ipmasq_v4"])
    with pytest.raises(DatapathError, match="writing the map ipmasq_v4: Invalid argument"):
        trie.update({struct.pack("=I4s", 33, bytes(4)): PRESENT})
    assert trie.entries() == {}


def test_a_map_closes_its_descriptor_once() -> None:
    trie = Map.create(MAPS["ipmasq_v4"])
    number = trie.fd
    trie.close()
    taken = os.open("/dev/null", os.O_RDONLY)  # the number is free, and somebody else's from here on
    assert taken == number
    trie.close()
    del trie
    os.close(taken)  # EBADF, if one of the two closed it
