"""Opens TCP connections one after the other, and takes them; for the rate at which a node lets new ones through.

A program of its own for each end, with the standard library only, because it is started in a network namespace:

    connections.py serve PORT
    connections.py dial FIRST_ADDRESS COUNT PORT SECONDS

`dial` goes round the addresses and prints what came of it as JSON: connections, failures, seconds of processor time.
A connection carries a byte each way, and ends with a reset, which leaves no TIME_WAIT behind that the next one would
have to get past.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import sys
import time

TIMEOUT_S = 1.0
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, at once


def serve(port: int) -> None:
    """For ever; the processor time of this end is for others to read from /proc."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen(4096)
        while True:
            with listener.accept()[0] as accepted:
                accepted.send(accepted.recv(1))


def dial(first: str, count: int, port: int, seconds: float) -> dict[str, float]:
    base = int(ipaddress.IPv4Address(first))
    targets = [(str(ipaddress.IPv4Address(base + number)), port) for number in range(count)]
    opened = failed = 0
    began, used = time.monotonic(), time.process_time()
    while (passed := time.monotonic() - began) < seconds:
        with socket.socket() as dialer:
            dialer.settimeout(TIMEOUT_S)
            try:
                dialer.connect(targets[(opened + failed) % count])
                dialer.send(b"?")
                dialer.recv(1)
            except OSError:
                failed += 1
                continue
            dialer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            opened += 1
    return {"opened": opened, "failed": failed, "seconds": passed, "cpu_s": time.process_time() - used}


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        address, number, where, duration = sys.argv[2:]
        print(json.dumps(dial(address, int(number), int(where), float(duration))))
