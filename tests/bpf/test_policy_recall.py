"""What is remembered changes no verdict: the same packets with a revision, twice, and without one."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_network
from random import Random

import pytest

from bgpd.datapath import layout
from bgpd.datapath.layout import policy_address
from bgpd.datapath.loader import Installed
from bgpd.model.lpm import LpmKey
from bgpd.model.prefix import Address
from bgpd.policy.entries import PLACES
from tests.bpf.conftest import emptied
from tests.bpf.fill import clear
from tests.bpf.packets import ICMPV6, TCP, UDP
from tests.bpf.test_policy import ICMP, SCTP, SOURCES, ask, to
from tests.fabric.rules_by_hand import verdicts

ROUNDS, PACKETS = 12, 60
ENDS: tuple[list[Address], ...] = (
    [IPv4Address("10.1.0.0") + number for number in range(5)],
    [IPv6Address("fd00::") + number for number in range(5)],
)
DCCP, SETS, CLASSES, PORTSETS, PORTS = 33, (1, 2), range(4), (31, 32), (80, 81)


@pytest.mark.parametrize("program", ["policy", "policy_reply", "policy_bridge"])
def test_recalled_is_judged(shared_policy: Installed, program: str) -> None:
    rand, policy = Random(7), emptied(shared_policy)
    for _ in range(ROUNDS):
        rules(policy, rand)
        frames = [packet(rand) for _ in range(PACKETS)]
        judged = said(policy, program, frames, 0)
        revision = rand.getrandbits(64) or 1
        for _ in range(2):
            assert said(policy, program, frames, revision) == judged


def rules(policy: Installed, rand: Random) -> None:
    maps, either = policy.maps, (0, 1)
    for name in PLACES:
        clear(maps[name])
    for address in (*ENDS[0], *ENDS[1]):
        if rand.random() < 0.7:
            sets = rand.choice((0, *SETS)), rand.choice((0, *SETS))
            peer = rand.choice(CLASSES), *sets, rand.choice((0, 0, 1, 2, 4, 7))
            maps["policy_peers"].update({policy_address(address): layout.PEER.pack(*peer)})
        if rand.random() < 0.6:
            block = LpmKey.of(ip_network(address))
            maps[f"policy_cidrs_v{address.version}"].update({block: layout.CLASS.pack(rand.choice(CLASSES))})
    for set_, class_ in ((set_, class_) for set_ in SETS for class_ in CLASSES):
        if rand.random() < 0.7:
            rule = rand.choice(PORTSETS), rand.choice(either), rand.choice((0, 0, 1, 2, 3)), 0, 1
            maps["policy_rules"].update({layout.rule_key(set_, class_): layout.RULE.pack(*rule)})
    for portset in PORTSETS:
        for protocol, port in ((protocol, port) for protocol in (TCP, UDP, SCTP) for port in PORTS):
            key = layout.port_key(portset, protocol, port)
            maps["policy_ports"].update({key: layout.PORT.pack(rand.choice(either), 0, 0, 1)})
        key = layout.range_key(portset, TCP, 80, 14)
        maps["policy_ranges"].update({key: layout.PORT.pack(rand.choice(either), 0, 0, 1)})


def packet(rand: Random) -> bytes:
    """Whole or cut off, some a fragment, some from an address to itself."""
    family = rand.choice(ENDS)
    source, destination = rand.choice(family), rand.choice(family)
    protocol = rand.choice((TCP, TCP, UDP, SCTP, ICMP, ICMPV6, DCCP))
    payload = struct.pack("!HH9xB6x", rand.choice((80, 40_000)), rand.choice((80, 81, 82)), rand.choice((2, 16, 18)))
    if protocol == ICMPV6:
        payload = bytes((rand.choice((128, 135, 1)),)) + bytes(19)
    frame = bytearray(to(destination, payload, protocol))
    at = 26 if source.version == 4 else 22
    assert frame[at:].startswith(SOURCES[source.version].packed)
    frame[at : at + len(source.packed)] = source.packed
    if protocol == ICMPV6 and source.version == 6:
        frame[21] = rand.choice((64, 255))  # hop limit: neighbor discovery has 255
    if source.version == 4 and rand.random() < 0.2:
        frame[20:22] = struct.pack("!H", rand.choice((0x2000, 0x0001, 0x2001)))
    return bytes(frame[: -rand.choice((8, 18))] if rand.random() < 0.15 else frame)


def said(policy: Installed, program: str, frames: list[bytes], revision: int) -> tuple[list[int], dict[int, int]]:
    """What it returns of each, and counts of all, under this revision. No flow is known at first."""
    policy.maps["policy_revision"].update({bytes(4): layout.REVISION.pack(revision)})
    for name in ("policy_tracked", "policy_fragments"):
        clear(policy.maps[name])
    before = verdicts(policy.maps["policy_verdicts"])
    values = [ask(policy, frame, program) for frame in frames]
    after = verdicts(policy.maps["policy_verdicts"])
    return values, {int(key): count - before.get(key, 0) for key, count in after.items()}
