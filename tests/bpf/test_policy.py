"""What the policy programs say of a packet: 0 lets it pass, 1 drops it."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from bgpd.datapath import layout
from bgpd.datapath.layout import Action, Peer, PeerFlag, PolicyVerdict, Port, Rule, RuleFlag
from bgpd.datapath.loader import Installed
from bgpd.model.lpm import LpmKey
from bgpd.model.prefix import Address
from tests.bpf import loopback, packets
from tests.bpf.conftest import emptied
from tests.bpf.packets import FRAGMENT, HOP_BY_HOP, ICMPV6, NO_NEXT, ROUTING, TCP, UDP, ethernet, ipv4, ipv6
from tests.bpf.program import run
from tests.fabric.rules_by_hand import verdicts

PASS, DROP = 0, 1
ICMP, SCTP, AH, DESTINATION = 1, 132, 51, 60
V4, V6 = IPv4Address("10.244.1.3"), IPv6Address("2001:db8:244::3")
SOURCES: dict[int, Address] = {4: packets.SOURCE_V4, 6: packets.SOURCE_V6}
CLIENT, SERVER = 11, 12  # classes
SET, OTHER_SET, PORTSET = 21, 22, 31
HTTP = struct.pack("!HH", 40000, 80) + bytes(16)


@pytest.fixture
def policy(shared_policy: Installed) -> Installed:
    return emptied(shared_policy)


def peers(policy: Installed, client: Peer | None = None, server: Peer | None = None) -> None:
    """Gives both families' client and server an entry, or none."""
    for to in (V4, V6):
        for address, peer in ((SOURCES[to.version], client), (to, server)):
            key = layout.policy_address(address)
            if peer is None:
                policy.maps["policy_peers"].delete([key])
            else:
                policy.maps["policy_peers"].update({key: layout.PEER.pack(*peer)})


def rule(
    policy: Installed, number: int, of_class: int, verdict: Action = Action.ALLOW, flags: int = 0, cookie: int = 7
) -> None:
    value = layout.RULE.pack(*Rule(PORTSET, verdict, flags, 0, cookie))
    policy.maps["policy_rules"].update({layout.rule_key(number, of_class): value})


def port(policy: Installed, protocol: int, number: int, verdict: Action = Action.ALLOW) -> None:
    value = layout.PORT.pack(*Port(verdict, 0, 0, 8))
    policy.maps["policy_ports"].update({layout.port_key(PORTSET, protocol, number): value})


def ports(policy: Installed, protocol: int, number: int, length: int, verdict: Action = Action.ALLOW) -> None:
    value = layout.PORT.pack(*Port(verdict, 0, 0, 9))
    policy.maps["policy_ranges"].update({layout.range_key(PORTSET, protocol, number, length): value})


def ask(policy: Installed, frame: bytes, program: str = "policy") -> int:
    return run(policy.programs[program].pin, frame).value


def to(address: Address, payload: bytes = HTTP, protocol: int = TCP) -> bytes:
    if isinstance(address, IPv4Address):
        return ipv4(address, payload, protocol=protocol)
    return ipv6(address, payload, next_header=protocol)


def said(policy: Installed, frame: bytes, program: str = "policy") -> PolicyVerdict:
    """The one verdict that this packet has added."""
    before = verdicts(policy.maps["policy_verdicts"])
    value = ask(policy, frame, program)
    ((verdict, count),) = (verdicts(policy.maps["policy_verdicts"]).items() - before.items()) or [(None, 0)]
    assert verdict is not None
    assert count == before.get(verdict, 0) + 1
    assert value == (DROP if verdict >= PolicyVerdict.DENIED_EGRESS else PASS)
    return verdict


both = pytest.mark.parametrize("address", [V4, V6], ids=["v4", "v6"])


@both
def test_what_nobody_isolates_passes(policy: Installed, address: Address) -> None:
    """Whether the ends are known or not."""
    assert said(policy, to(address)) is PolicyVerdict.NOT_ISOLATED
    peers(policy, Peer(CLIENT), Peer(SERVER))
    assert said(policy, to(address)) is PolicyVerdict.NOT_ISOLATED


@both
@pytest.mark.parametrize("known", [True, False])
def test_a_set_denies_whom_no_rule_of_it_names(policy: Installed, address: Address, known: bool) -> None:
    other = Peer(99) if known else None
    rule(policy, OTHER_SET, 99)
    rule(policy, OTHER_SET, 0)
    peers(policy, Peer(CLIENT, egress_set=SET), other)
    assert said(policy, to(address)) is PolicyVerdict.DENIED_EGRESS
    peers(policy, other, Peer(SERVER, ingress_set=SET))
    assert said(policy, to(address)) is PolicyVerdict.DENIED_INGRESS


@both
def test_a_set_counts_in_its_own_direction_only(policy: Installed, address: Address) -> None:
    peers(policy, Peer(CLIENT, ingress_set=SET), Peer(SERVER, egress_set=SET))
    assert said(policy, to(address)) is PolicyVerdict.NOT_ISOLATED


@both
def test_both_sides_must_allow(policy: Installed, address: Address) -> None:
    peers(policy, Peer(CLIENT, egress_set=SET), Peer(SERVER, ingress_set=OTHER_SET))
    rule(policy, OTHER_SET, CLIENT)
    assert said(policy, to(address)) is PolicyVerdict.DENIED_EGRESS
    rule(policy, SET, SERVER)
    assert said(policy, to(address)) is PolicyVerdict.ALLOWED
    policy.maps["policy_rules"].delete([layout.rule_key(OTHER_SET, CLIENT)])
    assert said(policy, to(address)) is PolicyVerdict.DENIED_INGRESS


@both
def test_a_reply_is_judged_as_what_its_client_sends(policy: Installed, address: Address) -> None:
    """The packet's source is the server: its ingress rules, its port."""
    peers(policy, Peer(CLIENT, ingress_set=SET), Peer(SERVER))
    rule(policy, SET, SERVER, Action.DENY, RuleFlag.HAS_PORTS)
    reply = to(address, struct.pack("!HH", 80, 40000) + bytes(16))
    assert said(policy, reply, "policy_reply") is PolicyVerdict.DENIED_INGRESS
    port(policy, TCP, 80)
    assert said(policy, reply, "policy_reply") is PolicyVerdict.ALLOWED
    assert said(policy, reply) is PolicyVerdict.NOT_ISOLATED


@both
@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])
def test_a_port_is_one_of_its_protocol(policy: Installed, address: Address, protocol: int) -> None:
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 0, Action.DENY, RuleFlag.HAS_PORTS)
    port(policy, protocol, 80)
    found = {each: ask(policy, to(address, HTTP, each)) for each in (TCP, UDP, SCTP)}
    assert found == {each: PASS if each == protocol else DROP for each in found}
    assert ask(policy, to(address, struct.pack("!HH", 80, 81) + bytes(16), protocol)) == DROP


@both
def test_a_single_port_comes_before_a_range_and_a_narrow_range_before_a_wide_one(
    policy: Installed, address: Address
) -> None:
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 0, Action.DENY, RuleFlag.HAS_PORTS | RuleFlag.HAS_RANGES)
    ports(policy, TCP, 0x1000, 4)
    ports(policy, TCP, 0x1200, 8, Action.DENY)
    port(policy, TCP, 0x1234)
    port(policy, TCP, 0x1001, Action.DENY)
    asked = dict.fromkeys((4096, 8191, 4660, 4864), PASS) | dict.fromkeys((4095, 8192, 4608, 4863, 4097), DROP)
    assert {number: ask(policy, to(address, struct.pack("!HH", 1, number) + bytes(16))) for number in asked} == asked


@both
def test_without_their_flags_ports_and_ranges_are_not_asked(policy: Installed, address: Address) -> None:
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 0, Action.DENY)
    port(policy, TCP, 80)
    ports(policy, TCP, 0, 0)
    assert ask(policy, to(address)) == DROP


@both
def test_what_has_no_port_has_port_0(policy: Installed, address: Address) -> None:
    """ICMP is told apart as a protocol, whatever its type."""
    icmp = ICMP if isinstance(address, IPv4Address) else ICMPV6
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 0, Action.DENY, RuleFlag.HAS_PORTS)
    port(policy, TCP, 80)
    assert ask(policy, to(address, b"\x80\0" + bytes(6), icmp)) == DROP
    port(policy, icmp, 0)
    assert ask(policy, to(address, b"\x80\0" + bytes(6), icmp)) == PASS


@both
def test_an_address_that_is_no_peer_has_the_class_of_its_longest_prefix(policy: Installed, address: Address) -> None:
    """If the pod's rules have an ipBlock; one without does not ask."""
    source, bits = SOURCES[address.version], address.max_prefixlen
    tries = policy.maps[f"policy_cidrs_v{address.version}"]
    for length, number in ((bits // 4, 51), (bits // 2, 52)):
        prefix = ip_network((source, length), strict=False)
        tries.update({LpmKey.of(prefix): layout.CLASS.pack(number)})
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 52)
    assert ask(policy, to(address)) == DROP
    peers(policy, None, Peer(SERVER, ingress_set=SET, flags=PeerFlag.EGRESS_CIDRS))
    assert ask(policy, to(address)) == DROP
    peers(policy, None, Peer(SERVER, ingress_set=SET, flags=PeerFlag.INGRESS_CIDRS))
    assert ask(policy, to(address)) == PASS
    peers(policy, Peer(CLIENT), Peer(SERVER, ingress_set=SET, flags=PeerFlag.INGRESS_CIDRS))
    assert ask(policy, to(address)) == DROP, "a peer has the class of a peer"


@both
def test_a_pod_without_ip_blocks_takes_what_is_no_peer_for_the_world(policy: Installed, address: Address) -> None:
    """Its rules may allow the world where another pod's tell a part of it."""
    tries = policy.maps[f"policy_cidrs_v{address.version}"]
    tries.update({LpmKey.of(ip_network(address)): layout.CLASS.pack(51)})
    rule(policy, SET, 0)
    for flags, verdict in ((0, PASS), (PeerFlag.INGRESS_CIDRS, PASS), (PeerFlag.EGRESS_CIDRS, DROP)):
        peers(policy, Peer(CLIENT, egress_set=SET, flags=flags))
        assert ask(policy, to(address)) == verdict


@both
def test_a_pod_reaches_itself(policy: Installed, address: Address) -> None:
    """Through a service; whatever its rules say."""
    own = SOURCES[address.version]
    peers(policy, Peer(CLIENT, SET, SET))
    assert said(policy, to(own)) is PolicyVerdict.SELF
    assert said(policy, to(own), "policy_reply") is PolicyVerdict.SELF


def test_audit_mode_passes_what_it_counts_as_denied(policy: Installed) -> None:
    peers(policy, Peer(CLIENT), Peer(SERVER, ingress_set=SET, flags=PeerFlag.AUDIT))
    assert ask(policy, to(V4)) == PASS
    assert verdicts(policy.maps["policy_verdicts"]) == {PolicyVerdict.DENIED_INGRESS: 1, PolicyVerdict.AUDITED: 1}
    peers(policy, Peer(CLIENT, egress_set=OTHER_SET), Peer(SERVER, ingress_set=SET, flags=PeerFlag.AUDIT))
    assert ask(policy, to(V4)) == DROP, "the other end is not in audit mode"


NEIGHBOR = {133: PASS, 134: PASS, 135: PASS, 136: PASS, 137: PASS, 128: DROP, 132: DROP, 138: DROP}


@pytest.mark.parametrize(("kind", "verdict"), NEIGHBOR.items())
def test_neighbor_discovery_of_the_link_passes(policy: Installed, kind: int, verdict: int) -> None:
    """Whoever is isolated; a hop limit of less than 255 has come from elsewhere, RFC 4861 section 3.1."""
    peers(policy, Peer(CLIENT, SET, SET), Peer(SERVER, SET, SET))
    frame = bytearray(ipv6(V6, bytes([kind]) + bytes(31), next_header=ICMPV6))
    assert ask(policy, bytes(frame)) == DROP, "hop limit 64"
    frame[14 + 7] = 255
    assert ask(policy, bytes(frame)) == verdict


def tcp_behind(*headers: tuple[int, bytes]) -> bytes:
    """IPv6 with these extension headers, each with its number and what it has but for the next header's."""
    numbers = [number for number, _ in headers[1:]] + [TCP]
    chain = b"".join(bytes([number]) + body for number, (_, body) in zip(numbers, headers, strict=True))
    return ipv6(V6, chain + HTTP, next_header=headers[0][0])


OPTIONS = bytes(7)  # of 8 bytes, RFC 8200 section 4.2
FRAMES = {
    "v4": ipv4(V4, HTTP, protocol=TCP),
    "v4 with an option": ipv4(V4, HTTP, protocol=TCP, options=b"\x94\x04\0\0"),
    "v4 with all options": ipv4(V4, HTTP, protocol=TCP, options=bytes(40)),
    "v4, first fragment": ipv4(V4, HTTP, protocol=TCP, more_fragments=True),
    "v4, no more than its ports": ipv4(V4, HTTP[:4], protocol=TCP),
    "v6": ipv6(V6, HTTP, next_header=TCP),
    "v6, hop-by-hop": tcp_behind((HOP_BY_HOP, OPTIONS)),
    "v6, long options": tcp_behind((DESTINATION, b"\x03" + bytes(30))),
    "v6, authentication": tcp_behind((AH, b"\x04" + bytes(22))),
    "v6, routing": tcp_behind((ROUTING, b"\x02\x04" + bytes(21))),
    "v6, atomic fragment": tcp_behind((FRAGMENT, OPTIONS)),
    "v6, first fragment": tcp_behind((FRAGMENT, b"\0\0\x01" + bytes(4))),
    "v6, all of them": tcp_behind(
        (HOP_BY_HOP, OPTIONS),
        (DESTINATION, OPTIONS),
        (ROUTING, OPTIONS),
        (FRAGMENT, OPTIONS),
        (AH, b"\x01" + bytes(10)),
    ),
    "v6, eight": tcp_behind(*[(DESTINATION, OPTIONS)] * 8),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_the_port_is_found_behind_whatever_headers(policy: Installed, frame: bytes) -> None:
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 0, Action.DENY, RuleFlag.HAS_PORTS)
    port(policy, TCP, 81)
    assert ask(policy, frame) == DROP
    port(policy, TCP, 80)
    assert ask(policy, frame) == PASS


LOST = {
    "v4, cut off within the ports": ipv4(V4, HTTP[:3], protocol=TCP),
    "v4, nothing behind the header": ipv4(V4, b"", protocol=UDP),
    "v4, header longer than the packet": ipv4(V4, HTTP, protocol=TCP, header_words=15),
    "v4, icmp without a type": ipv4(V4, b"", protocol=ICMP),
    "v6, cut off within the ports": ipv6(V6, HTTP[:3], next_header=TCP),
    "v6, options cut off": ipv6(V6, b"\x06", next_header=HOP_BY_HOP),
    "v6, options longer than the packet": tcp_behind((DESTINATION, b"\xff" + bytes(6))),
    "v6, nine extension headers": tcp_behind(*[(DESTINATION, OPTIONS)] * 9),
}


@pytest.mark.parametrize("frame", LOST.values(), ids=LOST)
def test_whose_ports_cannot_be_found_is_dropped_if_an_end_is_isolated(policy: Installed, frame: bytes) -> None:
    """Even if everything is allowed from there; and passes if none is."""
    assert said(policy, frame) is PolicyVerdict.NOT_ISOLATED
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 0)
    assert said(policy, frame) is PolicyVerdict.NO_TRANSPORT


LATE = {
    "v4, middle": ipv4(V4, HTTP, protocol=TCP, more_fragments=True, offset=1),
    "v4, last": ipv4(V4, b"x", protocol=TCP, offset=185),
    "v6, middle": tcp_behind((FRAGMENT, b"\0\0\x09" + bytes(4))),
    "v6, last": tcp_behind((HOP_BY_HOP, OPTIONS), (FRAGMENT, b"\0\x05\xc8" + bytes(4))),
}


@pytest.mark.parametrize("frame", LATE.values(), ids=LATE)
def test_a_later_fragment_passes_only_where_ports_do_not_matter(policy: Installed, frame: bytes) -> None:
    """What stands where ports would be are not ports. Connection tracking puts fragments together before."""
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 0, Action.DENY, RuleFlag.HAS_PORTS)
    port(policy, TCP, 80)
    assert said(policy, frame) is PolicyVerdict.LATE_FRAGMENT
    rule(policy, SET, 0)
    assert said(policy, frame) is PolicyVerdict.ALLOWED


def test_what_says_that_nothing_follows_is_a_protocol_without_ports(policy: Installed) -> None:
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, 0)
    assert ask(policy, ipv6(V6, b"", next_header=NO_NEXT)) == PASS


MALFORMED = {
    "v4 that says it is v6": (ipv4(V4, version=6), PolicyVerdict.BAD_HEADER),
    "v6 that says it is v4": (ipv6(V6, version=4), PolicyVerdict.BAD_HEADER),
    "v4 header shorter than it can be": (ipv4(V4, header_words=4), PolicyVerdict.BAD_HEADER),
    "v6 that names an IPv4 pod": (ipv6(IPv6Address(f"::ffff:{V4}"), HTTP), PolicyVerdict.BAD_HEADER),
    "arp": (ethernet(packets.ETH_ARP, bytes(28)), PolicyVerdict.NOT_IP),
}


@pytest.mark.parametrize(("frame", "verdict"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("program", ["policy", "policy_reply", "policy_bridge"])
def test_whose_ends_cannot_be_told_is_dropped(
    policy: Installed, program: str, frame: bytes, verdict: PolicyVerdict
) -> None:
    """Nobody being isolated: it may belong to one who is."""
    assert said(policy, frame, program) is verdict


@pytest.mark.parametrize("program", ["policy", "policy_reply"])
def test_nobody_forwards_what_has_a_vlan_tag_left(policy: Installed, program: str) -> None:
    """But bridges do: see `test_policy_flows`."""
    assert said(policy, ethernet(0x8100, bytes(2) + packets.packet(V4)[12:]), program) is PolicyVerdict.NOT_IP


@pytest.mark.parametrize("whole", [ipv4(V4, b""), ipv6(V6, b"", next_header=NO_NEXT)], ids=["v4", "v6"])
def test_a_packet_shorter_than_its_fixed_header_is_dropped(policy: Installed, whole: bytes) -> None:
    pin = policy.programs["policy"].pin
    assert [loopback.returned(pin, frame) for frame in (whole, whole[:-1])] == [PASS, DROP]
    assert verdicts(policy.maps["policy_verdicts"]) == {PolicyVerdict.NOT_ISOLATED: 1, PolicyVerdict.BAD_HEADER: 1}


def behind_port(policy: Installed) -> None:
    """A test run leaves by the loopback."""
    value = layout.LINK.pack(layout.policy_address(V4), layout.policy_address(V6))
    policy.maps["policy_links"].update({layout.IFINDEX.pack(socket.if_nametoindex("lo")): value})


@both
def test_what_is_astray_is_judged_by_the_pod_behind_the_port(policy: Installed, address: Address) -> None:
    """Only by its ingress rules, whatever the packet's destination."""
    group: Address = IPv4Address("224.0.0.251") if address.version == 4 else IPv6Address("ff02::fb")
    behind_port(policy)
    assert said(policy, to(group), "policy_astray") is PolicyVerdict.NOT_ISOLATED
    peers(policy, Peer(CLIENT, egress_set=OTHER_SET), Peer(SERVER, ingress_set=SET))
    assert said(policy, to(group), "policy_astray") is PolicyVerdict.DENIED_INGRESS
    rule(policy, SET, CLIENT)
    assert said(policy, to(group), "policy_astray") is PolicyVerdict.ALLOWED


def test_nothing_astray_passes_to_a_port_that_is_not_known(policy: Installed) -> None:
    assert said(policy, to(IPv4Address("224.0.0.251")), "policy_astray") is PolicyVerdict.NOT_IP
    behind_port(policy)
    assert said(policy, ethernet(0x88CC, bytes(40)), "policy_astray") is PolicyVerdict.NOT_IP


def test_sources_are_told_apart_in_all_bytes(policy: Installed) -> None:
    """An IPv4 address and the IPv6 one with the same last bytes are two."""
    peers(policy, None, Peer(SERVER, ingress_set=SET))
    rule(policy, SET, CLIENT)
    policy.maps["policy_peers"].update(
        {layout.policy_address(IPv6Address(f"::{packets.SOURCE_V4}")): layout.PEER.pack(*Peer(CLIENT))}
    )
    assert ask(policy, to(V4)) == DROP
