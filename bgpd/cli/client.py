"""Asks the running daemon one thing and waits for the answer; the protocol is in `observe.control`.

Standard library only and synchronous: commands must start fast. It decides how failure is worded when there is
no daemon to word it. What to ask and how to show the answer is each command's own.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

SILENCE_S = 30.0  # handlers that take longer report progress


class NotReachable(Exception):
    """There is no answer to be had from the daemon; the text says which socket and what to look at."""


class Refused(Exception):
    """The daemon answered that it cannot; `exit` is the code the command should end with."""

    def __init__(self, text: str, exit: int) -> None:
        super().__init__(text)
        self.exit = exit


def request(
    path: Path,
    command: str,
    arguments: Mapping[str, Any],
    on_progress: Callable[[str], object],
    silence_s: float = SILENCE_S,
) -> dict[str, Any]:
    """The daemon's result. NotReachable: nobody there, or not a word in `silence_s`. Refused: it said no."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(silence_s)
        try:
            channel.connect(str(path))
            channel.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            with channel.makefile("rb") as answers:
                return _result(path, answers, on_progress)
        except PermissionError:
            raise NotReachable(f"{path}: no permission; run it as root") from None
        except TimeoutError:
            raise NotReachable(
                f"{path}: bgpd has not answered for {silence_s:.0f} s; see `journalctl -u bgpd.service`"
            ) from None
        except OSError as error:
            raise NotReachable(f"{path}: {error.strerror or error}; is bgpd.service running?") from None


def _result(path: Path, answers: BinaryIO, on_progress: Callable[[str], object]) -> dict[str, Any]:
    for line in answers:
        try:
            answer = json.loads(line)
        except ValueError:
            raise NotReachable(f"{path}: whatever answers there is not bgpd") from None
        if "progress" in answer:
            on_progress(str(answer["progress"]))
        elif "error" in answer:
            raise Refused(str(answer["error"]), int(answer.get("exit", 1)))
        elif "result" in answer:
            result: dict[str, Any] = answer["result"]
            return result
    raise NotReachable(f"{path}: bgpd ended before it answered; see `journalctl -u bgpd.service`")
