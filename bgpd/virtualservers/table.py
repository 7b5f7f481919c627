"""The table that spreads traffic, `inet bgpd-virtual-servers`: what it says, how one becomes another. Pure.

```
chain prerouting { type nat hook prerouting priority dstnat - 1;   # and the same for output: this node's own traffic
    meta l4proto . ip daddr . th dport vmap @frontends4             # the same for IPv6
}
chain tcp-192.0.2.1-80 {
    dnat ip addr . port to numgen inc mod 120 map @to-tcp-192.0.2.1-80
}
chain forward { type filter hook forward priority filter;
    ip daddr @addresses4 ct state invalid drop
    ip daddr @addresses4 meta l4proto tcp reject with tcp reset     # a port that nothing serves: it would go
    ip daddr @addresses4 reject                                     # back to the ToR that it came from, for ever
}
chain postrouting { type nat hook postrouting priority srcnat - 2;
    ip saddr . ip daddr @itself4 masquerade                         # a pod that reaches itself
}
```

conntrack remembers the choice, so an open connection stays with its pod whatever becomes of the table, and translates
the answers, which pods send by way of this node. Nobody else's source address is touched. No interface has to have a
served address.

A virtual server has `SLOTS` slots, 0 to 119, which its pods share: round-robin deals them out in turn, least
connections to whoever has the fewest. A change of pods is a change of elements: the rule stays as it is. Were the
modulus the number of pods, packets on their way through the old rule while a transaction is committed would find no
pod under their number, and would go on untranslated. 120 has enough divisors for the deal to come out even.

This does not decide who gets a slot: `plan` does. `netlink.owntables` tells the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TypeAlias

from bgpd.model.policy import Protocol
from bgpd.model.virtualserver import Frontend, Member
from bgpd.netlink import nftfilter, nftmap
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.ipheader import IpHeader
from bgpd.netlink.nftfilter import ConntrackState, KeyType, key
from bgpd.netlink.nftmessage import Compare, Header, Message, Meta
from bgpd.netlink.nfttable import Parts, TableKind, differences

Slots: TypeAlias = tuple[Member, ...]

NAME = "bgpd-virtual-servers"
SLOTS = 120
PREROUTING, OUTPUT, FORWARD, POSTROUTING = "prerouting", "output", "forward", "postrouting"
_HOOKS = {
    PREROUTING: (0, -101, "nat"),
    OUTPUT: (3, -101, "nat"),
    FORWARD: (2, 0, "filter"),
    POSTROUTING: (4, 98, "nat"),
}
_DESTINATION_PORT_AT = 2  # of TCP and UDP


@dataclass(frozen=True, slots=True)
class Table:
    """Who gets the connections to each frontend. None: nothing is there but the table itself.

    `damage` says what is wrong with a table that was found; a wanted one has none.
    """

    served: Mapping[Frontend, Slots] | None
    damage: str = ""


class _Layout(IpHeader):
    """And how the objects of a family are called here."""

    __slots__ = ()

    @property
    def frontends(self) -> str:
        return f"frontends{self.version}"

    @property
    def addresses(self) -> str:
        return f"addresses{self.version}"

    @property
    def itself(self) -> str:
        return f"itself{self.version}"


_LAYOUTS = {version: _Layout.of(version) for version in (4, 6)}


# --- the table as messages ------------------------------------------------------------------------------------------


def update(have: Table, want: Table) -> Iterator[Message]:
    """What is the same in both is not touched."""
    old, new = have.served or {}, want.served or {}
    if have.served is None and want.served is not None:
        yield from _frame()
    for number, frontend in enumerate(_ordered(new.keys() - old.keys()), 3 * len(_LAYOUTS) + 1):
        yield from _added(frontend, new[frontend], number)
    for frontend in _ordered(new.keys() & old.keys()):
        yield from _dealt(frontend, old[frontend], new[frontend])
    for version, layout in _LAYOUTS.items():
        yield from nftmap.map_contents(NAME, layout.frontends, _frontends(old, version), _frontends(new, version))
        yield from nftfilter.set_keys(NAME, layout.addresses, _addresses(old, version), _addresses(new, version))
        yield from nftfilter.set_keys(NAME, layout.itself, _itself(old, version), _itself(new, version))
    for frontend in _ordered(old.keys() - new.keys()):
        yield from _removed(frontend)


def _ordered(frontends: Iterable[Frontend]) -> list[Frontend]:
    return sorted(frontends, key=lambda frontend: frontend.order)


def _frame() -> Iterator[Message]:
    """Sets and chains that are there with any number of frontends."""
    for number, layout in enumerate(_LAYOUTS.values()):
        types, width = (KeyType.INET_PROTO, layout.address_type, KeyType.INET_SERVICE), 4 + layout.width + 4
        yield nftmap.verdict_map(NAME, layout.frontends, types, width, 3 * number + 1)
        address = (layout.address_type,)
        yield nftfilter.key_set(NAME, layout.addresses, address, layout.width, 3 * number + 2)
        yield nftfilter.key_set(NAME, layout.itself, address * 2, 2 * layout.width, 3 * number + 3)
    for name, (hook, priority, kind) in _HOOKS.items():
        yield nft.chain(NAME, name, hook=hook, priority=priority, kind=kind)
    for name, rules in _frame_rules().items():
        yield from (nft.rule(NAME, name, expressions) for expressions in rules)


def _frame_rules() -> dict[str, list[Sequence[bytes]]]:
    rules: dict[str, list[Sequence[bytes]]] = {name: [] for name in _HOOKS}
    for layout in _LAYOUTS.values():
        port = (Header.TRANSPORT, _DESTINATION_PORT_AT, 2)
        wanted = (*layout.is_family, *nftfilter.joined(Meta.L4PROTO, layout.destination, port))
        for name in (PREROUTING, OUTPUT):
            rules[name].append((*wanted, nftmap.verdict_mapped(layout.frontends)))
        ours = (*layout.is_family, nft.payload(*layout.destination), nft.in_set(layout.addresses))
        tcp = (nft.meta(Meta.L4PROTO), nft.compare(Compare.EQUAL, bytes([Protocol.TCP])))
        rules[FORWARD] += [
            (*ours, *_invalid(), nft.verdict(nft.Verdict.DROP)),
            (*ours, *tcp, nftmap.tcp_reset()),
            (*ours, nftmap.port_unreachable()),
        ]
        ends = nftfilter.joined(layout.source, layout.destination)
        rules[POSTROUTING].append(
            (*layout.is_family, *ends, nft.in_set(layout.itself), nft.masquerade(nft.FULLY_RANDOM))
        )
    return rules


def _invalid() -> tuple[bytes, ...]:
    """A reset for a packet out of place would end a connection that goes on."""
    bit = struct.pack("=I", ConntrackState.INVALID)
    return nftfilter.conntrack_state(), nft.masked(bit), nft.compare(Compare.NOT_EQUAL, bytes(4))


def _added(frontend: Frontend, slots: Slots, number: int) -> Iterator[Message]:
    layout, name = _LAYOUTS[frontend.address.version], _name(frontend)
    types, width = (layout.address_type, KeyType.INET_SERVICE), layout.width + 4
    yield nftmap.number_map(NAME, f"to-{name}", types, width, number)
    yield from nftmap.map_contents(NAME, f"to-{name}", {}, _values(slots))
    yield nft.chain(NAME, name)
    yield nft.rule(NAME, name, _choice(layout, name, len(slots)))


def _dealt(frontend: Frontend, old: Slots, new: Slots) -> Iterator[Message]:
    name = _name(frontend)
    if len(old) != len(new):
        yield nft.no_rules_of(NAME, name)
    yield from nftmap.map_contents(NAME, f"to-{name}", _values(old), _values(new))
    if len(old) != len(new):
        yield nft.rule(NAME, name, _choice(_LAYOUTS[frontend.address.version], name, len(new)))


def _removed(frontend: Frontend) -> Iterator[Message]:
    """After what leads to its chain."""
    name = _name(frontend)
    yield nft.no_rules_of(NAME, name)
    yield nft.no_chain(NAME, name)
    yield nft.no_set(NAME, f"to-{name}")


def _choice(layout: _Layout, name: str, slots: int) -> tuple[bytes, ...]:
    return nftmap.counted_up(slots), nftmap.mapped(f"to-{name}"), nftmap.dnat(layout.nfproto, layout.width)


def _name(frontend: Frontend) -> str:
    """A chain's: nft takes letters, digits, dots, dashes and slashes."""
    address = str(frontend.address) if frontend.address.version == 4 else frontend.address.packed.hex()
    return f"{frontend.protocol.name.lower()}-{address}-{frontend.port}"


# --- contents of sets and maps --------------------------------------------------------------------------------------


def _frontends(served: Mapping[Frontend, Slots], version: int) -> dict[bytes, str]:
    return {
        key(bytes([each.protocol]), each.address.packed, _port(each.port)): _name(each)
        for each in served
        if each.address.version == version
    }


def _addresses(served: Mapping[Frontend, Slots], version: int) -> frozenset[bytes]:
    return frozenset(each.address.packed for each in served if each.address.version == version)


def _itself(served: Mapping[Frontend, Slots], version: int) -> frozenset[bytes]:
    members = {member.address for slots in served.values() for member in slots}
    return frozenset(2 * address.packed for address in members if address.version == version)


def _values(slots: Slots) -> dict[bytes, bytes]:
    return {
        nftmap.index(number): key(member.address.packed, _port(member.port)) for number, member in enumerate(slots)
    }


def _port(port: int) -> bytes:
    return struct.pack(">H", port)


# --- and back -------------------------------------------------------------------------------------------------------


def found_in(shown: Parts) -> Table:
    """What the kernel shows as a table, with what we would have made otherwise named in `damage`."""
    if not shown.sets and not shown.chains:
        return Table(None)
    served: dict[Frontend, Slots] = {}
    leads = {}
    for layout in _LAYOUTS.values():
        for packed, chain in nftmap.chains_in(shown.sets.get(layout.frontends, ())).items():
            frontend = _frontend(packed, layout)
            leads[frontend] = chain
            served[frontend] = _slots(nftmap.values_in(shown.sets.get(f"to-{_name(frontend)}", ())), layout)
    table = Table(served)
    return replace(table, damage=_damage(table, leads, shown))


def _damage(table: Table, leads: Mapping[Frontend, str], shown: Parts) -> str:
    served = table.served or {}
    wanted = [*update(Table(None), table)]
    sets = [nft.text(nft.attributes(each.body), 2) for each in wanted if each.kind is nft.Kind.NEWSET]
    others = [each for each in wanted if each.kind in (nft.Kind.NEWCHAIN, nft.Kind.NEWRULE)]
    found = differences(sets, others, shown)
    if found:
        return found
    for frontend, chain in leads.items():
        if chain != _name(frontend):
            return f"{frontend} leads to {chain}"
    for version, layout in _LAYOUTS.items():
        for name, keys in (
            (layout.addresses, _addresses(served, version)),
            (layout.itself, _itself(served, version)),
        ):
            if nftfilter.keys_in(shown.sets[name]) != keys:
                return f"set {name} is another"
    return ""


def _frontend(packed: bytes, layout: _Layout) -> Frontend:
    address = ip_address(packed[4 : 4 + layout.width])
    (port,) = struct.unpack_from(">H", packed, 4 + layout.width)
    return Frontend(address, Protocol(packed[0]), port)


def _slots(values: Mapping[bytes, bytes], layout: _Layout) -> Slots:
    """In the order of their numbers; that none is left out is told by the modulus of the rule."""
    ordered = sorted((struct.unpack("=I", number)[0], value) for number, value in values.items())
    return tuple(
        Member(ip_address(value[: layout.width]), struct.unpack_from(">H", value, layout.width)[0])
        for _, value in ordered
    )


KEY = f"table inet {NAME}"
TABLES: Mapping[str, TableKind[Table]] = {
    KEY: TableKind(
        name=NAME, family=nft.NFPROTO_INET, found_in=found_in, empty=lambda want: Table(None), update=update,
        pins=lambda table: "",
    )
}  # fmt: skip
