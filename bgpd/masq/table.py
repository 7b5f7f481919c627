"""The table that masquerades, `inet bgpd`: what its rules say, how one becomes another, what is wrong with one. Pure.

A flow from a pod of this node that leaves the node is looked at once, with its first packet, after services have
been translated to their endpoints (netfilter's nat hook in POSTROUTING; see RFC 2663 for the terms). An eBPF program
says whether the list covers its destination. conntrack remembers the answer, so that neither an edit of the list nor
one of this table changes an open flow, and replies to connections that came in never get here.

```
chain postrouting { type nat hook postrouting priority srcnat - 1;
    ip saddr @pods4 goto decide4     # the same for IPv6
}
chain decide4 {
    ip daddr @pods4 return           # pods of one node; kube-proxy translates a pod that reaches itself by a service
    ip daddr @kept4 goto keep4       # other pods of the cluster, multicast
    tcp flags & (fin|syn|rst|ack) != syn goto keep4  # open for longer than conntrack knows of it
    <eBPF: not in the list> masquerade fully-random  # or: snat to ADDRESS
    goto keep4
}
chain keep4 {
    meta mark != 0 return            # kube-proxy marks what it masquerades itself
    snat to ip saddr                 # keeps the address, whatever rule comes behind: flannel --ip-masq, ipMasq of CNI
}
```

What is addressed to the node itself never comes to POSTROUTING. `fully-random` as in kube-proxy and ip-masq-agent:
two flows racing for one port would lose a packet. What comes in the middle of a TCP connection that conntrack does
not know may answer one that came in before this table did, or belong to one whose translation went with its
interface, as `masquerade` has it. The two cannot be told apart: both keep their address, and the second is reset by
its other end.

A change is one transaction that touches what differs and nothing else. For a packet a table that is replaced is not
atomic: one that meets the old base chain and the new, or a set that is exchanged for another, while the transaction
is committed may find both empty, and its flow leaves with the pod's address (13 of 8,780 flows under a storm of
replacements on Linux 6.18, none since). Only a table that somebody else has edited is replaced as a whole.

This does not decide what is listed, nor which prefixes are pods: `masq.plan` does. `netlink.owntables` tells the
kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address

from bgpd.model.prefix import Address, Prefix
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.ipheader import IpHeader
from bgpd.netlink.nftmessage import Attributes, Message
from bgpd.netlink.nfttable import Parts, TableKind, differences, programs_asked

NAME = "bgpd"
BASE = "postrouting"
POSTROUTING_HOOK = 4  # NF_INET_POST_ROUTING
PRIORITY = 99  # one before `srcnat`, where everybody else translates: the first translation counts
MULTICAST: Mapping[int, Prefix] = {4: IPv4Network("224.0.0.0/4"), 6: IPv6Network("ff00::/8")}
TCP_FLAGS_AT, SYN_OF = 13, (b"\x17", b"\x02")  # FIN, SYN, RST, ACK; RFC 9293 section 3.1
_PROGRAM_COMMENT = "eBPF program {}: not in the list"


@dataclass(frozen=True, slots=True)
class Side:
    """One family. `pods`: of this node, `kept`: where they keep their address besides; the `fewest` prefixes of each.

    `snat_to` None: the address of the interface that a flow leaves by.
    """

    pods: tuple[Prefix, ...]
    kept: tuple[Prefix, ...]
    snat_to: Address | None


@dataclass(frozen=True, slots=True)
class Table:
    """All that the table says. A side that is None has no rules: that family is left alone.

    `program_id` is the kernel's number of the program pinned at `program`: a rule goes on with the one it was made
    with when another is pinned. `damage` says what is wrong with a table that was found; a wanted one has none.
    """

    program: str
    program_id: int
    ipv4: Side | None
    ipv6: Side | None
    damage: str = ""


class _Layout(IpHeader):
    """And how the objects of a family are called here."""

    __slots__ = ()

    @property
    def decide(self) -> str:
        return f"decide{self.version}"

    @property
    def keep(self) -> str:
        return f"keep{self.version}"

    @property
    def pods(self) -> str:
        return f"pods{self.version}"

    @property
    def kept(self) -> str:
        return f"kept{self.version}"


_LAYOUTS = _Layout.of(4), _Layout.of(6)


def side(pods: Iterable[Prefix], kept: Iterable[Prefix], snat_to: Address | None) -> Side:
    """A side in the form in which it can be compared; multicast is never translated."""
    pods = nft.fewest(pods)
    return Side(pods, nft.fewest([*kept, MULTICAST[pods[0].version]]), snat_to)


# --- the table as messages ------------------------------------------------------------------------------------------


def update(have: Table, want: Table) -> Iterator[Message]:
    """What is the same in both is not touched. `have` without sides: nothing is there but the table."""
    old, new = _sets(have), _sets(want)
    rules_differ = _chains(have) != _chains(want)
    if rules_differ and old:
        yield nft.no_rules(NAME)
    yield from (nft.no_chain(NAME, name) for name in _chains(have).keys() - _chains(want).keys())
    yield from (nft.no_set(NAME, name) for name in old.keys() - new.keys())
    for number, (name, (version, prefixes)) in enumerate(new.items(), 1):
        if name not in old:
            yield nft.prefix_set(NAME, name, version, number)
        yield from nft.set_contents(NAME, name, old[name][1] if name in old else (), prefixes)
    if rules_differ:
        yield from _rules(want)


def _rules(table: Table) -> Iterator[Message]:
    """The chains, all of them before the first rule that goes to one, and the rules."""
    chains = _chains(table)
    for name in chains:
        yield nft.chain(NAME, name, hook=POSTROUTING_HOOK if name == BASE else None, priority=PRIORITY)
    for name, rules in chains.items():
        for expressions, comment in rules:
            yield nft.rule(NAME, name, expressions, comment)


def _sets(table: Table) -> dict[str, tuple[int, tuple[Prefix, ...]]]:
    """Family and content of each set, by name."""
    sets: dict[str, tuple[int, tuple[Prefix, ...]]] = {}
    for layout, family in _families(table):
        sets[layout.pods] = layout.version, family.pods
        sets[layout.kept] = layout.version, family.kept
    return sets


def _families(table: Table) -> Iterator[tuple[_Layout, Side]]:
    for layout, family in zip(_LAYOUTS, (table.ipv4, table.ipv6), strict=True):
        if family is not None:
            yield layout, family


def _chains(table: Table) -> dict[str, list[tuple[Sequence[bytes], str]]]:
    """The rules, each with its comment, by chain."""
    chains: dict[str, list[tuple[Sequence[bytes], str]]] = {}
    for layout, family in _families(table):
        source = (*layout.is_family, nft.payload(*layout.source))
        destination = (*layout.is_family, nft.payload(*layout.destination))
        decide = nft.verdict(nft.Verdict.GOTO, layout.decide)
        keep = nft.verdict(nft.Verdict.GOTO, layout.keep)
        chains.setdefault(BASE, []).append(((*source, nft.in_set(layout.pods), decide), ""))
        chains[layout.decide] = [
            ((*destination, nft.in_set(layout.pods), nft.verdict(nft.Verdict.RETURN)), "pods of this node"),
            ((*destination, nft.in_set(layout.kept), keep), ""),
            ((*_opened_before(), keep), "open for longer than conntrack knows"),
            (
                (nft.asks_program(table.program), *_translation(layout, family)),
                _PROGRAM_COMMENT.format(table.program_id),
            ),
            ((keep,), ""),
        ]
        chains[layout.keep] = [
            ((*_marked(), nft.verdict(nft.Verdict.RETURN)), "kube-proxy masquerades these"),
            ((*source, nft.snat(layout.nfproto)), "no later rule translates it"),
        ]
    return chains


def _opened_before() -> tuple[bytes, ...]:
    mask, syn = SYN_OF
    return (
        nft.meta(nft.Meta.L4PROTO),
        nft.compare(nft.Compare.EQUAL, bytes([nft.IPPROTO_TCP])),
        nft.payload(nft.Header.TRANSPORT, TCP_FLAGS_AT, 1),
        nft.masked(mask),
        nft.compare(nft.Compare.NOT_EQUAL, syn),
    )


def _marked() -> tuple[bytes, ...]:
    return nft.meta(nft.Meta.MARK), nft.compare(nft.Compare.NOT_EQUAL, bytes(4))


def _translation(layout: _Layout, family: Side) -> tuple[bytes, ...]:
    if family.snat_to is None:
        return (nft.masquerade(nft.FULLY_RANDOM),)
    return nft.value(family.snat_to.packed), nft.snat(layout.nfproto, nft.FULLY_RANDOM)


# --- and back -------------------------------------------------------------------------------------------------------


def found_in(shown: Parts) -> Table:
    """What the kernel shows as a table, with all that we would have made otherwise named in `damage`."""
    program, program_id = "", 0
    sides: dict[int, Side | None] = {4: None, 6: None}
    for layout in _LAYOUTS:
        asked = shown.rules.get(layout.decide, ())
        if layout.pods in shown.sets and layout.kept in shown.sets:
            pods, kept = (nft.prefixes_in(shown.sets[name], layout.version) for name in (layout.pods, layout.kept))
            sides[layout.version] = Side(pods, kept, _snat_to(asked, layout))
        program, program_id = next(programs_asked(asked, _PROGRAM_COMMENT), (program, program_id))
    found = Table(program, program_id, sides[4], sides[6])
    return replace(found, damage=differences(_sets(found), _rules(found), shown))


def _snat_to(rules: Sequence[Attributes], layout: _Layout) -> Address | None:
    """The constant address that one of the rules translates to."""
    for rule in rules:
        for expression in nft.expressions_of(rule):
            data = nft.constant(expression)
            if data is not None and len(data) == layout.width:
                return ip_address(data)
    return None


KEY = f"table inet {NAME}"
TABLES: Mapping[str, TableKind[Table]] = {
    KEY: TableKind(
        name=NAME,
        family=nft.NFPROTO_INET,
        found_in=found_in,
        empty=lambda want: replace(want, ipv4=None, ipv6=None),
        update=update,
        pins=lambda table: table.program,
    )
}
