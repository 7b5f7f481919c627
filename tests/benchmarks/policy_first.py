"""What the first packet of a flow costs on a bridge: where ours tracks flows, beside where the kernel does.

A pod sends the first segments of connections, each to be let through, to somebody behind another port. On these
cables a frame goes all the way in the time of the process that sends it, so its processor time, divided by the
frames, is what one costs; less what one costs on a bridge with nobody in the way. The least of all rounds counts:
whatever else the machine does only adds.

Caches are as cold as the kernel's way from socket to socket leaves them. `policy_packet` measures warm ones.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

from tests.benchmarks.masq_stage import POD, Wire
from tests.benchmarks.policy_cluster import Tenant
from tests.benchmarks.policy_packet import NEW_NS, SYN, frame
from tests.benchmarks.report import Result
from tests.bpf.packets import ETH_IP, TCP
from tests.fabric.netns import Namespace
from tests.fabric.policy_node import link
from tests.fabric.reach import checksum

ROUNDS, FLOWS = 60, 500
NOTHING, CONNTRACK = "nothing", "conntrack"
_NOBODY = b"\x02\x00\x00\x00\x0f\xff"  # the frame is flooded, and nobody answers
FIRST_PORT = 10_000
_ETHERNET, _IPV4 = 14, 20  # bytes of these headers


def results(alone: Mapping[str, Wire], handed: Mapping[str, Wire], tenant: Tenant) -> list[Result]:
    """By contender: bridges that keep their frames, and bridges that hand them over to the kernel's tracking."""
    (ours,) = alone.keys() - {NOTHING}
    wires = {("alone", name): alone[name] for name in (NOTHING, ours)}
    wires |= {("handed", name): handed[name] for name in (NOTHING, CONNTRACK)}
    least = _least_ns(wires, tenant)
    added = least["alone", ours] - least["alone", NOTHING]
    beside = {CONNTRACK: least["handed", CONNTRACK] - least["handed", NOTHING]}
    return [Result(name="bridge_new_flow_ns", value=added, unit="ns", goal=NEW_NS, beside=beside)]


def _least_ns(wires: Mapping[tuple[str, str], Wire], tenant: Tenant) -> dict[tuple[str, str], float]:
    """RuntimeError: a frame did not arrive, or began no flow."""
    taken: dict[tuple[str, str], list[float]] = {name: [] for name in wires}
    macs = {name: _NOBODY + link(wire.pod, "eth0")[1] for name, wire in wires.items()}
    peers = list(itertools.islice(tenant.allowed(), FLOWS))
    for number in range(ROUNDS):
        for name, wire in wires.items():
            frames = [macs[name] + _first(to, FIRST_PORT + number) for to in peers]
            before = _arrived(wire.outside)
            taken[name].append(_send_ns(wire, frames))
            if (arrived := _arrived(wire.outside) - before) < FLOWS:
                raise RuntimeError(f"of {FLOWS} frames through {wire.name} {arrived} arrived")
            if name[1] == CONNTRACK and (flows := wire.flows()) < FLOWS:
                raise RuntimeError(f"{FLOWS} frames through {wire.name} began {flows} flows")
            wire.forget_flows()
    return {name: min(each) for name, each in taken.items()}


def _first(to: IPv4Address, port: int) -> bytes:
    """Of a connection of the pod, with the checksums that the kernel asks for before it tracks one."""
    packet = bytearray(frame(str(to), port, SYN, source=IPv4Address(POD))[_ETHERNET:])
    packet[10:12] = checksum(bytes(packet[:_IPV4])).to_bytes(2, "big")
    segment = packet[_IPV4:]
    pseudo = bytes(packet[12:20]) + struct.pack("!HH", TCP, len(segment))
    packet[_IPV4 + 16 : _IPV4 + 18] = checksum(pseudo + bytes(segment)).to_bytes(2, "big")
    return struct.pack("!H", ETH_IP) + bytes(packet)


def _send_ns(wire: Wire, frames: Sequence[bytes]) -> float:
    """Nanoseconds of processor time for each."""
    with wire.pod.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("eth0", 0))
        began = time.thread_time_ns()
        for each in frames:
            sender.send(each)
        return (time.thread_time_ns() - began) / len(frames)


def _arrived(outside: Namespace) -> int:
    (shown,) = json.loads(outside.run(["ip", "-json", "-statistics", "link", "show", "eth0"]).stdout)
    return int(shown["stats64"]["rx"]["packets"])
