"""What a packet of an open flow costs, by the length of the list: the list is asked for the first one only.

That is shown by counting: the kernel says how often the program has run (BPF_ENABLE_STATS). And it is measured: one
UDP flow from pod to outside through nodes with lists of several lengths, which take turns. On these cables a packet
goes all the way in the time of the process that sends it, so its processor time, divided by the packets, is what a
packet costs, the sending itself included. The least of all rounds counts: whatever else the machine does only adds.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from bgpd.datapath import pins
from bgpd.datapath.libbpf import check, library
from tests.benchmarks.masq_packet import FLAT, LENGTHS, PROGRAM, flatness
from tests.benchmarks.masq_stage import FAR, MasqDaemon, Wire, prefixes
from tests.benchmarks.report import Result
from tests.fabric.netns import Lab

COUNTED = 10_000  # packets of the flow in which runs are counted
ROUNDS, PACKETS = 400, 1_000  # short, so that some of them are left in peace on a busy machine
_RUN_TIME = 0  # enum bpf_stats_type


def results(lab: Lab, place: Path) -> list[Result]:
    wires = {name: Wire(lab, f"flow-{name}") for name in LENGTHS}
    for name, wire in wires.items():
        MasqDaemon(wire, place).start(prefixes(LENGTHS[name]))
    longest = max(LENGTHS, key=LENGTHS.__getitem__)
    runs = _runs(wires[longest], place / wires[longest].name / PROGRAM)
    cost = _packet_ns(wires)
    return [
        Result(name=f"program_runs_in_{COUNTED}_packets", value=runs, unit="runs", goal=1.0),
        *(Result(name=f"later_packet_ns_{name}", value=value, unit="ns") for name, value in cost.items()),
        flatness("later_packet_flatness", cost, FLAT),
    ]


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


def _packet_ns(wires: Mapping[str, Wire]) -> dict[str, float]:
    with contextlib.ExitStack() as stack:
        flows = {name: stack.enter_context(_flow(wire)) for name, wire in wires.items()}
        rounds = [{name: _send(flow) for name, flow in flows.items()} for _ in range(ROUNDS)]
    return {name: min(each[name] for each in rounds) for name in wires}


@contextlib.contextmanager
def _flow(wire: Wire) -> Iterator[socket.socket]:
    """The sender of one that has begun. Nobody reads what arrives: a buffer fills, the rest is dropped."""
    with (
        wire.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        wire.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        listener.bind(("", 0))
        sender.connect((str(FAR[1]), listener.getsockname()[1]))
        sender.send(b"?")
        yield sender


def _send(flow: socket.socket, packets: int = PACKETS) -> float:
    """Nanoseconds of processor time for each packet."""
    send = partial(flow.send, b"?")
    began = time.thread_time_ns()
    for _ in range(packets):
        send()
    return (time.thread_time_ns() - began) / packets
