"""The tables that enforce NetworkPolicy: what they hold, and how they become messages to nf_tables and back. Pure.

What the rules say and where they stand is told by `chains`, what is allowed by nobody here. `netlink.owntables` tells
the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import PurePath

from bgpd.model.prefix import Address
from bgpd.netlink import nftfilter as filters
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.nftfilter import KeyType
from bgpd.netlink.nftmessage import Message
from bgpd.netlink.nfttable import Parts, TableKind, differences, programs_asked
from bgpd.policy.chains import (
    ASKED,
    ASKING,
    PROGRAM_COMMENT,
    UNSPECIFIED,
    Family,
    Rules,
    bridge_chains,
    hooks,
    inet_chains,
    judge,
)

NAME = "bgpd-policy"

_KEYS: Mapping[str, tuple[tuple[KeyType, ...], int]] = {
    "links": ((KeyType.IFINDEX,), 4),
    "hardware": ((KeyType.IFINDEX, KeyType.ETHER_ADDR), 12),
    "sources4": ((KeyType.IFINDEX, KeyType.ETHER_ADDR, KeyType.IPV4_ADDR), 16),
    "sources6": ((KeyType.IFINDEX, KeyType.ETHER_ADDR, KeyType.IPV6_ADDR), 28),
}
"""The sets: the types of their keys' parts, and the bytes of a key."""

_KEYS_OF = {
    Family.INET: {
        **_KEYS,
        "parents": _KEYS["links"],
        "stack4": ((KeyType.IPV4_ADDR,), 4),
        "stack6": ((KeyType.IPV6_ADDR,), 16),
    },
    Family.BRIDGE: _KEYS,
}


@dataclass(frozen=True, slots=True)
class Source:
    """What may come in by a link: `mac` and `addresses` are the pod's, `ifindex` is the link's end at the node."""

    ifindex: int
    mac: bytes
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """All that a table says. `sets` has the keys of each set, by its name.

    `directory` has the pins of the programs, `ids` the kernel's numbers of those that are asked, in the order of the
    rules: a rule goes on with the one that it was made with when another is pinned. `judged`: the IP versions whose
    packets are judged, with a VLAN tag or without; in the inet table always both. `damage` says what is wrong with a
    table that was found.
    """

    family: Family
    directory: str
    ids: tuple[int, ...]
    judged: frozenset[int]
    sets: Mapping[str, frozenset[bytes]]
    damage: str = ""

    @property
    def rules_from(self) -> tuple[object, ...]:
        """All that the chains and rules depend on."""
        return self.family, self.directory, self.ids, self.judged, bool(self.sets), self.has_links

    @property
    def has_links(self) -> bool:
        """Else no packet is asked for its source: a chain at a hook costs each packet, however short it is."""
        return bool(self.sets.get("links"))


def inet_table(
    directory: str,
    policy: int,
    policy_reply: int,
    sources: Iterable[Source],
    stack: Iterable[tuple[int, Address]] = (),
    policy_bridge: int = 0,
) -> Table:
    """`sources`: behind links that are routed; `stack`: of pods that send by the node's stack, each with the ifindex
    of its parent. The numbers are those of the programs.
    """
    told = set(stack)
    sets = {f"stack{v}": frozenset(each.packed for _, each in told if each.version == v) for v in (4, 6)}
    sets["parents"] = frozenset(filters.ifindex(parent) for parent, _ in told)
    tracking = (policy_bridge, policy_bridge) if told else ()
    versions = frozenset((4, 6))
    return Table(Family.INET, directory, (policy, policy_reply, *tracking), versions, _sets_of(sources) | sets)


def bridge_table(
    directory: str, policy_astray: int, policy_bridge: int, sources: Iterable[Source], judged: Iterable[int]
) -> Table:
    """`sources`: behind ports of bridges. `judged`: versions that no bridge hands to the inet table."""
    versions = frozenset(judged)
    ids = (policy_astray, policy_bridge, policy_bridge, policy_bridge)
    return Table(Family.BRIDGE, directory, ids, versions, _sets_of(sources))


def _sets_of(sources: Iterable[Source]) -> dict[str, frozenset[bytes]]:
    found: dict[str, set[bytes]] = {name: set() for name in _KEYS}
    for source in sources:
        for name, key in _keys_of(source):
            found[name].add(key)
    return {name: frozenset(keys) for name, keys in found.items()}


@lru_cache(1_024)  # a pod that starts waits for this, and all others are as they were
def _keys_of(source: Source) -> tuple[tuple[str, bytes], ...]:
    link = filters.ifindex(source.ifindex)
    return (
        ("links", link),
        ("hardware", filters.key(link, source.mac)),
        ("sources6", filters.key(link, source.mac, UNSPECIFIED[6])),  # RFC 4862: of whom has no address yet
        *((f"sources{each.version}", filters.key(link, source.mac, each.packed)) for each in source.addresses),
    )


# --- the table as messages ------------------------------------------------------------------------------------------


def update(have: Table, want: Table) -> Iterator[Message]:
    """From one to the other; what is the same in both is not touched."""
    return filters.in_family(_update(have, want), want.family)


def _update(have: Table, want: Table) -> Iterator[Message]:
    same_rules = have.rules_from == want.rules_from
    if not same_rules:
        old = _chains(have)
        if old:
            yield nft.no_rules(NAME)
        yield from (nft.no_chain(NAME, name) for name in old.keys() - _chains(want).keys())
    for number, (name, keys) in enumerate(want.sets.items(), 1):
        if name not in have.sets:
            yield filters.key_set(NAME, name, *_KEYS_OF[want.family][name], number)
        yield from filters.set_keys(NAME, name, have.sets.get(name, frozenset()), keys)
    if not same_rules:
        yield from _rules(want)


def _rules(table: Table) -> Iterator[Message]:
    """The chains, all of them before the first rule that goes to one, and the rules."""
    chains, hooked = _chains(table), hooks(table.family)
    for name in chains:
        hook, priority = hooked.get(name, (None, 0))
        yield nft.chain(NAME, name, hook=hook, priority=priority, kind="filter")
    for name, rules in chains.items():
        for expressions, comment in rules:
            yield nft.rule(NAME, name, expressions, comment)


def _chains(table: Table) -> dict[str, Rules]:
    """None of a table that is only just there."""
    if not table.sets:
        return {}
    if table.family is Family.INET:
        return inet_chains(table.directory, table.ids, has_links=table.has_links)
    return bridge_chains(table.directory, table.ids, table.judged, has_links=table.has_links)


# --- and back -------------------------------------------------------------------------------------------------------


def found_in(family: Family, shown: Parts) -> Table:
    """What the kernel shows as a table, with what we would have made otherwise named in `damage`."""
    judged = frozenset(version for version in (4, 6) if family is Family.INET or judge(version) in shown.chains)
    asked = [
        found
        for name in ASKING[family]
        for found in programs_asked(shown.rules.get(name, ()), PROGRAM_COMMENT)
    ]
    found = Table(
        family,
        str(PurePath(asked[0][0]).parent) if asked else "",
        tuple(number for _, number in asked),
        judged,
        {name: filters.keys_in(shown.sets[name]) for name in _KEYS_OF[family] if name in shown.sets},
    )
    return replace(found, damage=_damage(found, shown))


def _damage(found: Table, shown: Parts) -> str:
    """How what is there differs from what `found` would have been made of; empty: not at all."""
    keys = _KEYS_OF[found.family]
    if shown.sets.keys() == keys.keys() and len(found.ids) not in ASKED[found.family]:
        return "its chains do not ask our programs"
    return differences(keys, _rules(found), shown)


def key(family: Family) -> str:
    return f"table {family.name.lower()} {NAME}"


TABLES: Mapping[str, TableKind[Table]] = {
    key(family): TableKind(
        name=NAME,
        family=family,
        found_in=partial(found_in, family),
        empty=lambda want: Table(want.family, "", (), frozenset(), {}),
        update=update,
        pins=lambda table: table.directory,
    )
    for family in Family
}
