"""ExaBGP's API as a helper process sees it, and the rig with which the facts about ExaBGP are reproduced.

The rig decides how a test gets hold of ExaBGP's two pipes: the helper that ExaBGP starts hands its standard
input and output to the test over a unix socket and sleeps. So the test itself is the helper: it reads, or does
not, and writes what it likes. It does not decide what is configured (a test gives neighbor blocks) nor what
the peer is told. The tests here are about commands, answers and the helper's life; sessions and routes are in
`test_exabgp_facts`, reloads in `test_exabgp_reload`. Where a test fails after an upgrade of ExaBGP, its
docstring says what of ours rests on the fact.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fabric import exabgp
from tests.fabric.bird import Bird
from tests.fabric.netns import Lab, Namespace
from tests.fabric.peer import FAMILIES, Neighbor, Options
from tests.fabric.process import Process, poll

ASN = 64512
TOR, NODE, NODE6 = "10.0.0.1", "10.0.0.2", "fd00:0:0:0::2"
TOR_B, NODE_B = "10.0.1.1", "10.0.1.2"
PIPE_BYTES = 65536  # a pipe's capacity, pipe(7)

_HELPER = """\
import signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
socket.send_fds(connection, [b"x"], [0, 1])
signal.pause()
"""


class Helper:
    """One life of the helper: ExaBGP's pipes in the test's hands, until `close`."""

    def __init__(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = int.from_bytes(credentials[:4], sys.byteorder)
        _, (self.input, self.output), _, _ = socket.recv_fds(connection, 1, 2)
        connection.close()
        self.events: list[dict[str, Any]] = []
        self._lines: deque[str] = deque()
        self._rest = b""

    def send(self, text: str) -> None:
        """Writes a command and does not wait for its answer."""
        os.write(self.output, text.encode() + b"\n")

    def line(self, timeout_s: float = 10.0) -> str:
        """The next line that is no event; events are put aside into `events`."""
        deadline = time.monotonic() + timeout_s
        while not self._lines:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.input], [], [], left)[0]:
                raise TimeoutError(f"ExaBGP said nothing in {timeout_s:g} s")
            data = os.read(self.input, 1 << 16)
            if not data:
                raise EOFError("ExaBGP closed the helper's input")
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b'{ "exabgp"'):
                    self.events.append(json.loads(line))
                else:
                    self._lines.append(line.decode())
        return self._lines.popleft()

    def answer(self, timeout_s: float = 10.0) -> tuple[str, list[str]]:
        """The next acknowledgement (`done` or `error`) and the output before it."""
        output: list[str] = []
        while (line := self.line(timeout_s)) not in ("done", "error"):
            output.append(line)
        return line, output

    def command(self, text: str) -> list[str]:
        """A command's output; `AssertionError` when ExaBGP refuses it."""
        self.send(text)
        acknowledgement, output = self.answer()
        assert acknowledgement == "done", f"refused: {text}"
        return output

    def close(self) -> None:
        os.close(self.input)
        os.close(self.output)


class Rig:
    """A node with ExaBGP and two ToRs with BIRD, a cable to each. `start` and `tor` start what a test needs."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node = lab.namespace("node")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(lab.directory / "helper.sock"))
        self.listener.listen()
        self.file = lab.directory / "exabgp.conf"
        self.process: Process | None = None
        self.namespaces: dict[str, Namespace] = {}
        for index, address in enumerate((TOR, TOR_B)):
            space = self.namespaces[address] = lab.namespace(f"tor{index}")
            lab.link(space, "eth0", self.node, f"eth{index}")
            space.add_address("eth0", f"{address}/24", f"fd00:0:0:{index}::1/64")
            self.node.add_address(f"eth{index}", f"10.0.{index}.2/24", f"fd00:0:0:{index}::2/64")

    def tor(self, address: str = TOR, **neighbor: Any) -> Bird:
        """Starts the BIRD at `address`; `neighbor` is what it is told about the node."""
        told = {"address": local(address), "asn": ASN, "families": FAMILIES, **neighbor}
        options = Options(asn=ASN, router_id=address, neighbors=(Neighbor(**told),))
        return Bird(self.namespaces[address], options).start()

    def configure(self, *blocks: str) -> None:
        """Writes the configuration file: our helper and these neighbors."""
        run = f"{sys.executable} -I -S {self.lab.directory}/helper.py {self.lab.directory}/helper.sock"
        head = f"process helper {{ run {run}; encoder json; }}\n"
        self.file.write_text(head + "\n".join(blocks))

    def start(self, *blocks: str, **env: str) -> Helper:
        """Starts ExaBGP; returns its helper. `env` is added to the settings, without their `exabgp_`."""
        (self.lab.directory / "helper.py").write_text(_HELPER)
        self.configure(*blocks)
        settings = {f"exabgp_{key}".replace("__", "-"): value for key, value in env.items()}
        argv = [str(exabgp.PROGRAM), "server", str(self.file)]
        self.process = self.node.popen(argv, name="exabgp", env={**exabgp.ENVIRONMENT, **settings})
        return self.helper()

    def helper(self, timeout_s: float = 10.0) -> Helper:
        """The next helper that ExaBGP starts."""
        self.listener.settimeout(timeout_s)
        return Helper(self.listener.accept()[0])

    def reload(self) -> None:
        assert self.process is not None
        self.process.signal(signal.SIGUSR1)


def local(peer: str) -> str:
    """The node's address on the cable to this ToR."""
    return peer.removesuffix(".1") + ".2"


def neighbor(
    peer: str = TOR,
    *,
    session: str = "",
    hold_s: int = 9,
    manual_eor: bool = True,
    restart_s: int = 120,
    **settings: Any,
) -> str:
    """A neighbor block; `settings` are those of `exabgp.configuration`."""
    api = "api { processes [ helper ]; neighbor-changes; negotiated; }"
    eor = f"manual-eor {'true' if manual_eor else 'false'};"
    return exabgp.configuration(
        local_address=local(peer),
        router_id=NODE,
        asn=ASN,
        peers=[(peer, ASN)],
        session=f"hold-time {hold_s}; adj-rib-in false; adj-rib-out true; {eor} {session} {api}",
        graceful_restart_s=restart_s,
        **settings,
    )


@pytest.fixture
def rig(lab: Lab) -> Iterator[Rig]:
    made = Rig(lab)
    yield made
    made.listener.close()


# --- commands and answers


def test_acknowledgements_carry_no_id(rig: Rig) -> None:
    """`done` and `error`, and nothing that says of which command. The bridge gives one command at a time."""
    helper = rig.start(neighbor())
    helper.send("show neighbor json\nno such command")
    assert {helper.line(), helper.line(), helper.line()[:2]} == {"error", "done", "[{"}


def test_some_commands_overtake_others(rig: Rig) -> None:
    """`version` and `teardown` are answered before a `show` or `announce` that was given first.

    So acknowledgements cannot be matched by order either: the bridge again.
    """
    helper = rig.start(neighbor())
    helper.send(f"show neighbor json\nversion\nneighbor {TOR} announce eor ipv4 unicast\nneighbor {TOR} teardown")
    answers = [helper.answer() for _ in range(4)]
    assert answers[0][1][0].startswith("exabgp 5.")
    assert [acknowledgement for acknowledgement, _ in answers] == ["done", "error", "error", "done"]
    assert answers[3][1][0].startswith("[{")
