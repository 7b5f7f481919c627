"""Stops the speaker on purpose: everything is withdrawn and has arrived before ExaBGP may end.

ExaBGP answers SIGTERM with a bare FIN. Under graceful restart a peer then keeps the routes of a node that has
left. So the unit's ExecStop runs this first, with or without a daemon: it has the bridge to itself (a daemon
would announce again), withdraws, closes with End-of-RIB, which also removes what a peer still held of an
earlier ExaBGP (RFC 4724 section 4.2), and waits until the peers have acknowledged it all. Standard library
only.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Collection
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from bgpd.bgp.leave import LOOK_S, QUESTION, Leave, updates_sent
from bgpd.model.prefix import Address, parse_address

RESPAWN_S = 1.0  # a guardian that was killed is replaced in 0.1 s; a bridge is waited for in its queue
ESTABLISHED = "01"  # in /proc/net/tcp


class StopError(Exception):
    """The withdrawal could not be confirmed; the text says what peers may now keep, and for how long."""


class _NobodyListens(Exception):
    pass


def withdraw_everything(path: Path, timeout_s: float, say: Callable[[str], None]) -> None:
    """Returns once every peer that is up has received its withdrawals. No speaker running is no error."""
    try:
        connection = _connect(path, timeout_s)
    except (FileNotFoundError, _NobodyListens):
        say("the speaker is not running: nothing to withdraw")
        return
    except OSError as error:  # the guardian takes connections while no bridge answers them
        text = f"{path}: {error.strerror or 'the bridge does not answer'}"
        raise StopError(f"{text}; peers keep the routes until their graceful-restart timer ends") from None
    with connection, connection.makefile("rwb") as stream:
        try:
            _withdraw(_Bridge(stream), time.monotonic() + timeout_s, say)
        except (OSError, ValueError) as error:
            raise StopError(f"{error}; peers keep the routes until their graceful-restart timer ends") from None


def _connect(path: Path, timeout_s: float) -> socket.socket:
    """A connection to the bridge, one that is just being replaced included."""
    deadline = time.monotonic() + RESPAWN_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            if connection.recv(1, socket.MSG_PEEK):
                return connection
        except ConnectionError:
            pass
        except OSError:
            connection.close()
            raise
        connection.close()
        if time.monotonic() > deadline:
            raise _NobodyListens
        time.sleep(LOOK_S)


class _Bridge:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._stream.readline()  # hello

    def command(self, text: str) -> list[str]:
        self._stream.write(f"stop {text}\n".encode())
        self._stream.flush()
        lines = []
        while line := self._stream.readline().decode():
            kind, _, rest = line.rstrip("\n").partition(" ")
            if kind == "line":
                lines.append(rest.partition(" ")[2])
            elif kind == "done":
                return lines
            elif kind == "error":
                raise ValueError(f"refused: {text} {' '.join(lines)}")
        raise ValueError("the speaker closed the connection")


def _withdraw(bridge: _Bridge, deadline: float, say: Callable[[str], None]) -> None:
    bridge.command("#reserve")
    families = {
        parse_address(peer["peer"]): peer.get("negotiated", {}).get("families", [])
        for peer in json.loads(bridge.command("#memory")[0])
        if peer["state"] == "up"
    }
    routes = len(bridge.command("show adj-rib out json"))
    sent = updates_sent(bridge.command(QUESTION))
    leave = Leave(families.keys(), sent)
    if routes:
        # towards peers that are down too: they must not be told when they come back
        bridge.command("clear adj-rib out")
    for address in sorted(leave.present(sent), key=str):
        for family in families[address]:
            bridge.command(f"neighbor {address} announce eor {family}")
    while not leave.complete(sent, held=_unacknowledged(leave.present(sent))):
        if time.monotonic() > deadline:
            raise ValueError("not every peer has acknowledged its withdrawals")
        time.sleep(LOOK_S)
        sent = updates_sent(bridge.command(QUESTION))
    for address in sorted(leave.fallen(sent), key=str):
        say(f"the session with {address} fell meanwhile: it may keep routes until its graceful-restart timer ends")
    say(f"{routes} routes withdrawn from {len(leave.present(sent))} peers")


def _unacknowledged(addresses: Collection[Address]) -> bool:
    """Whether the kernel still holds something that one of these has not acknowledged (proc(5), /proc/net/tcp)."""
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            _, _, remote, state, queues, *_ = line.split()
            waiting = int(queues.partition(":")[0], 16)
            if state == ESTABLISHED and waiting and _address(remote.partition(":")[0]) in addresses:
                return True
    return False


def _address(words: str) -> Address:
    """An address as /proc/net/tcp prints it: 32-bit words in the machine's order, eight digits each."""
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    return ip_address(packed)
