"""What becomes of a command's output when nobody takes it: a reader that has gone, a disk that is full.

The commands are processes of their own here, for it is the end of the interpreter that would have the last word.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpd.cli.exits import FAILED, FINE

ANSWER: dict[str, Any] = {"result": {"routes": []}}


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """The configuration of a daemon that answers one question."""
    run, file = tmp_path / "run", tmp_path / "bgpd.yaml"
    run.mkdir()
    file.write_text(json.dumps({"paths": {"run": str(run)}}))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run / "status.sock"))
        listening.listen()
        thread = threading.Thread(target=_answer, args=(listening,))
        thread.start()
        yield file
        thread.join()


def _answer(listening: socket.socket) -> None:
    with listening.accept()[0] as channel, channel.makefile("rb") as questions:
        questions.readline()
        channel.sendall(json.dumps(ANSWER).encode() + b"\n")


def bgpd(config: Path, output: int) -> tuple[int, str]:
    """Exit code and standard error of `bgpd routes` with that output, buffered as it is in a shell."""
    argv = [sys.executable, "-m", "bgpd", "routes", "--config", str(config)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(argv, stdout=output, stderr=subprocess.PIPE, text=True, env=buffered, check=False)
    return ended.returncode, ended.stderr


def test_a_reader_that_has_gone_is_no_error(config: Path) -> None:
    """`bgpd routes | true`: not a word."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert bgpd(config, writing) == (FINE, "")
    finally:
        os.close(writing)


def test_output_that_cannot_be_written_is_told(config: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        said = "bgpd: the output cannot be written: No space left on device\n"
        assert bgpd(config, full.fileno()) == (FAILED, said)
