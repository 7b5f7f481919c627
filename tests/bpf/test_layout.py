"""The Python twins of what C defines: by BTF, by a round trip, by an oracle. Needs no privileges."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import struct
import subprocess
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.datapath import layout, loader
from bgpd.datapath.layout import Action, EventFlag, PeerFlag, PolicyVerdict, RuleFlag, Verdict
from bgpd.model.lpm import LpmKey
from bgpd.model.prefix import sort_key

OBJECTS = sorted(path.stem for path in loader.OBJECTS.glob("*.o"))
BITS = 8


@pytest.fixture(scope="module", params=OBJECTS)
def types(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return btf(request.param)


def btf(name: str) -> list[dict[str, Any]]:
    """The types of an object."""
    bpftool = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if bpftool is None:
        pytest.skip("not installed: bpftool")
    command = [bpftool, "--json", "btf", "dump", "file", str(loader.shipped(name))]
    found: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[
        "types"
    ]
    return found


def enum(types: list[dict[str, Any]], name: str) -> dict[str, int]:
    (found,) = (each for each in types if each["kind"] == "ENUM" and each["name"] == name)
    return {each["name"]: each["val"] for each in found["values"]}


@pytest.mark.parametrize("name", layout.STRUCTS)
def test_a_struct_has_the_fields_that_python_packs(name: str) -> None:
    """In the same order, at the same offsets, with the same size as a whole, wherever it is used."""
    structs = [each for each in itertools.chain(*map(btf, OBJECTS)) if each["kind"] == "STRUCT"]
    found, *others = [
        {member["name"]: (member["bits_offset"], each["size"]) for member in each["members"]}
        for each in structs
        if each["name"] == name
    ]
    formats = layout.STRUCTS[name]
    ends = [struct.calcsize("".join(list(formats.values())[:count])) for count in range(1, len(formats) + 1)]
    starts = [end - struct.calcsize(each) for end, each in zip(ends, formats.values(), strict=True)]
    ours = {field: (start * BITS, ends[-1]) for field, start in zip(formats, starts, strict=True)}
    assert [*found.items()] == [*ours.items()]
    assert all(other == found for other in others)


def test_the_objects_have_this_abi(types: list[dict[str, Any]]) -> None:
    assert enum(types, "bgpd_abi") == {"BGPD_ABI": layout.ABI}


def test_verdicts_have_the_numbers_that_c_gives_them() -> None:
    """They come to BTF only where a map or a function has them for a type, so this reads the header."""
    header = (loader.OBJECTS.parents[2] / "bpf/include/bgpd/layout.h").read_text()
    for prefix, verdicts in (("MASQ", Verdict), ("POLICY", PolicyVerdict)):
        body = header.partition(f"enum {prefix.lower()}_verdict {{")[2].partition("}")[0]
        found = {name: int(number) for name, number in re.findall(rf"\t{prefix}_(\w+) = (\d+),", body)}
        assert found == {each.name: each.value for each in verdicts}


def test_flags_and_actions_of_policies_have_the_numbers_that_c_gives_them() -> None:
    header = (loader.OBJECTS.parents[2] / "bpf/include/bgpd/layout.h").read_text()
    bits = {name: 1 << int(bit) for name, bit in re.findall(r"\tPOLICY_(\w+) = 1 << (\d+),", header)}
    assert {each.name: each.value for each in (*PeerFlag, *RuleFlag, *EventFlag)} == bits
    assert all(f"\tPOLICY_{each.name} = {each.value}," in header for each in Action)


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_key_is_its_prefix_and_back(address: Any, length: int) -> None:
    prefix = ip_network((address, min(length, address.max_prefixlen)), strict=False)
    key = LpmKey.of(prefix)
    assert (key.prefix, str(key)) == (prefix, str(prefix))
    assert LpmKey.read(bytes(key)) == key


def test_a_key_has_cilium_s_bytes() -> None:
    """The length in host order, then the address: as Go's struct of a uint32 and a [4]byte."""
    assert LpmKey.of(ip_network("11.11.248.0/21")) == struct.pack("=I", 21) + bytes([11, 11, 248, 0])


@given(st.ip_addresses(), st.integers(0, 128))
def test_host_bits_that_somebody_wrote_are_no_part_of_an_entry(address: Any, length: int) -> None:
    length = min(length, address.max_prefixlen)
    raw = struct.pack("=I", length) + address.packed
    assert LpmKey.read(raw) == LpmKey.of(ip_network((address, length), strict=False))


@given(st.sets(st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), max_size=9))
def test_keys_are_ordered_as_prefixes_are(pairs: set[Any]) -> None:
    """The most specific first."""
    found = {ip_network(pair, strict=False) for pair in pairs}
    by_key = sorted(map(LpmKey.of, found), key=lambda key: key.order)
    assert [key.prefix for key in by_key] == sorted(found, key=sort_key)
