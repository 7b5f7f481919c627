"""Shows one frame to a pinned program by sending it over a loopback, where BPF_PROG_TEST_RUN makes no packet of it.

Recent kernels refuse a test run with less than an IP header. A packet socket with the program as its filter does not.
Run as a program in a network namespace of its own: PIN FRAME, the frame in hexadecimal; prints what was returned, as
far as a filter shows it: 0 or 1.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from bgpd.datapath import pins
from tests.bpf.packets import ETH_IP, ETH_IPV6

SO_ATTACH_BPF = 50  # asm/socket.h; not in Python's socket
ROOT = Path(__file__).parents[2]
ARRIVES_S = 0.5  # it has arrived when `send` returns; this is for a kernel that does it otherwise


def returned(pin: Path, frame: bytes) -> int:
    """Same contract as `program.run`, from another namespace."""
    command = ["unshare", "--net", sys.executable, "-m", __name__, str(pin), frame.hex()]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=30, cwd=ROOT).stdout)


def main(pin: Path, frame: bytes) -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    fd = pins.get(pin, "prog")
    assert fd is not None, f"nothing is pinned at {pin}"
    protocol = int.from_bytes(frame[12:14], "big")
    assert protocol in (ETH_IP, ETH_IPV6)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, fd)
        os.close(fd)
        wire.bind(("lo", protocol))
        wire.send(frame)
        wire.settimeout(ARRIVES_S)
        try:
            return len(wire.recv(len(frame)))  # a filter returns how much of a packet its socket gets
        except TimeoutError:
            return 0


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), bytes.fromhex(sys.argv[2])))
