"""New connections one after the other, all by one thread: it connects, accepts, closes both ends, begins the next.

On these cables the kernel does whatever it does with a segment, on all three machines, in the time of the thread that
has sent it. So all that a connection costs is in the processor time of this one thread; nobody is waited for. The
rate is connections per second of that time, which is what a clock on the wall shows where nobody else wants the
processor. There is nothing else in a connection: no byte is sent, no program is behind either end.

Both ends close in order (FIN), the connecting one first. A turn is a number of connections, to an address that no
turn before had, and not a second's worth: for one destination connect() takes half of the ephemeral ports before it
looks for others, and in a second the fastest of the contenders would use them up and be held up.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import IPv4Address

from tests.benchmarks.masq_stage import Wire
from tests.benchmarks.turns import Sample, Samples, in_turns

ROUNDS = 40
CONNECTIONS = 1_000  # of 14,116 ports that connect() takes first


def taken(
    wires: Mapping[str, Wire],
    destination: Callable[[str], IPv4Address],
    source: Callable[[str], str],
    port: int,
    rounds: int = ROUNDS,
) -> Samples:
    """Where each contender's next turn goes, and who it is to come from. RuntimeError: it comes from elsewhere."""
    with contextlib.ExitStack() as stack:
        listeners = {name: stack.enter_context(_listen(wire, port)) for name, wire in wires.items()}

        def measure(name: str, wire: Wire) -> Sample:
            return _turn(wire, listeners[name], (str(destination(name)), port), source(name))

        return in_turns(wires, measure, rounds)


def _listen(wire: Wire, port: int) -> socket.socket:
    """In the outside, on all addresses that are its."""
    listener = wire.outside.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen()
    return listener


def _turn(wire: Wire, listener: socket.socket, destination: tuple[str, int], source: str) -> Sample:
    used_s, sources = wire.pod.call(partial(_connect, listener, destination))
    if sources != {source}:
        raise RuntimeError(f"with {wire.name} connections come from {', '.join(sorted(sources))}, not {source}")
    return Sample(CONNECTIONS / used_s, 1e6 * used_s / CONNECTIONS)


def _connect(listener: socket.socket, destination: tuple[str, int]) -> tuple[float, set[str]]:
    """Processor time in seconds, and who the outside took the other end for."""
    sources = set()
    began = time.thread_time()
    for _ in range(CONNECTIONS):
        client = socket.socket()
        client.connect(destination)
        server, peer = listener.accept()
        client.close()
        server.close()
        sources.add(peer[0])
    return time.thread_time() - began, sources
