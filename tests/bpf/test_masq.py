"""What the masquerade program says of a packet: 0 keeps the pod's address, 1 masquerades."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from bgpd.datapath.layout import COUNTER, PRESENT, Verdict
from bgpd.datapath.loader import Installed
from bgpd.model.lpm import LpmKey
from tests.bpf import loopback, packets
from tests.bpf.packets import ICMPV6, NO_NEXT, TCP, UDP, ethernet, ipv4, ipv6, packet
from tests.bpf.program import run

KEEP, MASQUERADE = 0, 1
EVERYTHING = ("0.0.0.0/0", "::/0")
V4, V6 = IPv4Address("11.8.37.4"), IPv6Address("2001:db8:1::4")


def listed(masq: Installed, *texts: str) -> None:
    """Makes the list exactly this, with counters at zero."""
    for version in (4, 6):
        keys = [LpmKey.of(prefix) for prefix in map(ip_network, texts) if prefix.version == version]
        for name, value in (("ipmasq", PRESENT), ("ipmasq_hits", COUNTER.pack(0))):
            target = masq.maps[f"{name}_v{version}"]
            target.delete(target.entries())
            target.update(dict.fromkeys(keys, value))


def hits(masq: Installed) -> dict[str, int]:
    """The entries that have covered a flow."""
    counters = masq.maps["ipmasq_hits_v4"].entries() | masq.maps["ipmasq_hits_v6"].entries()
    found = {str(LpmKey(key)): COUNTER.unpack(value)[0] for key, value in counters.items()}
    return {text: count for text, count in found.items() if count}


def verdicts(masq: Installed) -> dict[Verdict, int]:
    counters = masq.maps["masq_verdicts"].entries().items()
    found = {Verdict(int.from_bytes(key, sys.byteorder)): COUNTER.unpack(value)[0] for key, value in counters}
    return {verdict: count for verdict, count in found.items() if count}


def ask(masq: Installed, frame: bytes) -> int:
    return run(masq.programs["masquerade"].pin, frame).value


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("11.8.37.4/32", ["11.8.37.4"], ["11.8.37.3", "11.8.37.5"]),
        ("11.11.248.0/21", ["11.11.248.0", "11.11.255.255"], ["11.11.247.255", "11.12.0.0"]),
        ("0.0.0.0/0", ["0.0.0.1", "255.255.255.255"], ["::"]),
        ("2001:db8:1::4/128", ["2001:db8:1::4"], ["2001:db8:1::3", "2001:db8:1::5"]),
        ("fd00::/9", ["fd00::", "fd7f:ffff::1"], ["fcff::", "fd80::"]),
        ("::/0", ["::", "ffff::1"], ["0.0.0.1"]),
    ],
)
def test_an_entry_covers_its_prefix_and_nothing_else(
    masq: Installed, entry: str, inside: list[str], outside: list[str]
) -> None:
    """The list of one family says nothing of the other."""
    listed(masq, entry)
    assert {text: ask(masq, packet(ip_address(text))) for text in inside} == dict.fromkeys(inside, KEEP)
    assert {text: ask(masq, packet(ip_address(text))) for text in outside} == dict.fromkeys(outside, MASQUERADE)
    assert hits(masq) == {entry: len(inside)}
    assert verdicts(masq) == {Verdict.LISTED: len(inside), Verdict.NOT_LISTED: len(outside)}


def test_an_empty_list_masquerades_everything(masq: Installed) -> None:
    assert [ask(masq, packet(to)) for to in (V4, V6)] == [MASQUERADE, MASQUERADE]
    assert verdicts(masq) == {Verdict.NOT_LISTED: 2}


def test_a_hit_counts_for_the_most_specific_entry(masq: Installed) -> None:
    """That one decided; the wider ones would have come to the same."""
    listed(masq, "11.0.0.0/8", "11.8.0.0/16", "11.8.37.4/32", "2001:db8::/32", "2001:db8:1::/48")
    for to in (V4, V4, IPv4Address("11.8.1.1"), IPv4Address("11.1.1.1"), V6):
        assert ask(masq, packet(to)) == KEEP
    assert hits(masq) == {"11.8.37.4/32": 2, "11.8.0.0/16": 1, "11.0.0.0/8": 1, "2001:db8:1::/48": 1}


def test_an_entry_without_a_counter_is_kept_all_the_same(masq: Installed) -> None:
    """Counters are sight: that one is missing must not change what happens to a flow."""
    listed(masq, "11.8.37.4/32")
    masq.maps["ipmasq_hits_v4"].delete(masq.maps["ipmasq_hits_v4"].entries())
    assert ask(masq, packet(V4)) == KEEP


FRAMES_V4 = {
    "tcp": ipv4(V4, bytes(20), protocol=TCP),
    "no layer 4 at all": ipv4(V4, b""),
    "unknown protocol": ipv4(V4, protocol=253),
    "first fragment": ipv4(V4, bytes(1480), more_fragments=True),
    "middle fragment": ipv4(V4, bytes(8), more_fragments=True, offset=185),
    "last fragment, shorter than a port": ipv4(V4, b"x", offset=370),
    "one option word": ipv4(V4, options=b"\x94\x04\0\0"),
    "as many options as there can be": ipv4(V4, options=bytes(40)),
}
FRAMES_V6 = {
    "udp": ipv6(V6),
    "icmp": ipv6(V6, next_header=ICMPV6),
    "nothing": ipv6(V6, b"", next_header=NO_NEXT),
    "hop-by-hop options": ipv6(V6, packets.padded_options(UDP) + bytes(8), next_header=packets.HOP_BY_HOP),
    "first fragment": ipv6(V6, packets.fragment_header(UDP, 0, True) + bytes(64), next_header=packets.FRAGMENT),
    "last fragment": ipv6(V6, packets.fragment_header(UDP, 8, False) + b"x", next_header=packets.FRAGMENT),
    "extension header cut off": ipv6(V6, b"\x3a", next_header=packets.HOP_BY_HOP),
}


@pytest.mark.parametrize(
    ("frame", "entry"),
    [
        *(pytest.param(frame, "11.8.37.4/32", id=f"v4 {name}") for name, frame in FRAMES_V4.items()),
        *(pytest.param(frame, "2001:db8:1::4/128", id=f"v6 {name}") for name, frame in FRAMES_V6.items()),
    ],
)
def test_whatever_follows_the_fixed_header_changes_nothing(masq: Installed, frame: bytes, entry: str) -> None:
    """A fragment goes where its first one went, and no header after the fixed one is a way around the list."""
    assert ask(masq, frame) == MASQUERADE
    listed(masq, entry)
    assert ask(masq, frame) == KEEP


def test_a_routing_header_goes_by_the_hop_that_the_packet_is_sent_to(masq: Installed) -> None:
    """As routing and conntrack do; where it may end is for that hop to see."""
    listed(masq, "2001:db8:f::/48")
    last = IPv6Address("2001:db8:f::1")
    header = packets.routing_header(UDP, [last, V6]) + bytes(8)
    assert ask(masq, ipv6(V6, header, next_header=packets.ROUTING)) == MASQUERADE
    assert ask(masq, ipv6(last, header, next_header=packets.ROUTING)) == KEEP


@pytest.mark.parametrize(
    ("frame", "verdict"),
    [
        pytest.param(ethernet(packets.ETH_ARP, bytes(28)), Verdict.NOT_IP, id="arp"),
        pytest.param(ethernet(0x8100, packet(V4)), Verdict.NOT_IP, id="vlan tag not taken off"),
        pytest.param(ipv4(V4, version=6), Verdict.BAD_HEADER, id="v4 that says it is v6"),
        pytest.param(ipv6(V6, version=4), Verdict.BAD_HEADER, id="v6 that says it is v4"),
        pytest.param(ipv4(V4, header_words=4), Verdict.BAD_HEADER, id="v4 header shorter than it can be"),
    ],
)
def test_what_has_no_destination_to_trust_is_masqueraded(masq: Installed, frame: bytes, verdict: Verdict) -> None:
    """Even if everything is listed: a pod's address does not leave because a header could not be read."""
    listed(masq, *EVERYTHING)
    assert ask(masq, frame) == MASQUERADE
    assert verdicts(masq) == {verdict: 1}
    assert hits(masq) == {}


@pytest.mark.parametrize("whole", [ipv4(V4, b""), ipv6(V6, b"", next_header=NO_NEXT)], ids=["v4", "v6"])
def test_a_packet_shorter_than_its_fixed_header_is_masqueraded(masq: Installed, whole: bytes) -> None:
    """By a byte: with that byte it is kept."""
    listed(masq, *EVERYTHING)
    pin = masq.programs["masquerade"].pin
    assert [loopback.returned(pin, frame) for frame in (whole, whole[:-1])] == [KEEP, MASQUERADE]
    assert verdicts(masq) == {Verdict.LISTED: 1, Verdict.TRUNCATED: 1}
