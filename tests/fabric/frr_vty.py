"""FRR's control socket: one daemon's `*.vty`, spoken to directly, without starting `vtysh`.

This decides the framing (lib/vty.c of FRR 8: a command ends with a zero byte, its answer with three zero
bytes and the return code) and keeps the connection in the node the commands have led to. It does not know
what answers mean (`frr`). The daemon does not climb out of a node by itself as `vtysh` does: leave each
with `exit` or go back to the top with `end`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fabric.control_socket import ControlSocket

_END = b"\0\0\0"
_SUCCESS, _WARNING = 0, 1


class FrrError(RuntimeError):
    """A daemon refused a command."""


class FrrVty(ControlSocket):
    """A connection in the enabled node."""

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        self._buffer = b""
        super().__init__(path, timeout_s)

    def _greet(self) -> None:
        self.ask("enable")

    def ask(self, command: str) -> str:
        """What the daemon prints for one command; `FrrError` with its words when it refuses."""
        self._socket.sendall(command.encode() + b"\0")
        return self._answer(command)

    def ask_json(self, command: str, form: str = "json") -> dict[str, Any]:
        """The answer to `command json`; an empty one when the daemon prints nothing."""
        answer = json.loads(self.ask(f"{command} {form}") or "{}")
        return answer if isinstance(answer, dict) else {}

    def configure(self, commands: Iterable[str]) -> None:
        """Run configuration commands from the top, in order, pipelined; the first that is refused raises."""
        pending = ["configure terminal", *commands, "end"]
        for start in range(0, len(pending), 200):
            block = pending[start : start + 200]
            self._socket.sendall(b"".join(command.encode() + b"\0" for command in block))
            for command in block:
                self._answer(command)

    def _answer(self, command: str) -> str:
        while (at := self._buffer.find(_END)) < 0 or len(self._buffer) <= at + len(_END):
            data = self._stream.read1(1 << 20)
            if not data:
                raise ConnectionResetError("FRR closed its control socket")
            self._buffer += data
        text, code = self._buffer[:at].decode(errors="replace"), self._buffer[at + len(_END)]
        self._buffer = self._buffer[at + len(_END) + 1 :]
        if code not in (_SUCCESS, _WARNING):
            raise FrrError(f"{command!r}: code {code} {text.strip()}")
        return text
