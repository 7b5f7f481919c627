"""What the first packet of a flow costs, and any later one, by the length of the list: only the first asks for it.

That is shown by counting: the kernel says how often the program has run (BPF_ENABLE_STATS). And it is measured: UDP
from pod to outside through nodes with lists of several lengths, which take turns; beside them are nodes with
ip-masq-agent's chain as long. On these cables a packet goes all the way in the time of the process that sends it, so
its processor time, divided by the packets, is what a packet costs, the sending itself included. The least of all
rounds counts: whatever else the machine does only adds.

First packets are each to another address, which no list has, and conntrack knows of no flow before a round.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from bgpd.datapath import pins
from bgpd.datapath.libbpf import check, library
from tests.benchmarks.masq_contenders import iptables
from tests.benchmarks.masq_packet import FLAT, LENGTHS, PROGRAM, flatness
from tests.benchmarks.masq_stage import FAR, MasqDaemon, Wire, prefixes
from tests.benchmarks.report import Result
from tests.fabric.netns import Lab

COUNTED = 10_000  # packets of the flow in which runs are counted
ROUNDS, PACKETS = 400, 1_000  # short, so that some of them are left in peace on a busy machine
FIRST_ROUNDS, FLOWS = 60, 500
_RUN_TIME = 0  # enum bpf_stats_type


def results(lab: Lab, place: Path) -> list[Result]:
    wires = {name: Wire(lab, f"flow-{name}") for name in LENGTHS}
    chains = {name: Wire(lab, f"flow-chain-{name}") for name, length in LENGTHS.items() if length}
    for name, wire in wires.items():
        MasqDaemon(wire, place).start(prefixes(LENGTHS[name]))
    for name, wire in chains.items():
        iptables(wire, prefixes(LENGTHS[name]))
    longest = max(LENGTHS, key=LENGTHS.__getitem__)
    runs = _runs(wires[longest], place / wires[longest].name / PROGRAM)
    first = _first_packet_ns([*wires.values(), *chains.values()])
    later = _packet_ns(wires)
    ours = {name: first[wire.name] for name, wire in wires.items()}
    beside = {name: {"iptables-nft": first[wire.name]} for name, wire in chains.items()}
    return [
        *(_ns(f"first_packet_ns_{name}", value, beside.get(name, {})) for name, value in ours.items()),
        flatness("first_packet_flatness", ours, FLAT),
        Result(name=f"program_runs_in_{COUNTED}_packets", value=runs, unit="runs", goal=1.0),
        *(_ns(f"later_packet_ns_{name}", value) for name, value in later.items()),
        flatness("later_packet_flatness", later, FLAT),
    ]


def _ns(name: str, value: float, beside: Mapping[str, float] = MappingProxyType({})) -> Result:
    return Result(name=name, value=value, unit="ns", beside=beside)


def _runs(wire: Wire, pin: Path) -> int:
    """How often the program runs while one flow begins and goes on."""
    fd = pins.get(pin, "prog")
    assert fd is not None, f"nothing is pinned at {pin}"
    counting = check("counting the runs of programs", library().bpf_enable_stats(_RUN_TIME))
    try:
        before = _run_count(fd)
        with _flow(wire) as flow:
            _send(flow, COUNTED)
        return _run_count(fd) - before
    finally:
        os.close(counting)
        os.close(fd)


def _run_count(fd: int) -> int:
    """Of all processors, while it is counted."""
    found = re.search(r"^run_cnt:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    assert found is not None, "this kernel does not count runs"
    return int(found[1])


def _first_packet_ns(wires: Sequence[Wire]) -> dict[str, float]:
    """Of each, by name. RuntimeError: a packet was none that begins a flow."""
    taken: dict[str, list[float]] = {wire.name: [] for wire in wires}
    addresses = map(str, FAR.hosts())
    with contextlib.ExitStack() as stack:
        ends = {wire.name: stack.enter_context(_ends(wire)) for wire in wires}
        for _ in range(FIRST_ROUNDS):
            several = list(itertools.islice(addresses, FLOWS))
            for wire in wires:
                sender, port = ends[wire.name]
                taken[wire.name].append(_send_each(sender, [(address, port) for address in several]))
                if wire.flows() < FLOWS:
                    raise RuntimeError(f"{FLOWS} packets through {wire.name} began {wire.flows()} flows")
                wire.forget_flows()
    return {name: min(each) for name, each in taken.items()}


def _send_each(sender: socket.socket, destinations: Sequence[tuple[str, int]]) -> float:
    """Nanoseconds of processor time for each packet."""
    began = time.thread_time_ns()
    for destination in destinations:
        sender.sendto(b"?", destination)
    return (time.thread_time_ns() - began) / len(destinations)


def _packet_ns(wires: Mapping[str, Wire]) -> dict[str, float]:
    with contextlib.ExitStack() as stack:
        flows = {name: stack.enter_context(_flow(wire)) for name, wire in wires.items()}
        rounds = [{name: _send(flow) for name, flow in flows.items()} for _ in range(ROUNDS)]
    return {name: min(each[name] for each in rounds) for name in wires}


@contextlib.contextmanager
def _ends(wire: Wire) -> Iterator[tuple[socket.socket, int]]:
    """A sender, and the port to send to. Nobody reads what arrives: a buffer fills, the rest is dropped."""
    with (
        wire.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        wire.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        listener.bind(("", 0))
        yield sender, listener.getsockname()[1]


@contextlib.contextmanager
def _flow(wire: Wire) -> Iterator[socket.socket]:
    """The sender of one that has begun."""
    with _ends(wire) as (sender, port):
        sender.connect((str(FAR[1]), port))
        sender.send(b"?")
        yield sender


def _send(flow: socket.socket, packets: int = PACKETS) -> float:
    """Nanoseconds of processor time for each packet."""
    send = partial(flow.send, b"?")
    began = time.thread_time_ns()
    for _ in range(packets):
        send()
    return (time.thread_time_ns() - began) / packets
