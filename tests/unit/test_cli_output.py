"""How commands end: when nobody takes their output (a reader that has gone, a disk that is full), and `peers` by what
it shows.

Where output is not taken the commands are processes of their own, for it is the end of the interpreter that would
have the last word.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bgpd.cli.exits import DEGRADED, FAILED, FINE
from bgpd.cli.main import main

FULL = "bgpd: the output cannot be written: No space left on device\n"
ROUTE = {"prefix": "10.0.0.0/8", "peer": "tor-a", "wanted": True, "announced": True, "why": ""}
FLOW = {
    **dict.fromkeys(("at", "verdict", "direction", "protocol", "why"), "-"),
    **{end: {"pod": "", "address": "10.0.0.1", "port": 0} for end in ("client", "server")},
    "reply": False,
    "lost": 0,
}


@dataclass(frozen=True, slots=True)
class Command:
    """A command and what the daemon says to it."""

    words: tuple[str, ...]
    said: tuple[dict[str, Any], ...]


SHORT = Command(("routes",), ({"result": {"routes": []}},))
# The interpreter keeps 8 KiB back: of what is longer the command itself learns that it is not taken.
LONG = Command(("routes",), ({"result": {"routes": [ROUTE] * 1000}},))
LONG_JSON = Command(("routes", "-o", "json"), LONG.said)
LINES = Command(("flows",), ({"result": {"flows": [FLOW] * 1000, "lost": 0, "forgotten": 0}},))
FOLLOWED = Command(("flows", "--follow"), ({"progress": json.dumps(FLOW)}, {"result": {}}))
each_command = pytest.mark.parametrize(
    "command",
    [SHORT, LONG, LONG_JSON, LINES, FOLLOWED],
    ids=["short", "long", "long JSON", "line by line", "followed"],
)


@contextlib.contextmanager
def daemon(directory: Path, said: tuple[dict[str, Any], ...]) -> Iterator[Path]:
    """The configuration of one that answers one question."""
    run, file = directory / "run", directory / "bgpd.yaml"
    run.mkdir()
    file.write_text(json.dumps({"paths": {"run": str(run)}}))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run / "status.sock"))
        listening.listen()
        thread = threading.Thread(target=_answer, args=(listening, said))
        thread.start()
        yield file
        thread.join()


def _answer(listening: socket.socket, said: tuple[dict[str, Any], ...]) -> None:
    with listening.accept()[0] as channel, channel.makefile("rb") as questions:
        questions.readline()
        with contextlib.suppress(BrokenPipeError):  # one that could not print the first line does not wait for more
            channel.sendall(b"".join(json.dumps(each).encode() + b"\n" for each in said))


def bgpd(directory: Path, command: Command, output: int) -> tuple[int, str]:
    """Exit code and standard error with that output, buffered as it is in a shell."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with daemon(directory, command.said) as config:
        argv = [sys.executable, "-m", "bgpd", *command.words, "--config", str(config)]
        ended = subprocess.run(argv, stdout=output, stderr=subprocess.PIPE, text=True, env=buffered, check=False)
    return ended.returncode, ended.stderr


@each_command
def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, command: Command) -> None:
    """`bgpd routes | true`: not a word."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert bgpd(tmp_path, command, writing) == (FINE, "")
    finally:
        os.close(writing)


@each_command
def test_output_that_cannot_be_written_is_told(tmp_path: Path, command: Command) -> None:
    """In one line, however much of it there was."""
    with Path("/dev/full").open("wb") as full:
        assert bgpd(tmp_path, command, full.fileno()) == (FAILED, FULL)


UP = {"peer": "tor-a", "address": "192.0.2.1", "asn": 64512, "state": "up", "why": "", "bfd": {"state": "up"}}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        pytest.param(UP, FINE, id="well"),
        pytest.param(UP | {"bfd": None}, FINE, id="well without BFD"),
        pytest.param(UP | {"bfd": {"state": "down"}, "why": "BFD went down"}, DEGRADED, id="BFD is down, BGP is not"),
        pytest.param(UP | {"bfd": {"state": "unknown"}}, DEGRADED, id="BFD does not answer"),
        pytest.param(UP | {"state": "idle", "why": "no address for it here"}, DEGRADED, id="idle"),
        pytest.param(UP | {"state": "down"}, DEGRADED, id="down, and nobody knows why"),
    ],
)
def test_peers_ends_as_status_does(tmp_path: Path, row: dict[str, Any], code: int) -> None:
    """One of two peers is enough."""
    with daemon(tmp_path, ({"result": {"peers": [UP, row]}},)) as config:
        assert main(["peers", "--config", str(config)]) == code
