"""ExaBGP's API as a helper process sees it, and the rig with which the facts about ExaBGP are reproduced.

The rig decides how a test gets hold of ExaBGP's two pipes: the helper that ExaBGP starts hands its standard
input and output to the test over a unix socket and sleeps. So the test itself is the helper: it reads, or does
not, and writes what it likes. It does not decide what is configured (a test gives neighbor blocks) nor what
the peer is told. The tests here are about commands, answers and the helper's life; sessions and routes are in
`test_exabgp_facts`, reloads in `test_exabgp_reload`. Where a test fails after an upgrade of ExaBGP, its
docstring says what of ours rests on the fact.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import signal
import socket
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exabgp.reactor.api import processes

from tests.fabric import exabgp
from tests.fabric.bgp_wire import BgpMessage, BgpType
from tests.fabric.bird import Bird
from tests.fabric.netns import Lab, Namespace
from tests.fabric.observe import BgpCapture
from tests.fabric.peer import FAMILIES, Neighbor, Options, many_prefixes
from tests.fabric.process import Process, poll
from tests.files import rewrite

ASN = 64512
TOR, NODE, NODE6 = "10.0.0.1", "10.0.0.2", "fd00::2"
TOR_B, NODE_B = "10.0.1.1", "10.0.1.2"
V4, V6 = "188.188.0.0/24", "2001:db8::/64"
PIPE_BYTES = 65536  # a pipe's capacity, pipe(7)
WINDOW_S = 64  # in which ExaBGP counts the deaths of its helpers

_HELPER = """\
import ctypes, signal, socket, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it must not outlive an ExaBGP that is killed
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
        rewrite(self.file, head + "\n".join(blocks))

    def start(self, *blocks: str, **env: str) -> Helper:
        """Starts ExaBGP; returns its helper. `env` is added to the settings, without their `exabgp_`."""
        (self.lab.directory / "helper.py").write_text(_HELPER)
        self.configure(*blocks)
        # by `env`, because the shell around it drops names with a dash
        settings = [f"exabgp_{key}={value}" for key, value in env.items()]
        argv = ["env", *settings, str(exabgp.PROGRAM), "server", str(self.file)]
        self.process = self.node.popen(argv, name="exabgp", env=exabgp.ENVIRONMENT)
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


def kill(helper: Helper) -> None:
    """Ends a helper by SIGKILL and waits until it is dead; nobody else holds its pipes."""
    helper.close()
    os.kill(helper.pid, signal.SIGKILL)
    poll(lambda: not alive(helper.pid), 5, lambda: "the helper survives SIGKILL")


def alive(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for yet does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def running(rig: Rig) -> bool:
    return rig.process is not None and rig.process.running()


def withdrawn(message: BgpMessage) -> bool:
    """Whether this UPDATE withdraws an IPv4 prefix (RFC 4271 section 4.3)."""
    return message.type is BgpType.UPDATE and message.body[:2] != b"\0\0"


def waiting(descriptor: int) -> int:
    """How many bytes wait to be read in a pipe."""
    size = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, size)
    return size[0]


def resident_mb(pid: int) -> float:
    """A process's resident memory: every page it maps, shared or not."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.fixture
def rig(lab: Lab) -> Iterator[Rig]:
    made = Rig(lab)
    yield made
    made.listener.close()


# --- commands and answers


def test_acknowledgements_carry_no_id(rig: Rig) -> None:
    """`done` and `error`, and nothing that says of which command. The bridge gives one command at a time."""
    helper = rig.start(neighbor())
    helper.send("# a comment\nno such command")
    assert [helper.line(), helper.line()] == ["done", "error"]


def test_some_commands_overtake_others(rig: Rig) -> None:
    """`version` and `teardown` are answered before a `show` or `announce` that was given first.

    So acknowledgements cannot be matched by order across the two kinds: the bridge again.
    """
    helper = rig.start(neighbor())
    queued = f"show neighbor json\nneighbor {TOR} announce route {V4} next-hop {NODE}"
    helper.send(f"{queued}\nversion\nneighbor {TOR} teardown nonsense")
    answers = [helper.answer() for _ in range(4)]
    assert answers[0][1][0].startswith("exabgp 5.")
    assert answers[1][0] == "error"
    assert answers[2][1][0].startswith("[{")
    assert answers[3] == ("done", [])


@pytest.mark.parametrize("command", ["reset", "silence-ack", "debug something"])
def test_some_commands_are_never_acknowledged(rig: Rig, command: str) -> None:
    """The bridge would wait for ever for the answer, and every client with it: it refuses them."""
    helper = rig.start(neighbor())
    helper.send(command)
    helper.send("version")
    assert helper.line().startswith("exabgp 5.")


def test_a_word_anywhere_in_the_line_chooses_the_command(rig: Rig) -> None:
    """ExaBGP looks for its commands anywhere in a line; looking at the first word only would miss `x reset `."""
    helper = rig.start(neighbor())
    helper.send("x reset y")
    helper.send("x version")
    assert helper.line().startswith("exabgp 5.")


@pytest.mark.parametrize(("form", "told"), [("v1", False), ("v2", True)])
def test_the_adj_rib_tells_next_hop_and_attributes_in_v2_only(rig: Rig, form: str, told: bool) -> None:
    """`codec.adj_rib_out` reads back what is announced, and the diff compares it: `launch` asks for v2."""
    helper = rig.start(neighbor(), **{"api_show-routes-format": form})
    helper.command(f"neighbor {TOR} announce route {V4} next-hop {NODE} med 7")
    (line,) = helper.command("show adj-rib out json")
    assert V4.partition("/")[0] in line
    assert (f'"nexthop": "{NODE}"' in line, '"med": 7' in line) == (told, told)


# --- the helper's life


def test_a_helper_that_does_not_read_stops_the_keepalives(rig: Rig) -> None:
    """64 KiB of acknowledgements, 13,100 of them, and ExaBGP stands still until somebody reads them.

    With a hold time of 3 s the peer takes the session down. So the bridge reads always, whatever its clients do.
    """
    bird = rig.tor(hold_time_s=3, keepalive_s=1, graceful_restart=False)
    helper = rig.start(neighbor(hold_s=3), log_level="ERROR")
    bird.wait_established(NODE)
    helper.send("#\n" * 20_000)
    assert bird.wait_down(NODE, 10).notification == (4, 0)
    assert waiting(helper.input) > PIPE_BYTES - 4096  # a page may be left unfilled
    for _ in range(20_000):
        assert helper.line() == "done"
    bird.wait_established(NODE)


def test_helpers_that_die_too_often_end_exabgp(rig: Rig) -> None:
    """Five deaths are forgiven, the sixth ends the daemon, without a NOTIFICATION.

    So the bridge's work is done in a child of the helper, which may die as often as it likes.
    """
    bird = rig.tor()
    helper = rig.start(neighbor())
    bird.wait_established(NODE)
    poll(lambda: WINDOW_S - time.time() % WINDOW_S > 4, 5, lambda: "the clock stands still")
    for _ in range(5):
        kill(helper)
        helper = rig.helper()
    assert helper.command("version")
    with BgpCapture(bird.namespace, "eth0") as capture:
        kill(helper)
        poll(lambda: not running(rig), 10, lambda: "ExaBGP lives on")
        bird.wait_down(NODE)
    assert capture.notifications() == []


def test_deaths_are_counted_in_windows_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five at the end of one window and five at the beginning of the next are forgiven too."""
    clock = [64.0 * 1_000_000 - 1]
    monkeypatch.setattr(processes.time, "time", lambda: clock[0])
    counter = processes.Processes.__new__(processes.Processes)
    counter._respawning, counter.respawn_number = {}, 5
    monkeypatch.setattr(processes.log, "critical", lambda message, source: None)
    for _ in range(5):
        counter._record_respawn("helper")
    clock[0] += 1
    for _ in range(5):
        counter._record_respawn("helper")
    with pytest.raises(processes.ProcessError):
        counter._record_respawn("helper")


def test_a_new_helper_is_told_nothing_of_what_was(rig: Rig) -> None:
    """No replay of sessions that are up: the bridge asks for them when it starts."""
    bird = rig.tor()
    helper = rig.start(neighbor())
    bird.wait_established(NODE)
    kill(helper)
    helper = rig.helper()
    assert helper.command("version")
    assert helper.events == []


def test_a_new_helper_hears_answers_to_its_predecessor(rig: Rig) -> None:
    """What the dead one asked for is answered to its successor, so a command of its own gets a stranger's `done`.

    So the bridge looks for the end of such answers before it says a word for a client.
    """
    helper = rig.start(neighbor())
    assert rig.process is not None
    rig.process.pause()
    helper.send(f"neighbor {TOR} announce route {V4} next-hop {NODE}")
    kill(helper)
    rig.process.resume()
    helper = rig.helper()
    assert helper.command("show neighbor json") == []
    assert helper.answer()[1][0].startswith("[{")


@pytest.mark.parametrize("terminate", ["false", "true"])
def test_a_helper_that_dies_unread_takes_all_peers_with_it(rig: Rig, terminate: str) -> None:
    """More than 8 KiB on the way to a dead helper, and ExaBGP drops its peers for good and says it is well.

    No FIN, no event, no reload brings them back; peers find out by their hold timer and drop every route,
    graceful restart or not. With `api.terminate` it ends instead, by FIN, and can be started anew. So somebody
    must hold the helper's pipes whatever happens to it: the bridge's guardian.
    """
    bird = rig.tor(hold_time_s=3, keepalive_s=1)
    settings = {"api_show-routes-format": "v2", "api_chunk": "50", "api_terminate": terminate}
    helper = rig.start(neighbor(hold_s=3), **settings)
    bird.wait_established(NODE)
    prefixes = list(many_prefixes(1000))
    for start in range(0, 1000, 100):
        nlri = " ".join(prefixes[start : start + 100])
        helper.command(f"neighbor {TOR} announce attributes next-hop {NODE} nlri {nlri}")
    helper.send("show adj-rib out json")
    helper.line()
    kill(helper)
    if terminate == "true":
        poll(lambda: not running(rig), 10, lambda: "ExaBGP lives on")
        bird.wait_down(NODE)
        assert bird.route(prefixes[0])
        return
    helper = rig.helper()
    poll(lambda: helper.command("show neighbor json") == ["[]"], 5, lambda: "the peers are still there")
    rig.reload()
    assert helper.command("show neighbor json") == ["[]"]
    assert bird.wait_down(NODE).notification == (4, 0)
    assert (helper.events, bird.paths(), running(rig)) == ([], [], True)
