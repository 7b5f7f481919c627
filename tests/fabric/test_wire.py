"""How captured frames become BGP messages, on frames made here: no namespace and no privilege is needed."""

from __future__ import annotations

import ipaddress
import random
import struct

import pytest

from tests.fabric.bgp_wire import MARKER, BgpMessage, BgpType, Reassembly

KEEPALIVE = MARKER + struct.pack("!HB", 19, BgpType.KEEPALIVE)
END_OF_RIB = MARKER + struct.pack("!HB", 23, BgpType.UPDATE) + bytes(4)
SHUTDOWN = MARKER + struct.pack("!HBBB", 21, BgpType.NOTIFICATION, 6, 2)
BIG_UPDATE = MARKER + struct.pack("!HB", 4096, BgpType.UPDATE) + bytes(range(256)) * 15 + bytes(237)


def packet(
    payload: bytes, sequence: int, *, flags: int = 0x18, src: str = "10.0.0.1", dst: str = "10.0.0.2"
) -> bytes:
    """An IP packet with one TCP segment from port 40000 to 179; checksums are nobody's business here."""
    addresses = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    tcp = struct.pack("!HHIIBBHHH", 40000, 179, sequence & 0xFFFFFFFF, 0, 5 << 4, flags, 0, 0, 0) + payload
    if len(addresses) == 8:
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + addresses + tcp
    return struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + addresses + tcp


def read(*packets: bytes) -> list[BgpMessage]:
    reassembly = Reassembly()
    return [message for at, it in enumerate(packets) for message in reassembly.feed(float(at), it)]


def types(*packets: bytes) -> list[str]:
    return [message.type.name for message in read(*packets)]


def test_several_messages_in_one_segment_are_all_seen() -> None:
    assert types(packet(KEEPALIVE + END_OF_RIB + SHUTDOWN, 1)) == ["KEEPALIVE", "UPDATE", "NOTIFICATION"]


@pytest.mark.parametrize("size", [1, 7, 18, 19, 20, 1448])
def test_a_message_cut_into_segments_of_any_size_is_one_message(size: int) -> None:
    stream = KEEPALIVE + BIG_UPDATE + SHUTDOWN
    cut = [packet(stream[at : at + size], 1 + at) for at in range(0, len(stream), size)]
    assert [(it.type.name, len(it.body)) for it in read(*cut)] == [
        ("KEEPALIVE", 0),
        ("UPDATE", 4077),
        ("NOTIFICATION", 2),
    ]


def test_the_time_of_a_message_is_that_of_its_last_segment() -> None:
    assert [it.time for it in read(packet(KEEPALIVE[:5], 1), packet(KEEPALIVE[5:], 6))] == [1.0]


def test_segments_twice_out_of_order_or_overlapping_do_no_harm() -> None:
    """Also where the sequence numbers wrap to zero."""
    stream = b"".join([KEEPALIVE, END_OF_RIB] * 20)
    start = 2**32 - 100
    cut = [
        packet(stream[max(0, at - 3) : at + 11], start + max(0, at - 3)) for at in range(0, len(stream), 11)
    ]
    shuffled = cut[1:] + cut[3:9]
    random.Random(1).shuffle(shuffled)
    syn = packet(b"", start - 1, flags=2)
    assert types(syn, *shuffled, cut[0]) == ["KEEPALIVE", "UPDATE"] * 20


def test_a_capture_that_starts_inside_a_message_goes_on_at_the_next_marker() -> None:
    assert types(packet(BIG_UPDATE[3000:] + KEEPALIVE, 500)) == ["KEEPALIVE"]


def test_a_new_connection_on_the_same_ports_starts_afresh() -> None:
    half = packet(BIG_UPDATE[:100], 1)
    assert types(half, packet(b"", 70_000, flags=2), packet(KEEPALIVE, 70_001)) == ["KEEPALIVE"]


def test_the_codes_of_a_notification_and_the_addresses_of_its_sender_are_known() -> None:
    (message,) = read(packet(SHUTDOWN, 1, src="fd00::1", dst="fd00::2"))
    assert (message.notification, message.src, message.dst) == ((6, 2), "fd00::1", "fd00::2")


def test_end_of_rib_is_told_from_other_updates_in_both_families() -> None:
    mp_unreach = bytes.fromhex("0000 0006 800f 03 0002 01")
    v6 = MARKER + struct.pack("!HB", 19 + len(mp_unreach), BgpType.UPDATE) + mp_unreach
    assert [it.end_of_rib for it in read(packet(END_OF_RIB + v6 + BIG_UPDATE, 1))] == [True, True, False]


def test_other_protocols_fragments_and_rubbish_are_passed_over() -> None:
    udp = bytearray(packet(KEEPALIVE, 1))
    udp[9] = 17
    fragment = bytearray(packet(KEEPALIVE, 1))
    fragment[6] = 0x20
    assert types(b"", b"\x45", bytes(udp), bytes(fragment), packet(b"", 1)) == []
