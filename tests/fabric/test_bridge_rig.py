"""The bridge between a real ExaBGP and its clients: the rig, and what a client is told.

The rig decides how the speaker is started: as `bgpd.bgp.launch` says, with a configuration that
`bgpd.bgp.render` wrote, and with two ToRs running BIRD. `Talk` is a client that does nothing by itself, so a
test may be as rude as it likes. What the bridge withstands is in `test_bridge_faults`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpd.bgp import launch, render
from bgpd.bgp.launch import SpeakerFiles
from bgpd.model.bgp import ASN, Family
from bgpd.model.bgp import Neighbor as Wanted
from bgpd.model.prefix import parse_address
from tests.fabric import exabgp
from tests.fabric.bird import Bird
from tests.fabric.netns import Lab, Namespace
from tests.fabric.peer import FAMILIES, Neighbor, Options, many_prefixes
from tests.fabric.process import Process, poll

TOR, NODE = "10.0.0.1", "10.0.0.2"
TOR_B, NODE_B = "10.0.1.1", "10.0.1.2"
V4, V6 = "188.188.0.0/24", "2001:db8::/64"
HOLD_S = 3

pytestmark = pytest.mark.needs("bird", str(exabgp.PROGRAM))


class Talk:
    """A client of the bridge. `events` are the session events it was sent so far."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self._stream = self.sock.makefile("rb")
        self._ids = 0
        self.events: list[dict[str, Any]] = []
        try:
            self.sock.connect(str(path))
            self.hello = json.loads(self.line().removeprefix("hello "))
        except (OSError, EOFError):
            self.close()
            raise

    def line(self) -> str:
        """The next line, whatever it is; `EOFError` when the bridge hangs up."""
        raw = self._stream.readline()
        if not raw.endswith(b"\n"):
            raise EOFError("the bridge has closed the connection")
        return bytes(raw).decode().rstrip("\n")

    def send(self, command: str) -> str:
        """Gives a command without waiting; its id."""
        self._ids += 1
        self.sock.sendall(f"{self._ids} {command}\n".encode())
        return str(self._ids)

    def answer(self, ident: str) -> tuple[str, list[str]]:
        """How the command ended (`done` or `error`) and its output. Anything but that is an `AssertionError`."""
        output: list[str] = []
        while True:
            kind, _, rest = self.line().partition(" ")
            if kind == "event":
                self.events.append(json.loads(rest))
                continue
            answered, _, text = rest.partition(" ")
            assert answered == ident, f"an answer to {answered} instead of {ident}: {kind} {text}"
            if kind != "line":
                return kind, output
            output.append(text)

    def ask(self, command: str) -> list[str]:
        """A command's output; `AssertionError` when it was refused."""
        end, output = self.answer(self.send(command))
        assert end == "done", f"refused: {command}: {output}"
        return output

    def memory(self, peer: str = TOR) -> dict[str, Any]:
        """What the bridge remembers of one peer; empty when nothing."""
        remembered = json.loads(self.ask("#memory")[0])
        return next((dict(it) for it in remembered if it["peer"] == peer), {})

    def close(self) -> None:
        self._stream.close()
        self.sock.close()


class Speaker:
    """ExaBGP with the bridge as the product starts it, and a ToR at the end of each of two cables."""

    def __init__(self, lab: Lab) -> None:
        self.node = lab.namespace("node")
        self.files = SpeakerFiles(lab.directory / "run")
        self.process: Process | None = None
        self.talks: list[Talk] = []
        self.namespaces: dict[str, Namespace] = {}
        for index, address in enumerate((TOR, TOR_B)):
            space = self.namespaces[address] = lab.namespace(f"tor{index}")
            lab.link(space, "eth0", self.node, f"eth{index}")
            space.add_address("eth0", f"{address}/24", f"fd00:0:0:{index}::1/64")
            self.node.add_address(f"eth{index}", f"10.0.{index}.2/24", f"fd00:0:0:{index}::2/64")

    def tor(self, address: str = TOR, **neighbor: Any) -> Bird:
        """Starts the BIRD at `address`."""
        told = {
            "address": address.removesuffix(".1") + ".2",
            "asn": 64512,
            "families": FAMILIES,
            "hold_time_s": HOLD_S,
            "keepalive_s": 1,
            **neighbor,
        }
        options = Options(asn=64512, router_id=address, neighbors=(Neighbor(**told),))
        return Bird(self.namespaces[address], options).start()

    def start(self, *peers: str, eor_after_s: int = 600, hold_s: int = HOLD_S) -> Talk:
        """Starts ExaBGP with a neighbor for each of `peers` (none named: the first ToR); a client of its bridge."""
        head = launch.header(self.files, eor_after_s)
        self.files.prepare(head)
        blocks = {f"tor-{peer}": render.block(wanted(peer, hold_s)) for peer in peers or (TOR,)}
        self.files.configuration.write_text(render.document(head, blocks))
        settings = launch.environment(self.files).items() - os.environ.items()
        # by `env`, because the shell around it drops names with a dash
        argv = ["env", *(f"{key}={value}" for key, value in settings), *launch.command(self.files)]
        self.process = self.node.popen(argv, name="speaker")
        return self.talk()

    def talk(self) -> Talk:
        """A new client, as soon as the bridge listens; `RuntimeError` when ExaBGP has ended."""

        def connect() -> Talk | None:
            try:
                return Talk(self.files.socket)
            except (ConnectionError, FileNotFoundError, EOFError):
                if not self.running():
                    raise RuntimeError(self.log_tail()) from None
                return None

        made = poll(connect, 10, self.log_tail)
        self.talks.append(made)
        return made

    def running(self) -> bool:
        return self.process is not None and self.process.running()

    def log_tail(self) -> str:
        return self.process.log_tail() if self.process is not None else "(never started)"


def wanted(peer: str, hold_s: int) -> Wanted:
    """The session with one ToR, as `bgp.plan` would resolve it."""
    return Wanted(
        name=f"tor-{peer}",
        peer_address=parse_address(peer),
        peer_asn=ASN(64512),
        local_asn=ASN(64512),
        local_address=parse_address(peer.removesuffix(".1") + ".2"),
        router_id=parse_address(NODE),
        peer_port=179,
        listen_port=None,
        passive=False,
        families=(Family.IPV4, Family.IPV6),
        hold_time_s=hold_s,
        restart_time_s=120,
        ttl_security=False,
        multihop=None,
        password=None,
    )


def wait_up(talk: Talk, peer: str = TOR) -> dict[str, Any]:
    """Waits until the bridge knows this session to be up; what it remembers of it."""

    def probe() -> dict[str, Any] | None:
        memory = talk.memory(peer)
        return memory if memory.get("state") == "up" else None

    return poll(probe, 20, lambda: f"no session with {peer}: {talk.memory(peer)}")


def shown(talk: Talk, peer: str = TOR) -> dict[str, Any]:
    """A neighbor as ExaBGP shows it."""
    neighbors = json.loads("".join(talk.ask("show neighbor json")))
    return next(dict(it) for it in neighbors if it["peer"]["address"] == peer)


def guardian(talk: Talk) -> int:
    """The process that ExaBGP started: the parent of the bridge that greeted this client; `ProcessLookupError`."""
    return int(_status(talk.hello["pid"])[1])


def announce(talk: Talk, count: int = 1, peer: str = TOR) -> list[str]:
    """Announces so many prefixes to a peer, in batches; the prefixes."""
    prefixes = list(many_prefixes(count))
    next_hop = peer.removesuffix(".1") + ".2"
    for start in range(0, count, 500):
        nlri = " ".join(prefixes[start : start + 500])
        talk.ask(f"neighbor {peer} announce attributes next-hop {next_hop} nlri {nlri}")
    return prefixes


def end_of_rib(talk: Talk, peer: str = TOR) -> None:
    for family in ("ipv4 unicast", "ipv6 unicast"):
        talk.ask(f"neighbor {peer} announce eor {family}")


def kill(pid: int) -> None:
    """SIGKILL; returns when the process is dead. `ProcessLookupError`: there was none."""
    os.kill(pid, signal.SIGKILL)

    def dead() -> bool:
        try:
            return _status(pid)[0] == "Z"
        except ProcessLookupError:
            return True

    poll(dead, 5, lambda: f"{pid} survives SIGKILL")


def _status(pid: int) -> list[str]:
    """A process's state, its parent and so on (proc(5)); `ProcessLookupError`."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()  # one that goes after it was opened is a ProcessLookupError too
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from None
    return text.rpartition(")")[2].split()


@pytest.fixture
def speaker(lab: Lab) -> Iterator[Speaker]:
    made = Speaker(lab)
    yield made
    for talk in made.talks:
        talk.close()


# --- what a client is told


def test_a_client_is_greeted_by_name(speaker: Speaker) -> None:
    """`hello` comes first and says which bridge, under which ExaBGP."""
    talk = speaker.start(eor_after_s=7)
    assert speaker.process is not None
    assert (talk.hello["exabgp"], talk.hello["eor_after_s"]) == (speaker.process.pid, 7)
    assert Path(f"/proc/{talk.hello['pid']}").exists()


def test_a_client_that_comes_late_learns_of_the_session(speaker: Speaker) -> None:
    """State, how often it came up, negotiated families and hold time."""
    bird = speaker.tor()
    speaker.start()
    bird.wait_established(NODE)
    memory = wait_up(speaker.talk())
    assert (memory["state"], memory["ups"], memory["eor"]) == ("up", 1, [])
    assert memory["negotiated"]["families"] == ["ipv4 unicast", "ipv6 unicast"]
    assert memory["negotiated"]["hold_time"] == HOLD_S
    assert 0 <= memory["age_s"] < 10


def test_the_bridge_remembers_end_of_rib_for_one_session(speaker: Speaker) -> None:
    """Which client sent it does not matter; with the session it is forgotten, and `ups` counts the new one."""
    bird = speaker.tor()
    talk = speaker.start()
    wait_up(talk)
    talk.ask(f"neighbor {TOR} announce eor ipv6 unicast")
    assert speaker.talk().memory()["eor"] == ["ipv6 unicast"]
    bird.stop()
    poll(lambda: talk.memory()["state"] == "down", 10, lambda: "the session stays up")
    assert talk.memory()["eor"] == []
    bird.start()
    memory = wait_up(talk)
    assert (memory["ups"], memory["eor"]) == (2, [])


def test_every_client_hears_of_a_session(speaker: Speaker) -> None:
    """Each is sent the same events: memory after the change."""
    talk, other = speaker.start(), speaker.talk()
    assert talk.memory().get("state", "down") == "down"
    speaker.tor().wait_established(NODE)
    wait_up(talk)
    wait_up(other)
    up, same = (next(it for it in each.events if it["state"] == "up") for each in (talk, other))
    assert (up["peer"], up["ups"]) == (TOR, 1)
    assert {**up, "age_s": 0} == {**same, "age_s": 0}


def test_lines_of_an_answer_come_in_order_and_end(speaker: Speaker) -> None:
    """`line ID TEXT` each, `done ID` last: a listing of 2,000 routes."""
    talk = speaker.start()
    prefixes = announce(talk, 2000)
    listed = [json.loads(line)["route"]["nlri"]["prefix"] for line in talk.ask("show adj-rib out json")]
    assert listed == prefixes


def test_a_refusal_is_told_to_the_client_that_asked(speaker: Speaker) -> None:
    """`error ID`, and the next command is answered as if nothing had been."""
    talk = speaker.start()
    ident = talk.send("announce nonsense")
    assert talk.answer(ident) == ("error", [])
    assert talk.ask("version")[0].startswith("exabgp 5.")


def test_answers_keep_to_their_commands(speaker: Speaker) -> None:
    """Hundreds of commands of two clients at once, fast ones among slow ones: each gets its own answer."""
    talk, other = speaker.start(), speaker.talk()
    announce(talk, 200)
    slow = [talk.send("show adj-rib out json") for _ in range(20)]
    fast = [other.send("version" if it % 2 else "no such command") for it in range(200)]
    for index, ident in enumerate(fast):
        assert other.answer(ident)[0] == ("done" if index % 2 else "error")
    for ident in slow:
        end, output = talk.answer(ident)
        assert (end, len(output)) == ("done", 200)


def test_time_goes_on_for_a_session_that_stays(speaker: Speaker) -> None:
    """`age_s` is how long ago the state last changed."""
    speaker.tor()
    talk = speaker.start()
    first, asked = wait_up(talk)["age_s"], time.monotonic()
    poll(lambda: time.monotonic() - asked > 0.3, 1, lambda: "")
    assert 0.2 < talk.memory()["age_s"] - first < 5
