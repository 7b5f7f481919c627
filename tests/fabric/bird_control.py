"""BIRD's control socket: questions and answers over a unix stream socket, without starting `birdc`.

This decides the framing of the protocol (doc/reply_codes of BIRD 2: a four-digit code, then `-` when more
follows, a space on the last line, or a leading space for a line with the code before). It does not know
what the answers mean (`bird`). A question costs about 0.1 ms, so a route can be watched every few
milliseconds.
"""

from __future__ import annotations

from pathlib import Path

from tests.fabric.control_socket import ControlSocket


class BirdError(RuntimeError):
    """BIRD refused a command (codes 8000 and up)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


class BirdControl(ControlSocket):
    """BIRD's end speaks first."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        super().__init__(path, timeout_s)

    def _greet(self) -> None:
        self._answer()

    def ask(self, command: str) -> list[str]:
        """The lines of BIRD's answer without their codes; `BirdError` when the last code is an error."""
        self._socket.sendall(command.encode() + b"\n")
        lines = self._answer()
        code, text = lines[-1]
        if code >= 8000:
            raise BirdError(code, text)
        return [text for _, text in lines]

    def _answer(self) -> list[tuple[int, str]]:
        lines: list[tuple[int, str]] = []
        code = 0
        while True:
            raw = self._stream.readline()
            if not raw.endswith(b"\n"):
                raise ConnectionResetError("BIRD closed its control socket")
            line = raw[:-1].decode(errors="replace")
            if line.startswith("+"):  # an asynchronous log line, not part of the answer
                continue
            if line.startswith(" "):
                lines.append((code, line[1:]))
                continue
            code = int(line[:4])
            lines.append((code, line[5:]))
            if line[4:5] != "-":
                return lines
