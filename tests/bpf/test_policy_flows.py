"""Where the kernel tracks no flows: who is taken for the client, and what belongs to a flow that is known."""

from __future__ import annotations

import itertools
import struct
from ipaddress import IPv4Address

import pytest

from bgpd.datapath.layout import Action, Peer, PolicyVerdict, RuleFlag
from bgpd.datapath.loader import Installed
from bgpd.model.prefix import Address
from tests.bpf import packets
from tests.bpf.conftest import emptied
from tests.bpf.packets import ETH_ARP, FRAGMENT, ICMPV6, TCP, UDP, ethernet, ipv4, ipv6
from tests.bpf.test_policy import CLIENT, DROP, ICMP, PASS, SERVER, SET, V4, V6, ask, peers, port, rule, said

BRIDGE = "policy_bridge"
SYN, ACK, SYN_ACK, RST = 0x02, 0x10, 0x12, 0x04
both = pytest.mark.parametrize("address", [V4, V6], ids=["v4", "v6"])


@pytest.fixture
def policy(shared_policy: Installed) -> Installed:
    return emptied(shared_policy)


def back(frame: bytes) -> bytes:
    """With source and destination the other way round."""
    at, width = (26, 4) if frame[12:14] == b"\x08\x00" else (22, 16)
    return frame[:at] + frame[at + width : at + 2 * width] + frame[at : at + width] + frame[at + 2 * width :]


def send(to: Address, payload: bytes, protocol: int) -> bytes:
    if isinstance(to, IPv4Address):
        return ipv4(to, payload, protocol=protocol)
    return ipv6(to, payload, next_header=protocol)


def tcp(to: Address, source: int, destination: int, flags: int) -> bytes:
    return send(to, struct.pack("!HHIIBBHHH", source, destination, 0, 0, 0x50, flags, 0, 0, 0), TCP)


def udp(to: Address, source: int, destination: int) -> bytes:
    return send(to, struct.pack("!HHHH", source, destination, 8, 0), UDP)


def echo(to: Address, number: int, *, reply: bool = False) -> bytes:
    if isinstance(to, IPv4Address):
        return send(to, struct.pack("!BBHHH", 0 if reply else 8, 0, 0, number, 1), ICMP)
    return send(to, struct.pack("!BBHHH", 129 if reply else 128, 0, 0, number, 1), ICMPV6)


@pytest.fixture
def closed_client(policy: Installed) -> Installed:
    """The client may ask the server for TCP 80, UDP 53 and echoes; nobody may ask the client for anything."""
    peers(policy, Peer(CLIENT, egress_set=SET, ingress_set=99), Peer(SERVER))
    rule(policy, SET, SERVER, Action.DENY, RuleFlag.HAS_PORTS)
    for protocol, number in ((TCP, 80), (UDP, 53), (ICMP, 0), (ICMPV6, 0)):
        port(policy, protocol, number)
    return policy


@both
def test_a_reply_to_a_flow_that_began_passes(closed_client: Installed, address: Address) -> None:
    """And without it nothing does."""
    exchanges = [
        (tcp(address, 4000, 80, SYN), back(tcp(address, 80, 4000, SYN_ACK))),
        (udp(address, 4000, 53), back(udp(address, 53, 4000))),
        (echo(address, 5), back(echo(address, 5, reply=True))),
    ]
    for first, reply in exchanges:
        assert said(closed_client, reply, BRIDGE) is PolicyVerdict.DENIED_INGRESS
        assert said(closed_client, first, BRIDGE) is PolicyVerdict.ALLOWED
        assert said(closed_client, reply, BRIDGE) is PolicyVerdict.ALLOWED


@both
def test_what_can_only_be_first_is_no_reply(closed_client: Installed, address: Address) -> None:
    """A server cannot use the way that a client has opened to it."""
    for first in (tcp(address, 4000, 80, SYN), echo(address, 5)):
        assert ask(closed_client, first, BRIDGE) == PASS
    assert ask(closed_client, back(tcp(address, 80, 4000, SYN)), BRIDGE) == DROP
    assert ask(closed_client, back(echo(address, 5)), BRIDGE) == DROP


@both
def test_a_reply_is_of_its_ports_and_protocol(closed_client: Installed, address: Address) -> None:
    assert ask(closed_client, udp(address, 4000, 53), BRIDGE) == PASS
    for other in (udp(address, 54, 4000), udp(address, 53, 4001), tcp(address, 53, 4000, ACK)):
        assert ask(closed_client, back(other), BRIDGE) == DROP


@both
def test_a_flow_is_judged_by_the_rules_of_the_moment(closed_client: Installed, address: Address) -> None:
    """To have begun gives no right to go on."""
    assert ask(closed_client, tcp(address, 4000, 80, SYN), BRIDGE) == PASS
    port(closed_client, TCP, 80, Action.DENY)
    both_ways = tcp(address, 4000, 80, ACK), back(tcp(address, 80, 4000, ACK))
    assert [ask(closed_client, each, BRIDGE) for each in both_ways] == [DROP, DROP]
    port(closed_client, TCP, 80)
    assert [ask(closed_client, each, BRIDGE) for each in both_ways] == [PASS, PASS]


@both
def test_a_flow_that_began_before_anybody_was_isolated_goes_on(policy: Installed, address: Address) -> None:
    assert ask(policy, tcp(address, 4000, 80, SYN), BRIDGE) == PASS
    peers(policy, Peer(CLIENT, ingress_set=99), Peer(SERVER))
    assert said(policy, back(tcp(address, 80, 4000, ACK)), BRIDGE) is PolicyVerdict.NOT_ISOLATED


@both
def test_both_ends_may_begin_a_flow_of_the_same_ports(policy: Installed, address: Address) -> None:
    """Each is judged as its own: what the rules take from one is not the other's."""
    ours, theirs = tcp(address, 4000, 80, SYN), back(tcp(address, 80, 4000, SYN))
    assert [ask(policy, each, BRIDGE) for each in (ours, theirs)] == [PASS, PASS]
    ((_, flow),) = policy.maps["policy_tracked"].entries().items()
    assert all(struct.unpack("=2I", flow))
    peers(policy, Peer(CLIENT, ingress_set=99), Peer(SERVER))
    assert said(policy, theirs, BRIDGE) is PolicyVerdict.DENIED_INGRESS
    assert said(policy, back(tcp(address, 80, 4000, ACK)), BRIDGE) is PolicyVerdict.NOT_ISOLATED, "a reply to ours"


@both
def test_a_server_may_speak_first_where_nobody_saw_the_beginning(closed_client: Installed, address: Address) -> None:
    """What it says passes if the client may ask for it, and the connection is the client's."""
    assert ask(closed_client, back(tcp(address, 80, 40000, ACK)), BRIDGE) == PASS
    assert ask(closed_client, tcp(address, 40000, 80, ACK), BRIDGE) == PASS
    port(closed_client, TCP, 80, Action.DENY)
    both_ways = tcp(address, 40000, 80, ACK), back(tcp(address, 80, 40000, ACK))
    assert [ask(closed_client, each, BRIDGE) for each in both_ways] == [DROP, DROP], "revoked"


@both
def test_no_more_than_an_answer_is_taken_for_one(closed_client: Installed, address: Address) -> None:
    """Neither what begins a connection, nor from or to other ports, nor of a server that may not be asked."""
    for source, destination, flags in ((80, 40000, SYN), (80, 40000, SYN_ACK), (80, 4000, ACK), (81, 40000, ACK)):
        assert ask(closed_client, back(tcp(address, source, destination, flags)), BRIDGE) == DROP
    port(closed_client, TCP, 50000)
    assert ask(closed_client, back(tcp(address, 50000, 40000, ACK)), BRIDGE) == DROP, "who is who?"
    assert ask(closed_client, back(udp(address, 53, 40000)), BRIDGE) == DROP


@both
def test_what_nobody_saw_begin_is_believed_for_a_time_only(closed_client: Installed, address: Address) -> None:
    """From the first packet on, and not again once that time is over."""
    seeding, only = closed_client.maps["policy_seeding"], bytes(4)
    assert seeding.entries() == {only: bytes(4)}
    assert ask(closed_client, back(tcp(address, 80, 40000, ACK)), BRIDGE) == PASS
    assert seeding.entries() != {only: bytes(4)}
    closed_client.maps["policy_tracked"].delete(closed_client.maps["policy_tracked"].entries())
    seeding.update({only: struct.pack("=I", 1)})
    assert ask(closed_client, back(tcp(address, 80, 40000, ACK)), BRIDGE) == DROP
    assert ask(closed_client, tcp(address, 40000, 80, ACK), BRIDGE) == PASS, "its client has spoken"


def test_what_was_denied_is_not_remembered(closed_client: Installed) -> None:
    assert ask(closed_client, udp(V4, 4000, 54), BRIDGE) == DROP
    assert closed_client.maps["policy_tracked"].entries() == {}


def error(frame: bytes) -> bytes:
    """Unreachable, from the destination of `frame` to its source."""
    if frame[12:14] == b"\x08\x00":
        return back(ipv4(V4, bytes((3, 3)) + bytes(6) + frame[14:], protocol=ICMP))
    return back(ipv6(V6, bytes((1, 4)) + bytes(6) + frame[14:], next_header=ICMPV6))


@both
def test_an_error_of_a_known_flow_passes_and_another_does_not(closed_client: Installed, address: Address) -> None:
    asked, never = udp(address, 4000, 53), udp(address, 4001, 53)
    assert ask(closed_client, asked, BRIDGE) == PASS
    assert said(closed_client, error(asked), BRIDGE) is PolicyVerdict.RELATED
    assert said(closed_client, error(never), BRIDGE) is PolicyVerdict.DENIED_INGRESS
    answer = back(udp(address, 53, 4000))
    assert said(closed_client, error(answer), BRIDGE) is PolicyVerdict.DENIED_INGRESS, "not its receiver's"
    assert said(closed_client, error(asked)[:-20], BRIDGE) is PolicyVerdict.DENIED_INGRESS, "cut off"


@both
def test_later_fragments_follow_the_first(closed_client: Installed, address: Address) -> None:
    """Those of a packet whose first fragment has not come are not known to be allowed."""
    head = struct.pack("!HHHH", 4000, 53, 8, 0)
    if isinstance(address, IPv4Address):
        first = ipv4(address, head + bytes(8), more_fragments=True)
        late = ipv4(address, bytes(16), offset=2)
    else:
        first = ipv6(address, packets.fragment_header(UDP, 0, True) + head + bytes(8), next_header=FRAGMENT)
        late = ipv6(address, packets.fragment_header(UDP, 2, False) + bytes(16), next_header=FRAGMENT)
    assert said(closed_client, late, BRIDGE) is PolicyVerdict.LATE_FRAGMENT
    assert said(closed_client, first, BRIDGE) is PolicyVerdict.ALLOWED
    assert said(closed_client, late, BRIDGE) is PolicyVerdict.ALLOWED


def test_a_flow_that_ends_is_remembered_for_less(closed_client: Installed) -> None:
    def left() -> int:
        ((_, flow),) = closed_client.maps["policy_tracked"].entries().items()
        return int(max(struct.unpack("=2I", flow)))

    assert ask(closed_client, tcp(V4, 4000, 80, SYN), BRIDGE) == PASS
    opening = left()
    assert ask(closed_client, tcp(V4, 4000, 80, ACK), BRIDGE) == PASS
    established = left()
    assert ask(closed_client, back(tcp(V4, 80, 4000, RST)), BRIDGE) == PASS
    assert opening < established
    assert left() < established


# --- below VLAN tags ------------------------------------------------------------------------------------------------


def below(frame: bytes, *vlans: int) -> bytes:
    """With priority bits beside each VLAN, and of both kinds of tag."""
    kinds = itertools.cycle((0x88A8, 0x8100))
    tags = (struct.pack("!HH", kind, 5 << 13 | each) for kind, each in zip(kinds, vlans, strict=False))
    return frame[:12] + b"".join(tags) + frame[12:]


@both
@pytest.mark.parametrize("vlans", [(0,), (5,), (0, 0), (0, 5), (5, 0), (0,) * 8], ids=str)
def test_ip_below_tags_of_no_more_than_one_vlan_is_judged(
    closed_client: Installed, address: Address, vlans: tuple[int, ...]
) -> None:
    """With its flow, which has tags or none."""
    assert said(closed_client, below(udp(address, 4000, 54), *vlans), BRIDGE) is PolicyVerdict.DENIED_EGRESS
    reply = back(udp(address, 53, 4000))
    assert said(closed_client, below(reply, *vlans), BRIDGE) is PolicyVerdict.DENIED_INGRESS
    assert said(closed_client, below(udp(address, 4000, 53), *vlans), BRIDGE) is PolicyVerdict.ALLOWED
    assert said(closed_client, below(reply, *vlans), BRIDGE) is PolicyVerdict.ALLOWED
    assert said(closed_client, reply, BRIDGE) is PolicyVerdict.ALLOWED
    assert said(closed_client, below(echo(address, 5), *vlans), BRIDGE) is PolicyVerdict.ALLOWED
    for number, verdict in ((5, PolicyVerdict.ALLOWED), (6, PolicyVerdict.DENIED_INGRESS)):
        assert said(closed_client, below(back(echo(address, number, reply=True)), *vlans), BRIDGE) is verdict


@both
@pytest.mark.parametrize("vlans", [(5, 6), (5, 0, 6), (0, 5, 0, 6)], ids=str)
def test_ip_below_two_vlans_is_nobody_s_here(
    closed_client: Installed, address: Address, vlans: tuple[int, ...]
) -> None:
    assert said(closed_client, below(udp(address, 4000, 54), *vlans), BRIDGE) is PolicyVerdict.NOT_ISOLATED


def test_what_is_not_ip_below_tags_passes(closed_client: Installed) -> None:
    """As it does where it has none: no rule shows it to a program."""
    assert said(closed_client, below(ethernet(ETH_ARP, bytes(28)), 0, 0), BRIDGE) is PolicyVerdict.NOT_ISOLATED


@both
def test_more_tags_than_a_program_looks_below_are_dropped(policy: Installed, address: Address) -> None:
    """And those that are cut off."""
    assert said(policy, below(udp(address, 4000, 53), *[0] * 9), BRIDGE) is PolicyVerdict.BAD_HEADER
    assert said(policy, below(udp(address, 4000, 53), 0, 0)[:20], BRIDGE) is PolicyVerdict.BAD_HEADER
    assert said(policy, below(udp(address, 4000, 53), 0, 0)[:40], BRIDGE) is PolicyVerdict.BAD_HEADER
