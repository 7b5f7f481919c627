"""Stops the speaker on purpose: everything is withdrawn and on the wire before ExaBGP may end.

ExaBGP answers SIGTERM with a bare FIN. Under graceful restart a peer then keeps the routes of a node that has
left. So the unit's ExecStop runs this first, with or without a daemon: it has the bridge to itself (a daemon
would announce again), withdraws, and waits until ExaBGP has sent the last message. Standard library only.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class StopError(Exception):
    """The withdrawal could not be confirmed; the text says what peers may now keep, and for how long."""


def withdraw_everything(path: Path, timeout_s: float, say: Callable[[str], None]) -> None:
    """Returns once every peer that is up has been sent its withdrawals. No speaker running is no error."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        say("the speaker is not running: nothing to withdraw")
        return
    with connection, connection.makefile("rwb") as stream:
        try:
            _withdraw(_Bridge(stream), time.monotonic() + timeout_s, say)
        except (OSError, ValueError) as error:
            raise StopError(f"{error}; peers keep the routes until their graceful-restart timer ends") from None


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
                raise ValueError(f"ExaBGP refused: {text}")
        raise ValueError("the speaker closed the connection")


def _withdraw(bridge: _Bridge, deadline: float, say: Callable[[str], None]) -> None:
    bridge.command("#reserve")
    up = [peer["peer"] for peer in json.loads(bridge.command("#memory")[0]) if peer["state"] == "up"]
    routes = len(bridge.command("show adj-rib out json"))
    if not up or not routes:
        say("nothing is announced")
        return
    sent = _updates_sent(bridge)
    for address in up:
        bridge.command(f"neighbor {address} clear adj-rib out")
        # End-of-RIB leaves after everything else: one more update on the wire than there were withdrawals
        bridge.command(f"neighbor {address} announce eor ipv4 unicast")
    settled = 0
    while settled < 3:  # the counters stand still in three looks: the last message is out
        now = _updates_sent(bridge)
        settled = settled + 1 if now == sent and all(now.get(address, 0) for address in up) else 0
        sent = now
        if time.monotonic() > deadline:
            raise ValueError("ExaBGP is still sending withdrawals")
        time.sleep(0.05)
    say(f"{routes} routes withdrawn from {len(up)} peers")


def _updates_sent(bridge: _Bridge) -> dict[str, int]:
    neighbors = json.loads("".join(bridge.command("show neighbor json")))
    return {entry["peer"]["address"]: entry["messages"]["sent"]["update"] for entry in neighbors}
