"""What the rules of the tables say that enforce NetworkPolicy, `inet bgpd-policy` and `bridge bgpd-policy`. Pure.

Every packet that the node forwards for a pod is shown to an eBPF program (bpf/policy.bpf.c), between the translation
of services (DNAT, in PREROUTING) and masquerading (SNAT, in POSTROUTING): both true ends are seen there, whatever
kube-proxy does. Who is the client of a flow is told by the kernel's connection tracking; the program judges each
packet by the rules of the moment. Nothing is attached to a pod.

```
table inet bgpd-policy {
    chain prerouting { type filter hook prerouting priority raw;
        iif @links goto source
    }
    chain source {                     # of pods behind a veth that is routed
        iif . ether saddr . ip saddr @sources4 return              # the same for IPv6
        ip6 saddr fe80::/10 iif . ether saddr @hardware return     # is never routed
        drop
    }
    chain forward { type filter hook forward priority filter - 1;
        meta l4proto {icmp, icmpv6} ct state related return        # errors of known flows
        ct direction reply goto replies
        <eBPF: policy> drop            # also what connection tracking does not know
    }
    chain replies { <eBPF: policy_reply> drop }

    # where there are pods on ipvlans of mode L3 or L3S, whose packets leave as if the node had sent them:
    chain postrouting { type filter hook postrouting priority srcnat - 1;
        meta priority 6267:3 meta priority set 0:0                 # nobody but we says so
        ip saddr @stack4 goto leaving                              # the same for IPv6
    }
    chain leaving { <eBPF: policy_bridge> drop; oif @parents meta priority set 6267:3 }
    chain input { type filter hook input priority filter - 1; ip daddr @stack4 goto entering }
    chain entering { <eBPF: policy_bridge> drop }                  # translated by a service, too
}
table bridge bgpd-policy {
    chain prerouting { type filter hook prerouting priority dstnat;
        ether type ip iif . ether saddr . ip saddr @sources4 return    # the same for IPv6 but ICMPv6: most frames
        iif @links goto source
    }
    chain source { as above, nothing with a VLAN tag, and ARP and neighbor discovery only of the pod's own addresses }
    chain forward { type filter hook forward priority filter - 2...
        ip6 saddr fe80::/10 iif @links goto on_link                # neighbor discovery, and nothing else
        oif @links jump to_pod
        meta protocol ip goto judge4   # where the bridge does not hand its frames to the table above
        ether type ip return           # else: it does
        meta protocol ip goto tagged4  # but never what has a VLAN tag
        meta protocol {8021q, 8021ad} goto below_tags      # of several: the program knows which a receiver takes off
    }
    chain to_pod {
        oif . ether daddr . ip daddr @sources4 return              # the same for IPv6; ARP
        <eBPF: policy_astray> drop     # broadcast, multicast: no rule knows these, but ingress rules the pod
    }
}
```

A bridge hands what it forwards to the first table if `bridge-nf-call-iptables` says so, as kube-proxy wants it (in
`bridge-nf-call-ip6tables` for IPv6). Where it does not, the second one asks a program that tracks flows itself. So it
does for what has a VLAN tag: `bridge-nf-filter-vlan-tagged` is off everywhere, and where it is on, both tables judge.
A bridge with `vlan_filtering` gives tags and takes them off, so how a frame came nobody sees in `forward`: there the
second one judges everything, both directions of each flow, whatever the first one is shown.

Of a pod in mode L3 connection tracking sees one direction, so the program that tracks flows is asked for those. What
it has let pass is told to the program at the parent, which finds a node's address there when it was masqueraded.

This does not decide what is allowed, nor which links are pods': the sets are `table`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TypeAlias

from bgpd.datapath.layout import ORIGIN_STACK
from bgpd.netlink import nftfilter as filters
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.ipheader import IpHeader
from bgpd.netlink.nftmessage import Compare, Header, Meta


class Family(IntEnum):
    """NFPROTO_*, of the two tables."""

    INET = nft.NFPROTO_INET
    BRIDGE = filters.NFPROTO_BRIDGE


PREROUTING_HOOK, INPUT_HOOK, FORWARD_HOOK, POSTROUTING_HOOK = 0, 1, 2, 4  # NF_INET_*, NF_BR_*
RAW = -300  # before connection tracking; `dstnat` of a bridge is the same number
FORWARD_PRIORITY = {
    Family.INET: -1,  # before `filter`, so that what we drop is counted nowhere else
    Family.BRIDGE: -2,  # before br_netfilter hands the frame to the inet hooks
}
BEFORE_SRCNAT = 99  # `srcnat` - 1: what a pod has sent still has its address
PROGRAM_COMMENT = "eBPF program {}: no rule allows it"
ASKING = {
    Family.INET: ("forward", "replies", "leaving", "entering"),
    Family.BRIDGE: ("to_pod", "judge4", "tagged4", "judge6", "tagged6", "below_tags"),
}
"""The chains that ask a program, in the order of the numbers of these."""
ASKED = {Family.INET: (2, 4), Family.BRIDGE: (4,)}  # by how many rules a table asks

ETHER_SOURCE, ETHER_DESTINATION = (Header.LINK, 6, 6), (Header.LINK, 0, 6)
_IPV4, _IPV6 = IpHeader.of(4), IpHeader.of(6)
IPV4_DESTINATION, IPV6_DESTINATION = _IPV4.destination, _IPV6.destination
IPV4_SOURCE, IPV6_SOURCE = _IPV4.source, _IPV6.source
ARP_HARDWARE, ARP_PROTOCOL = (Header.NETWORK, 8, 6), (Header.NETWORK, 14, 4)  # RFC 826, of Ethernet and IPv4
ADVERTISED = (Header.TRANSPORT, 8, 16)  # RFC 4861 section 4.4: the target address
ETHER_TYPE = (Header.LINK, 12, 2)  # the outermost, of a tag too
VLAN_TAGS = (b"\x81\x00", b"\x88\xa8")  # IEEE 802.1Q table 9-1
ETH_IP, ETH_ARP, ETH_IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
ICMP, ICMPV6 = 1, 58
ROUTER_ADVERTISEMENT, NEIGHBOR_ADVERTISEMENT, REDIRECT = 134, 136, 137
ON_LINK = (130, 131, 132, 133, 135, 136, 143)  # neighbor discovery, and RFC 2710 and 3810's multicast listeners
UNSPECIFIED = {4: bytes(4), 6: bytes(16)}

Rules: TypeAlias = list[tuple[Sequence[bytes], str]]
"""The expressions of each rule, and its comment."""


def hooks(family: Family) -> Mapping[str, tuple[int, int]]:
    """Where chains stand, with their priority; the others are gone to."""
    filtering = FORWARD_PRIORITY[family]
    return {
        "prerouting": (PREROUTING_HOOK, RAW),
        "input": (INPUT_HOOK, filtering),
        "forward": (FORWARD_HOOK, filtering),
        "postrouting": (POSTROUTING_HOOK, BEFORE_SRCNAT),
    }


def inet_chains(directory: str, ids: tuple[int, ...], *, has_links: bool) -> dict[str, Rules]:
    """`directory` has the pins of the programs, `ids` their numbers, in the order of the rules that ask them."""
    return (_inet_sources() if has_links else {}) | _inet_forward(directory, ids)


def bridge_chains(
    directory: str, ids: tuple[int, ...], judged: frozenset[int], *, has_links: bool
) -> dict[str, Rules]:
    """As `inet_chains`; `judged`: the IP versions whose packets are judged here, with a VLAN tag or without."""
    return (_bridge_sources() if has_links else {}) | _bridge_forward(directory, ids, judged)


def judge(version: int) -> str:
    """The chain of a version that is judged at bridges."""
    return f"judge{version}"


def _tagged(version: int) -> str:
    """The chain of one that is judged there with a VLAN tag only."""
    return f"tagged{version}"


def _inet_sources() -> dict[str, Rules]:
    return {
        "prerouting": [((*_FROM_POD, _goto("source")), "")],
        "source": [((*_IPV4.is_family, *_OWN_IPV4), ""), *_own_ipv6(_IPV6.is_family), _not_own()],
    }


def _inet_forward(directory: str, ids: tuple[int, ...]) -> dict[str, Rules]:
    related = (
        filters.conntrack_state(),
        nft.masked(filters.ConntrackState.RELATED.to_bytes(4, "little")),
        nft.compare(Compare.NOT_EQUAL, bytes(4)),
        _RETURN,
    )
    reply = (filters.conntrack_direction(), nft.compare(Compare.EQUAL, bytes([filters.REPLY])))
    policy, policy_reply, *tracking = ids
    chains: dict[str, Rules] = {
        "forward": [
            *(((*_is_protocol(each), *related), "errors of known flows") for each in (ICMP, ICMPV6)),
            ((*reply, _goto("replies")), ""),
            _judge(directory, "policy", policy),
        ],
        "replies": [_judge(directory, "policy_reply", policy_reply)],
    }
    return chains | (_stack_chains(directory, *tracking) if tracking else {})


def _stack_chains(directory: str, out: int, into: int) -> dict[str, Rules]:
    """Of pods whose packets pass the node's stack as if they were its own."""
    ipv4, ipv6 = _IPV4.is_family, _IPV6.is_family
    judged = struct.pack("=I", ORIGIN_STACK)
    forged = (nft.meta(Meta.PRIORITY), nft.compare(Compare.EQUAL, judged), *nft.set_meta(Meta.PRIORITY, bytes(4)))
    return {
        "postrouting": [
            (forged, ""),
            ((*ipv4, nft.payload(*IPV4_SOURCE), nft.in_set("stack4"), _goto("leaving")), ""),
            ((*ipv6, nft.payload(*IPV6_SOURCE), nft.in_set("stack6"), _goto("leaving")), ""),
        ],
        "leaving": [
            _judge(directory, "policy_bridge", out),
            ((nft.meta(Meta.OIF), nft.in_set("parents"), *nft.set_meta(Meta.PRIORITY, judged)), "it may"),
        ],
        "input": [
            ((*ipv4, nft.payload(*IPV4_DESTINATION), nft.in_set("stack4"), _goto("entering")), ""),
            ((*ipv6, nft.payload(*IPV6_DESTINATION), nft.in_set("stack6"), _goto("entering")), ""),
        ],
        "entering": [_judge(directory, "policy_bridge", into)],
    }


def _bridge_sources() -> dict[str, Rules]:
    return {
        "prerouting": [
            ((*_outermost(ETH_IP), *_OWN_IPV4), ""),
            ((*_outermost(ETH_IPV6), *_is_protocol(ICMPV6, Compare.NOT_EQUAL), *_OWN_IPV6), ""),
            ((*_FROM_POD, _goto("source")), ""),
        ],
        "source": [
            *(
                ((*_outermost(each), filters.counter(), _DROP), "pods are in no VLAN of their own")
                for each in VLAN_TAGS
            ),
            ((*_is(ETH_ARP), _goto("arp")), ""),
            *(
                ((*_is(ETH_IPV6), *_is_icmpv6(each), filters.counter(), _DROP), "pods are no routers")
                for each in (ROUTER_ADVERTISEMENT, REDIRECT)
            ),
            ((*_is(ETH_IPV6), *_is_icmpv6(NEIGHBOR_ADVERTISEMENT), _goto("advertised")), ""),
            *_own_ipv6(_is(ETH_IPV6)),
            _not_own(),
        ],
        "arp": [
            ((*_OWN_HARDWARE, *_joined(ARP_HARDWARE, ARP_PROTOCOL), nft.in_set("sources4"), _RETURN), ""),
            (
                (*_OWN_HARDWARE, *_joined(ARP_HARDWARE), nft.in_set("hardware"), nft.payload(*ARP_PROTOCOL),
                 nft.compare(Compare.EQUAL, UNSPECIFIED[4]), _RETURN),
                "probes, RFC 5227",
            ),
            _not_own(),
        ],
        "advertised": [
            ((*_joined(ETHER_SOURCE, ADVERTISED), nft.in_set("sources6"), _RETURN), ""),
            ((*_link_local(ADVERTISED), *_OWN_HARDWARE, _RETURN), ""),
            _not_own(),
        ],
    }  # fmt: skip


def _bridge_forward(directory: str, ids: tuple[int, ...], judged: frozenset[int]) -> dict[str, Rules]:
    ether_types = {4: ETH_IP, 6: ETH_IPV6}
    handed = {version: each for version, each in ether_types.items() if version not in judged}
    chains: dict[str, Rules] = {
        "forward": [
            ((*_is(ETH_IPV6), *_link_local(IPV6_SOURCE), *_FROM_POD, _goto("on_link")), ""),
            ((*_is(ETH_IPV6), *_is_unspecified(), *_FROM_POD, _goto("on_link")), ""),
            ((nft.meta(Meta.OIF), nft.in_set("links"), nft.verdict(nft.Verdict.JUMP, "to_pod")), ""),
            *(((*_is(ether_types[each]), _goto(judge(each))), "") for each in sorted(judged)),
            *(((*_outermost(each), _RETURN), "for br_netfilter") for each in handed.values()),
            *(((*_is(each), _goto(_tagged(version))), "not for br_netfilter") for version, each in handed.items()),
            *(((*_is(each), _goto("below_tags")), "beside another one") for each in VLAN_TAGS),
        ],
        "to_pod": [
            ((*_is(ETH_IP), *_to(IPV4_DESTINATION), nft.in_set("sources4"), _RETURN), ""),
            ((*_is(ETH_IPV6), *_to(IPV6_DESTINATION), nft.in_set("sources6"), _RETURN), ""),
            ((*_is(ETH_ARP), _RETURN), ""),
            _judge(directory, "policy_astray", ids[0]),
        ],
        "on_link": [
            *(((*_is_icmpv6(each), _RETURN), "") for each in ON_LINK),
            ((filters.counter(), _DROP), "policy knows no link-local addresses"),
        ],
    }  # fmt: skip
    asking = [judge(each) if each in judged else _tagged(each) for each in ether_types]
    for name, number in zip((*asking, "below_tags"), ids[1:], strict=True):
        chains[name] = [_judge(directory, "policy_bridge", number)]
    return chains


_RETURN, _DROP = nft.verdict(nft.Verdict.RETURN), nft.verdict(nft.Verdict.DROP)
_FROM_POD = (nft.meta(Meta.IIF), nft.in_set("links"))


def _joined(*parts: tuple[Header, int, int]) -> tuple[bytes, ...]:
    return filters.joined(Meta.IIF, *parts)


def _to(address: tuple[Header, int, int]) -> tuple[bytes, ...]:
    return filters.joined(Meta.OIF, ETHER_DESTINATION, address)


_OWN_HARDWARE = (*_joined(ETHER_SOURCE), nft.in_set("hardware"))


def _goto(chain: str) -> bytes:
    return nft.verdict(nft.Verdict.GOTO, chain)


# What a pod sends as itself passes.
_OWN_IPV4 = (*_joined(ETHER_SOURCE, IPV4_SOURCE), nft.in_set("sources4"), _RETURN)
_OWN_IPV6 = (*_joined(ETHER_SOURCE, IPV6_SOURCE), nft.in_set("sources6"), _RETURN)


def _own_ipv6(is_ipv6: tuple[bytes, ...]) -> Rules:
    return [
        ((*is_ipv6, *_OWN_IPV6), ""),
        ((*is_ipv6, *_link_local(IPV6_SOURCE), *_OWN_HARDWARE, _RETURN), "never routed"),
    ]


def _not_own() -> tuple[Sequence[bytes], str]:
    return (filters.counter(), _DROP), "not an address of the pod"


def _link_local(where: tuple[Header, int, int]) -> tuple[bytes, ...]:
    """In fe80::/10."""
    base, offset, _ = where
    return nft.payload(base, offset, 2), nft.masked(b"\xff\xc0"), nft.compare(Compare.EQUAL, b"\xfe\x80")


def _is_unspecified() -> tuple[bytes, ...]:
    return nft.payload(*IPV6_SOURCE), nft.compare(Compare.EQUAL, UNSPECIFIED[6])


def _is(ether_type: bytes) -> tuple[bytes, ...]:
    """Below the VLAN tag, if there is one."""
    return nft.meta(Meta.PROTOCOL), nft.compare(Compare.EQUAL, ether_type)


def _outermost(ether_type: bytes) -> tuple[bytes, ...]:
    return nft.payload(*ETHER_TYPE), nft.compare(Compare.EQUAL, ether_type)


def _is_protocol(number: int, operation: Compare = Compare.EQUAL) -> tuple[bytes, ...]:
    return nft.meta(Meta.L4PROTO), nft.compare(operation, bytes([number]))


def _is_icmpv6(kind: int) -> tuple[bytes, ...]:
    return *_is_protocol(ICMPV6), nft.payload(Header.TRANSPORT, 0, 1), nft.compare(Compare.EQUAL, bytes([kind]))


def _judge(directory: str, program: str, number: int) -> tuple[Sequence[bytes], str]:
    asks = nft.asks_program(f"{directory}/{program}")
    return (asks, filters.counter(), _DROP), PROGRAM_COMMENT.format(number)
