"""ExaBGP's one helper: carries commands and answers between ExaBGP's pipes and a unix socket.

ExaBGP starts this file (standard library only, `python3 -I -S`) and blocks for good once a helper stops reading
its stdin. So the bridge reads always, never blocks on a client, and drops a client that does not keep up. It
decides nothing about routes. Because it outlives every client, it remembers per peer what a client that
arrives later must know: the session's state, and for which families End-of-RIB was sent in this session. If
nobody sends End-of-RIB (the daemon is dead or knows nothing) the bridge does after EOR_AFTER seconds, so that
a peer under graceful restart does not keep stale routes for ever (RFC 4724 section 4.1).

    python3 -I -S bridge.py SOCKET EOR_AFTER

Client to bridge, a line each:  `ID COMMAND`            ID: any word; COMMAND: ExaBGP's API, or one of
                                `#memory`               every peer's memory
                                `#reserve`              only this client may give commands, and for
                                                        RESERVED_S after it has left, nobody
Bridge to client, a line each:  `hello JSON`            once, on connecting: the bridge's identity
                                `line ID TEXT`          output of the command ID
                                `done ID` | `error ID`  its end
                                `event JSON`            a session changed; the peer's memory after it

Commands go to ExaBGP one at a time: its acknowledgements carry no id, and some commands overtake others.
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
    from collections.abc import Callable, Iterator
    from typing import Any

MAX_LINE = 1 << 20  # ExaBGP kills a helper whose command is longer
MAX_BACKLOG = 64 << 20  # bytes waiting for one client: an adj-rib of 100,000 routes fits
ACK_TIMEOUT_S = 60.0  # no answer for so long: the pair is out of step, start over with fresh pipes
EOR_RETRY_S = 5.0
RESERVED_S = 30.0  # the unit's TimeoutStopSec: between ExecStop and SIGTERM nobody may announce again
LOOK = "look"  # the id of the bridge's own first command
FAMILY = {"ipv4 unicast": "ipv4 unicast", "ipv6 unicast": "ipv6 unicast"}


class Lines:
    """Bytes in, complete lines out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_BACKLOG:
            raise ValueError("a line without end")
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]


class Client:
    """One connection; what it could not take yet waits in `out`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines = Lines()
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
    """The event loop. `now` is monotonic seconds; the wall clock is never used."""

    def __init__(
        self,
        listener: socket.socket,
        eor_after_s: float,
        stdin: int = 0,
        stdout: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.listener = listener
        self.eor_after_s = eor_after_s
        self.stdin, self.stdout, self.now = stdin, stdout, now
        self.from_exabgp = Lines()
        self.to_exabgp = bytearray()
        self.clients: dict[int, Client] = {}
        self.queue: collections.deque[Entry] = collections.deque()
        self.reserved: Client | None = None  # the one client that may give commands, if any
        self.reserved_until = 0.0  # when it has left
        self.running: Entry | None = None  # the command ExaBGP has not answered yet
        self.running_since = 0.0
        self.has_looked = False  # whether ExaBGP has shown its neighbors to this bridge
        self.peers: dict[str, dict[str, Any]] = {}  # peer address -> memory
        # a bridge that was killed finds sessions it has never heard of: ask before anybody else does
        self.queue.append((None, LOOK, "show neighbor json"))
        self.poll = select.poll()

    # --- memory -------------------------------------------------------------------------------------------

    def peer(self, address: str) -> dict[str, Any]:
        unknown = {"peer": address, "state": "down", "since": self.now(), "reason": "", "ups": 0, "eor": []}
        return self.peers.setdefault(address, unknown)

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
        if event["type"] != "state" or neighbor.get("state") not in ("up", "down"):
            return None
        up = neighbor["state"] == "up"
        peer.update(state=neighbor["state"], since=self.now(), reason=str(neighbor.get("reason", "")), eor=[])
        peer["ups"] += up
        return address

    def note_neighbors(self, text: str) -> None:
        """Takes ExaBGP's list of neighbors: the sessions that came up before this bridge did."""
        for neighbor in json.loads(text):
            address = neighbor["peer"]["address"]
            # not "state": ExaBGP calls a session of less than a second down
            if neighbor["fsm"] == "ESTABLISHED" and address not in self.peers:
                age_s, families = max(0, neighbor["duration"]), neighbor["families"]
                eor = families if age_s > self.eor_after_s else []  # by then somebody has sent it
                holds = [hold for hold in (neighbor["local"]["hold"], neighbor["peer"]["hold"]) if hold is not None]
                negotiated = {"families": families, "hold_time": min(holds, default=None)}
                known = {"state": "up", "since": self.now() - age_s, "ups": 1, "eor": list(eor)}
                self.peer(address).update(known, negotiated=negotiated)

    def note_done(self, command: str) -> None:
        """Remembers an End-of-RIB that ExaBGP accepted."""
        words = command.split()
        if words[0] == "neighbor" and words[2:4] == ["announce", "eor"] and words[1] in self.peers:
            family = " ".join(words[4:6])
            sent = self.peers[words[1]]["eor"]
            if family not in sent:
                sent.append(family)

    def unfinished(self) -> Iterator[tuple[str, str]]:
        """(peer, family) of every session that is up too long without its End-of-RIB."""
        for address, peer in self.peers.items():
            if peer["state"] == "up" and self.now() - peer["since"] >= self.eor_after_s:
                for family in peer.get("negotiated", {}).get("families", []):
                    if family in FAMILY and family not in peer["eor"]:
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
        if self.running is None:
            return
        client, ident, command = self.running
        if ident == LOOK and client is None and not self.has_looked:
            # what comes before the list, ends of commands included, a dead bridge had asked for
            self.has_looked = line.startswith("[")
            if self.has_looked:
                self.note_neighbors(line)
            return
        if line in ("done", "error"):
            self.running = None
            if line == "done":
                self.note_done(command)
            if client is not None:
                client.say(f"{line} {ident}")
            self.next_command()
        elif client is not None and line:
            client.say(f"line {ident} {line}")

    def tell_event(self, event: dict[str, Any]) -> None:
        address = self.note_event(event)
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
            if client is not None and self.refuses(client, command):
                client.say(f"line {ident} the speaker is being stopped")
                client.say(f"error {ident}")
                continue
            if client is not None and command.startswith("#"):
                self.answer(client, ident, command)
                continue
            self.running = (client, ident, command)
            self.running_since = self.now()
            self.to_exabgp += command.encode("ascii", "replace") + b"\n"

    def refuses(self, client: Client, command: str) -> bool:
        """Whether somebody else stops the speaker, or has just withdrawn everything for that purpose."""
        if self.reserved in (None, client) or command == "#memory":
            return False
        if self.reserved in self.clients.values():
            return True
        return command != "#reserve" and self.now() < self.reserved_until

    def answer(self, client: Client, ident: str, command: str) -> None:
        """The commands that are for the bridge itself."""
        if command == "#reserve":
            self.reserved = client
        elif command == "#memory":
            client.say(f"line {ident} " + json.dumps([self.age(peer) for peer in self.peers.values()]))
        client.say(f"done {ident}")

    # --- clients ------------------------------------------------------------------------------------------

    def accept(self) -> None:
        sock, _ = self.listener.accept()
        sock.setblocking(False)
        client = Client(sock)
        self.clients[sock.fileno()] = client
        self.poll.register(sock, select.POLLIN)
        identity = {"pid": os.getpid(), "exabgp": os.getppid(), "eor_after_s": self.eor_after_s}
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
            if command.startswith("#") and self.has_looked:
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
        for fd in (self.stdin, self.stdout):
            os.set_blocking(fd, False)
        self.poll.register(self.stdin, select.POLLIN)
        self.poll.register(self.listener, select.POLLIN)
        last_fallback = self.now()
        self.next_command()
        while True:
            self.arm()
            for fd, _ in self.poll.poll(1000):
                if fd == self.stdin:
                    if not self.read_exabgp():
                        return
                elif fd == self.listener.fileno():
                    self.accept()
                elif fd in self.clients:
                    self.read_client(fd)
            if self.now() - last_fallback >= EOR_RETRY_S and not self.queue and self.running is None:
                last_fallback = self.now()
                for address, family in list(self.unfinished()):
                    self.log(f"no End-of-RIB for {family} to {address} in {self.eor_after_s:.0f} s: sending it")
                    self.queue.append((None, "-", f"neighbor {address} announce eor {family}"))
                self.next_command()
            if self.running is not None and self.now() - self.running_since > ACK_TIMEOUT_S:
                self.log(f"ExaBGP did not answer in {ACK_TIMEOUT_S:.0f} s: {self.running[2][:80]}")
                return

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


def listen(path: str) -> socket.socket:
    """The socket at `path`, mode 0600, replacing one that a dead bridge left behind."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{path}.{os.getpid()}"
    os.umask(0o177)
    listener.bind(temporary)
    listener.listen(8)
    listener.setblocking(False)
    os.rename(temporary, path)  # noqa: PTH104 - pathlib costs this process a megabyte
    return listener


def main() -> None:
    path, eor_after_s = sys.argv[1], float(sys.argv[2])
    Bridge(listen(path), eor_after_s).run()


if __name__ == "__main__":
    main()
