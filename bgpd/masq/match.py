"""Finds the longest of many prefixes that covers an address or another prefix, as an LPM trie does. Pure.

For explaining and linting. The kernel has its own trie; nothing here is asked per packet.
"""

from __future__ import annotations

from collections.abc import Iterable

from bgpd.model.prefix import Address, Prefix


class PrefixTable:
    """Prefixes of both families, by length."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        tables: dict[tuple[int, int], dict[int, Prefix]] = {}
        for prefix in prefixes:
            shift = prefix.max_prefixlen - prefix.prefixlen
            bits = int(prefix.network_address) >> shift
            tables.setdefault((prefix.version, shift), {})[bits] = prefix
        self._longest_first = sorted(tables.items())

    def match(self, address: Address) -> Prefix | None:
        """The longest prefix that holds `address`."""
        return self._covering(address.version, int(address), 0)

    def cover(self, prefix: Prefix, *, shorter: bool = False) -> Prefix | None:
        """The longest prefix that holds all of `prefix`; with `shorter`, one that holds more than that."""
        shift = prefix.max_prefixlen - prefix.prefixlen + shorter
        return self._covering(prefix.version, int(prefix.network_address), shift)

    def _covering(self, version: int, bits: int, least_shift: int) -> Prefix | None:
        for (family, shift), table in self._longest_first:
            if family == version and shift >= least_shift:
                found = table.get(bits >> shift)
                if found is not None:
                    return found
        return None
