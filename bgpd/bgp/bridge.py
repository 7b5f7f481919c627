"""ExaBGP's bridge: carries commands and answers between ExaBGP's pipes and a unix socket.

Started by `guardian`, which holds the pipes and the socket, and replaced by it when it dies (standard library
only, `python3 -I -S`). It reads always, never blocks on a client, and drops a client that does not keep up. It
decides nothing about routes. Because it outlives every client, it remembers per peer what a client that arrives
later must know: the session's state, and for which families End-of-RIB was sent in this session. If nobody sends
End-of-RIB (the daemon is dead or knows nothing) the bridge does after EOR_AFTER seconds, so that a peer under
graceful restart does not keep stale routes for ever (RFC 4724 section 4.1).

    python3 -I -S bridge.py EOR_AFTER EXABGP LISTENER MEMORY GUARDIAN     a process id, three descriptors

Client to bridge, a line each:  `ID COMMAND`            ID: any word; COMMAND: ExaBGP's API, or one of
                                `#memory`               every peer's memory
                                `#reserve`              only this client may give commands, and for
                                                        RESERVED_S after it has left, nobody
Bridge to client, a line each:  `hello JSON`            once, on connecting: the bridge's identity
                                `line ID TEXT`          output of the command ID
                                `done ID` | `error ID`  its end
                                `event JSON`            a session changed; the peer's memory after it

Commands go to ExaBGP one at a time: its acknowledgements carry no id, and some commands overtake others. What
it still has to answer to a dead bridge is told from answers to the living one by a mark; see `look`.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import socket
import sys
import time

TYPE_CHECKING = False  # as typing.TYPE_CHECKING, without paying for the import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_LINE = 1 << 16  # an empty pipe takes it whole: a bridge that is killed leaves no half command
MAX_CLIENTS = 500  # half the usual limit of open files
MAX_BACKLOG = 64 << 20  # bytes waiting for one client: an adj-rib of 100,000 routes fits
ACK_TIMEOUT_S = 60.0  # no answer for so long: the pair is out of step, start over with a fresh mark
EOR_RETRY_S = 5.0
RESERVED_S = 30.0  # the unit's TimeoutStopSec: between ExecStop and SIGTERM nobody may announce again
FAMILIES = ("ipv4 unicast", "ipv6 unicast")
NEVER_ANSWERED = ("reset", "silence-ack", "disable-ack")  # ExaBGP looks for its commands anywhere in a line
MARK = (b"show neighbor nobody configuration\n", b"show neighbor nobody summary\n")  # no output, and a line
MARK_BITS = 32


class Lines:
    """Bytes in, complete lines out."""

    def __init__(self, longest: int) -> None:
        self._rest, self._longest = b"", longest

    def feed(self, data: bytes) -> list[str]:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self._longest:
            raise ValueError("a line without end")
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]


class Client:
    """One connection; what it could not take yet waits in `out`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines = Lines(MAX_LINE)
        self.out = bytearray()

    def say(self, text: str) -> None:
        self.out += text.encode() + b"\n"

    def flush(self) -> bool:
        """False when the client is gone or does not keep up."""
        try:
            while self.out:
                del self.out[: self.sock.send(self.out)]
        except BlockingIOError:
            return len(self.out) <= MAX_BACKLOG
        except OSError:
            return False
        return True


# who asked (None: the bridge itself), the asker's word for it, ExaBGP's command
Entry = tuple["Client | None", str, str]


class Bridge:
    """The event loop. `exabgp` is a process id, `memory` a file that the next bridge gets too, `guardian` a
    descriptor that hangs up when the guardian dies.
    """

    def __init__(self, listener: socket.socket, eor_after_s: float, exabgp: int, memory: int, guardian: int) -> None:
        self.listener, self.eor_after_s = listener, eor_after_s
        self.exabgp, self.memory, self.guardian = exabgp, memory, guardian
        self.stdin, self.stdout = 0, 1
        self.now = time.monotonic  # the wall clock is never used
        self.from_exabgp = Lines(MAX_BACKLOG)
        self.to_exabgp = bytearray()
        self.clients: dict[int, Client] = {}
        self.queue: collections.deque[Entry] = collections.deque()
        self.reserved: Client | None = None  # the one client that may give commands, if any
        self.reserved_until = 0.0  # when it has left
        self.running: Entry | None = None  # the command ExaBGP has not answered yet
        self.running_since = 0.0
        self.mark: list[bool] | None = None  # until it was heard, answers may be for a dead bridge
        self.heard: collections.deque[bool] = collections.deque(maxlen=MARK_BITS)
        self.last_line = ""
        self.peers: dict[str, dict[str, Any]] = {}  # peer address -> memory
        self.poll = select.poll()

    # --- memory -------------------------------------------------------------------------------------------

    def peer(self, address: str) -> dict[str, Any]:
        unknown = {"peer": address, "state": "down", "since": self.now(), "reason": "", "ups": 0, "eor": []}
        return self.peers.setdefault(address, unknown)

    def keep(self) -> None:
        """Writes the memory down for the next bridge."""
        os.pwrite(self.memory, json.dumps(self.peers).encode() + b"\n", 0)

    def recall(self) -> None:
        """Takes over the memory of the bridge before us, if there was one."""
        text = os.pread(self.memory, os.fstat(self.memory).st_size, 0).partition(b"\n")[0]
        with contextlib.suppress(ValueError):
            self.peers = json.loads(text or b"{}")

    def note_event(self, event: dict[str, Any]) -> str | None:
        """Takes one of ExaBGP's JSON events; returns the address of the peer whose memory it changed, if any."""
        neighbor = event.get("neighbor") or {}
        address = str((neighbor.get("address") or {}).get("peer") or "")
        if not address:
            return None
        peer = self.peer(address)
        if event["type"] == "negotiated":
            peer["negotiated"] = neighbor.get("negotiated", {})
            return None
        if event["type"] == "notification":  # ours, just before the session falls
            words = str(neighbor.get("notification", {}).get("message", ""))
            peer["words"] = "".join(filter(str.isprintable, words))
            return None
        if event["type"] != "state" or neighbor.get("state") not in ("up", "down"):
            return None
        # a session that has just come up may have been seen by `note_neighbors` first
        peer["ups"] += (peer["state"], neighbor["state"]) == ("down", "up")
        reason = ": ".join(filter(None, (str(neighbor.get("reason", "")), peer.pop("words", ""))))
        peer.update(state=neighbor["state"], since=self.now(), reason=reason, eor=[])
        return address

    def note_neighbors(self, text: str) -> None:
        """Takes ExaBGP's list of neighbors: what happened to sessions while no bridge was listening."""
        for neighbor in json.loads(text):
            address, age_s = neighbor["peer"]["address"], max(0, neighbor["duration"])
            known = self.peers.get(address)
            was_up = known is not None and known["state"] == "up"
            # not "state": ExaBGP calls a session of less than a second down
            if neighbor["fsm"] != "ESTABLISHED":
                if was_up:
                    self.peer(address).update(state="down", since=self.now(), eor=[])
            elif not was_up or self.peer(address)["since"] < self.now() - age_s - 2:  # whole seconds
                # one that we have never heard of has been there under another guardian, which sent End-of-RIB
                eor = list(neighbor["families"]) if known is None and age_s > self.eor_after_s else []
                holds = [hold for hold in (neighbor["local"]["hold"], neighbor["peer"]["hold"]) if hold is not None]
                negotiated = {"families": neighbor["families"], "hold_time": min(holds, default=None)}
                peer = self.peer(address)
                peer.update(state="up", since=self.now() - age_s, ups=peer["ups"] + 1, eor=eor, negotiated=negotiated)
        self.keep()

    def note_done(self, command: str) -> None:
        """Remembers an End-of-RIB that ExaBGP accepted."""
        words = command.split()
        if words[0] == "neighbor" and words[2:4] == ["announce", "eor"] and words[1] in self.peers:
            family = " ".join(words[4:6])
            sent = self.peers[words[1]]["eor"]
            if family not in sent:
                sent.append(family)
                self.keep()

    def unfinished(self) -> Iterator[tuple[str, str]]:
        """(peer, family) of every session that is up too long without its End-of-RIB."""
        for address, peer in self.peers.items():
            if peer["state"] == "up" and self.now() - peer["since"] >= self.eor_after_s:
                for family in peer.get("negotiated", {}).get("families", []):
                    if family in FAMILIES and family not in peer["eor"]:
                        yield address, family

    # --- ExaBGP's side ------------------------------------------------------------------------------------

    def hear(self, line: str) -> None:
        """One line from ExaBGP: an event, an acknowledgement, or output of the running command."""
        if line.startswith('{ "exabgp"'):
            try:
                self.tell_event(json.loads(line))
            except (ValueError, KeyError):
                self.log(f"not understood from ExaBGP: {line[:200]}")
            return
        if self.mark is not None:
            self.hear_mark(line)
            return
        if self.running is None:
            return
        client, ident, command = self.running
        if line in ("done", "error"):
            self.running = None
            if line == "done":
                self.note_done(command)
            if client is not None:
                client.say(f"{line} {ident}")
            self.next_command()
        elif client is not None and line:
            client.say(f"line {ident} {line}")

    def look(self) -> None:
        """Asks for the neighbors, behind a mark that no other bridge has said.

        Answers carry no id and nothing echoes. So the mark is spelled: a command for each of its random bits, one
        that is answered by a line or one that is not. Answers before it are for a dead bridge.
        """
        self.mark = [bool(byte >> bit & 1) for byte in os.urandom(MARK_BITS // 8) for bit in range(8)]
        self.to_exabgp += b"".join(MARK[bit] for bit in self.mark) + b"show neighbor json\n"
        self.running, self.running_since = (None, "-", "show neighbor json"), self.now()

    def hear_mark(self, line: str) -> None:
        if line not in ("done", "error"):
            self.last_line = line
        elif list(self.heard) != self.mark:
            self.heard.append(self.last_line.startswith("Peer "))
            self.last_line = ""
        else:
            self.note_neighbors(self.last_line)
            self.mark = self.running = None
            self.next_command()

    def tell_event(self, event: dict[str, Any]) -> None:
        address = self.note_event(event)
        self.keep()
        if address is None:
            return
        text = "event " + json.dumps(self.age(self.peers[address]))
        for client in self.clients.values():
            client.say(text)

    def age(self, peer: dict[str, Any]) -> dict[str, Any]:
        """Memory as clients see it: an age survives the wire, a monotonic time of another process does not."""
        seen = {key: value for key, value in peer.items() if key != "since"}
        return seen | {"age_s": self.now() - peer["since"]}

    def next_command(self) -> None:
        while self.queue and self.running is None:
            client, ident, command = self.queue.popleft()
            why = self.refusal(client, command) if client is not None else ""
            if client is not None and why:
                client.say(f"line {ident} {why}")
                client.say(f"error {ident}")
                continue
            if client is not None and command.startswith("#"):
                self.answer(client, ident, command)
                continue
            self.running = (client, ident, command)
            self.running_since = self.now()
            self.to_exabgp += command.encode("ascii", "replace") + b"\n"

    def refusal(self, client: Client, command: str) -> str:
        """Why a command is not given to ExaBGP; empty when it is."""
        if command.startswith("debug ") or any(word in command for word in NEVER_ANSWERED):
            return "ExaBGP would never answer"
        if self.reserved in (None, client) or command == "#memory":
            return ""
        left = self.reserved not in self.clients.values()
        if left and (command == "#reserve" or self.now() >= self.reserved_until):
            return ""
        return "the speaker is being stopped"

    def answer(self, client: Client, ident: str, command: str) -> None:
        """The commands that are for the bridge itself."""
        if command == "#reserve":
            self.reserved = client
        elif command == "#memory":
            client.say(f"line {ident} " + json.dumps([self.age(peer) for peer in self.peers.values()]))
        client.say(f"done {ident}")

    # --- clients ------------------------------------------------------------------------------------------

    def accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return  # it has left again
        if len(self.clients) >= MAX_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        client = Client(sock)
        self.clients[sock.fileno()] = client
        self.poll.register(sock, select.POLLIN)
        identity = {"pid": os.getpid(), "exabgp": self.exabgp, "eor_after_s": self.eor_after_s}
        client.say("hello " + json.dumps(identity))

    def read_client(self, fd: int) -> None:
        client = self.clients[fd]
        try:
            data = client.sock.recv(1 << 16)
            lines = client.lines.feed(data)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            data, lines = b"", []
        for line in lines:
            ident, _, command = line.partition(" ")
            if command.startswith("#") and self.mark is None and not self.refusal(client, command):
                self.answer(client, ident, command)  # also while ExaBGP does not answer
            elif command and len(command) < MAX_LINE:
                self.queue.append((client, ident, command))
            elif ident:
                client.say(f"error {ident}")
        self.next_command()
        if not data:
            self.drop(fd)

    def drop(self, fd: int) -> None:
        """Forgets a client. Its running command keeps its place, or the next answer would go to a stranger."""
        client = self.clients.pop(fd)
        self.poll.unregister(fd)
        client.sock.close()
        if self.reserved is client:
            self.reserved_until = self.now() + RESERVED_S
        self.queue = collections.deque(entry for entry in self.queue if entry[0] is not client)
        if self.running is not None and self.running[0] is client:
            self.running = (None, *self.running[1:])

    # --- loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Returns when ExaBGP closes our input; SystemExit when it does not answer."""
        for fd in (self.stdin, self.stdout):
            os.set_blocking(fd, False)
        for readable in (self.stdin, self.listener.fileno(), self.guardian):
            self.poll.register(readable, select.POLLIN)
        last_fallback = self.now()
        self.recall()
        self.look()
        while True:
            self.arm()
            for fd, _ in self.poll.poll(1000):
                if fd == self.stdin:
                    if not self.read_exabgp():
                        return
                elif fd == self.listener.fileno():
                    self.accept()
                elif fd == self.guardian:
                    self.retire()
                    return
                elif fd in self.clients:
                    self.read_client(fd)
            if self.now() - last_fallback >= EOR_RETRY_S and not self.queue and self.running is None:
                last_fallback = self.now()
                self.send_end_of_rib()
            if self.running is not None and self.now() - self.running_since > ACK_TIMEOUT_S:
                sys.exit(f"bridge: ExaBGP did not answer in {ACK_TIMEOUT_S:.0f} s: {self.running[2][:80]}")

    def send_end_of_rib(self) -> None:
        for address, family in list(self.unfinished()):
            self.log(f"no End-of-RIB for {family} to {address} in {self.eor_after_s:.0f} s: sending it")
            self.queue.append((None, "-", f"neighbor {address} announce eor {family}"))
        self.next_command()

    def retire(self) -> None:
        """The guardian is dead. ExaBGP learns it from the end of our output, and is read until it knows."""
        self.listener.close()
        for fd in list(self.clients):
            self.drop(fd)
        os.close(self.stdout)
        os.set_blocking(self.stdin, True)
        while os.read(self.stdin, 1 << 16):
            pass

    def arm(self) -> None:
        """Writes what can be written and asks poll() about the rest."""
        with contextlib.suppress(BlockingIOError):
            while self.to_exabgp:
                del self.to_exabgp[: os.write(self.stdout, self.to_exabgp[: 1 << 16])]
        if self.to_exabgp:
            self.poll.register(self.stdout, select.POLLOUT)
        else:
            with contextlib.suppress(KeyError):
                self.poll.unregister(self.stdout)
        for fd, client in list(self.clients.items()):
            if client.flush():
                self.poll.modify(fd, select.POLLIN | (select.POLLOUT if client.out else 0))
            else:
                self.drop(fd)

    def read_exabgp(self) -> bool:
        try:
            data = os.read(self.stdin, 1 << 16)
        except BlockingIOError:
            return True
        for line in self.from_exabgp.feed(data):
            self.hear(line)
        return bool(data)

    @staticmethod
    def log(text: str) -> None:
        """ExaBGP leaves a helper's stderr alone: it ends in the speaker unit's journal."""
        sys.stderr.write(f"bridge: {text}\n")
        sys.stderr.flush()


def main() -> None:
    """Takes over what `guardian` has made: the listening socket, the memory, the pipe that tells of its death."""
    eor_after_s, (exabgp, listener, memory, guardian) = float(sys.argv[1]), map(int, sys.argv[2:])
    Bridge(socket.socket(fileno=listener), eor_after_s, exabgp, memory, guardian).run()


if __name__ == "__main__":
    main()
