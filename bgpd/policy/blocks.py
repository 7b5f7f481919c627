"""Tells which ipBlocks an address is in, and cuts the address space where the answer changes. Pure.

Many rules may name the same prefixes, so each is kept once, with the groups of peers that take it in or leave it out.
The prefixes are also the entries of the kernel's tries: the longest that covers an address knows all about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from bgpd.model.policy import IpBlock
from bgpd.model.prefix import Prefix

_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2
_NONE: frozenset[int] = frozenset()


class _Member(NamedTuple):
    """One block of one group; a group may have several, and each has its own exceptions."""

    group: int
    block: int


class _Node(NamedTuple):
    takes: set[_Member]
    leaves: set[_Member]


class Blocks:
    """The ipBlocks of numbered groups."""

    def __init__(self) -> None:
        self._groups: dict[int, tuple[IpBlock, ...]] = {}
        self._tables: dict[tuple[int, int], dict[int, _Node]] = {}  # by version and by bits behind the prefix
        self._answers: dict[tuple[int, ...], frozenset[int]] = {}  # by the nodes on the way, until one changes

    def __bool__(self) -> bool:
        return bool(self._groups)

    def put(self, group: int, blocks: Sequence[IpBlock]) -> None:
        self._answers.clear()
        self._groups[group] = tuple(blocks)
        for index, block in enumerate(blocks):
            member = _Member(group, index)
            self._node(block.cidr).takes.add(member)
            for prefix in block.excepts:
                self._node(prefix).leaves.add(member)

    def drop(self, group: int) -> None:
        self._answers.clear()
        for index, block in enumerate(self._groups.pop(group)):
            for prefix in (block.cidr, *block.excepts):
                self._remove(prefix, _Member(group, index))

    def holding(self, address: bytes) -> frozenset[int]:
        """The groups that have the address, a struct policy_address, in one of their blocks."""
        if not self._tables:
            return _NONE
        if address.startswith(_MAPPED):
            return self._holding(4, int.from_bytes(address[len(_MAPPED) :], "big"), 0)
        return self._holding(6, int.from_bytes(address, "big"), 0)

    def classes(self) -> Iterator[tuple[Prefix, frozenset[int]]]:
        """Each prefix of a block or an exception, with the groups that have what no longer prefix covers in it."""
        for (version, shift), table in self._tables.items():
            network = IPv4Network if version == 4 else IPv6Network
            length = (32 if version == 4 else 128) - shift
            for bits in table:
                yield network((bits << shift, length)), self._holding(version, bits << shift, shift)

    def _holding(self, version: int, bits: int, least_shift: int) -> frozenset[int]:
        nodes = [
            node
            for (family, shift), table in self._tables.items()
            if family == version and shift >= least_shift and (node := table.get(bits >> shift)) is not None
        ]
        if not nodes:
            return _NONE
        at = tuple(map(id, nodes))
        held = self._answers.get(at)
        if held is None:
            takes = set().union(*(node.takes for node in nodes))
            members = takes.difference(*(node.leaves for node in nodes))
            held = self._answers[at] = frozenset(member.group for member in members)
        return held

    def _node(self, prefix: Prefix) -> _Node:
        table = self._tables.setdefault(_table_of(prefix), {})
        return table.setdefault(_bits_of(prefix), _Node(set(), set()))

    def _remove(self, prefix: Prefix, member: _Member) -> None:
        at, bits = _table_of(prefix), _bits_of(prefix)
        node = self._tables.get(at, {}).get(bits)
        if node is None:
            return
        node.takes.discard(member)
        node.leaves.discard(member)
        if not node.takes and not node.leaves:
            del self._tables[at][bits]
            if not self._tables[at]:
                del self._tables[at]


def _table_of(prefix: Prefix) -> tuple[int, int]:
    return prefix.version, prefix.max_prefixlen - prefix.prefixlen


def _bits_of(prefix: Prefix) -> int:
    return int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen)
