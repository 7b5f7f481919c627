"""Answers the command line on a unix socket: one request per connection, JSON lines both ways.

    to us    {"command": "drain", "arguments": {"wait_s": 5}}
    from us  {"progress": "text"}                     any number of times
             {"result": {...}}                        once, or
             {"error": "text", "exit": 1}             once; the exit code the command should end with

The client keeps its side open until it has its answer: when it goes, its handler is cancelled. Access is the
socket's mode, 0600. What commands exist and what they do is decided by the handlers. A handler refuses with
`ControlError`; any other exception is a bug and ends the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from bgpd.observe.unixsocket import identity_of, listen

LINE_LIMIT = 1 << 20  # a request is a few hundred bytes; this only keeps a confused client from filling memory
IDLE_S = 10.0
FAILED, USAGE = 1, 2

_TOO_LONG = b"a line that did not end"

Progress: TypeAlias = Callable[[str], None]
Handler: TypeAlias = Callable[[Mapping[str, Any], Progress], Awaitable[dict[str, Any]]]


class ControlError(Exception):
    """The request cannot be met; the text is for the operator, `exit` for the command's exit code."""

    def __init__(self, text: str, exit: int = FAILED) -> None:
        super().__init__(text)
        self.exit = exit


class ControlServer:
    """`handlers` by command. A request must come within `idle_s`, and so must the client take its answer."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler], idle_s: float = IDLE_S) -> None:
        self._path, self._handlers, self._idle_s = path, handlers, idle_s
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Takes the socket's name; from now on clients can connect, and wait. OSError: another daemon has it."""
        if self._listener is None:
            self._listener = listen(self._path)

    async def run(self) -> None:
        """Serves until cancelled (opening first, if need be), then removes the socket."""
        self.open()
        assert self._listener is not None
        identity = identity_of(self._path)
        try:
            async with asyncio.TaskGroup() as group:
                server = await asyncio.start_unix_server(
                    # In our group, so that a bug in a handler is not swallowed by asyncio.
                    lambda reader, writer: group.create_task(self._serve(reader, writer), name="control client"),
                    sock=self._listener,
                    limit=LINE_LIMIT,
                )
                async with server:
                    await server.serve_forever()
        finally:
            self._listener.close()
            self._listener = None
            if identity_of(self._path) == identity:  # not the next daemon's
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await self._request(reader)
            answer = await _unless_gone(reader, self._answer(line, writer)) if line else None
            if answer is not None:
                _say(writer, answer)
        finally:
            await self._close(writer)

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        """One line, which may be too long; empty: the client went away or never spoke."""
        try:
            async with asyncio.timeout(self._idle_s):
                return await reader.readline()
        except ValueError:
            return _TOO_LONG
        except (OSError, TimeoutError):
            return b""

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> dict[str, Any]:
        """What to say in the end."""
        try:
            command, arguments = _parse(line)
            handler = self._handlers.get(command)
            if handler is None:
                known = ", ".join(sorted(self._handlers))
                raise ControlError(f"this daemon knows no command {command!r}; it knows {known}", USAGE)
            return {"result": await handler(arguments, lambda text: _progress(writer, text))}
        except ControlError as error:
            return {"error": str(error), "exit": error.exit}

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        """Flushes what was said, for a bounded time."""
        try:
            async with asyncio.timeout(self._idle_s):
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            writer.transport.abort()


async def _unless_gone(
    reader: asyncio.StreamReader, answer: Coroutine[Any, Any, dict[str, Any]]
) -> dict[str, Any] | None:
    """The answer; None: the client did not wait for it, and its handler was cancelled."""
    work = asyncio.create_task(answer, name="control handler")
    gone = asyncio.create_task(_end_of(reader), name="control client's end")
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.wait((work, gone))
    return None if work.cancelled() else work.result()


def _parse(line: bytes) -> tuple[str, Mapping[str, Any]]:
    if line is _TOO_LONG:
        raise ControlError(f"a request has at most {LINE_LIMIT} bytes", USAGE)
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("a request is one line of JSON", USAGE) from None
    command = request.get("command") if isinstance(request, dict) else None
    arguments = request.get("arguments", {}) if isinstance(request, dict) else None
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise ControlError('a request is {"command": "...", "arguments": {...}}', USAGE)
    return command, arguments


def _progress(writer: asyncio.StreamWriter, text: str) -> None:
    """Told to whoever listens; a client that does not read loses progress and nothing else."""
    if not writer.is_closing() and writer.transport.get_write_buffer_size() < LINE_LIMIT:
        _say(writer, {"progress": text})


def _say(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


async def _end_of(reader: asyncio.StreamReader) -> None:
    """Returns when the client has closed its side; whatever else it says is not for us."""
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass
