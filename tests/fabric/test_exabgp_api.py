"""ExaBGP's API as a helper process sees it, and the rig with which the facts about it are reproduced.

The rig decides how a test gets hold of ExaBGP's two pipes: the helper that ExaBGP starts hands its standard
input and output to the test over a unix socket and sleeps. So the test itself is the helper: it reads, or does
not, and writes byte by byte. It does not decide what is configured (a test gives neighbor blocks) nor who the
peer is. The tests here are about commands and answers; sessions and routes are in `test_exabgp_facts`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fabric import exabgp
from tests.fabric.bird import Bird
from tests.fabric.netns import Lab, Namespace
from tests.fabric.peer import FAMILIES, Neighbor, Options
from tests.fabric.process import Process, poll

TOR, NODE, ASN = "10.0.0.1", "10.0.0.2", 64512
TOR6, NODE6 = "fd00::1", "fd00::2"
PIPE_BYTES = 65536  # capacity of a pipe, pipe(7)

pytestmark = pytest.mark.needs("bird", str(exabgp.PROGRAM))

_HELPER = """\
import signal, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
socket.send_fds(sock, [b"x"], [0, 1])
signal.pause()
"""


class Helper:
    """One life of the helper: ExaBGP's pipes, in the test's hands. Close it before the helper is to be dead."""

    def __init__(self, connection: socket.socket) -> None:
        self.pid = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
        _, (self.input, self.output), _, _ = socket.recv_fds(connection, 1, 2)
        connection.close()
        self.events: list[dict[str, Any]] = []
        self._rest = b""

    def send(self, text: str) -> None:
        """Writes a command and does not wait for its answer; more than a pipe of them needs a reader."""
        os.write(self.output, text.encode() + b"\n")

    def lines(self, timeout_s: float = 10.0) -> Iterator[str]:
        """Lines of answers as they come; events are put aside into `events`."""
        deadline = time.monotonic() + timeout_s
        while True:
            *complete, self._rest = self._rest.split(b"\n")
            for index, line in enumerate(complete):
                if line.startswith(b'{ "exabgp"'):
                    self.events.append(json.loads(line))
                    continue
                # what was not asked for yet is kept for the next call
                kept, self._rest = self._rest, b"\n".join([*complete[index + 1 :], self._rest])
                yield line.decode()
                assert kept is not None
                break
            else:
                if not select.select([self.input], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise TimeoutError(f"ExaBGP said nothing more in {timeout_s:g} s")
                data = os.read(self.input, 1 << 16)
                if not data:
                    raise EOFError("ExaBGP closed the helper's input")
                self._rest += data

    def answer(self, timeout_s: float = 10.0) -> tuple[str, list[str]]:
        """The next acknowledgement (`done` or `error`) and the output before it."""
        output: list[str] = []
        for line in self.lines(timeout_s):
            if line in ("done", "error"):
                return line, output
            output.append(line)
        raise AssertionError

    def command(self, text: str) -> list[str]:
        """A command's output; `AssertionError` when ExaBGP refuses it."""
        self.send(text)
        acknowledgement, output = self.answer()
        assert acknowledgement == "done", f"refused: {text}"
        return output

    def close(self) -> None:
        os.close(self.input)
        os.close(self.output)
