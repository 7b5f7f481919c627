"""The command line's socket, server and client together, over real unix sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bgpd.cli.client import NotReachable, Refused, request
from bgpd.observe.control import LINE_LIMIT, ControlError, ControlServer, Handler, Progress


async def greet(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    return {"hello": arguments.get("name", "nobody")}


async def count(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    for step in range(3):
        progress(f"step {step}")
        await asyncio.sleep(0)
    return {"steps": 3}


async def refuse(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    raise ControlError("peer tor-c is not configured", 2)


async def wait(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    await asyncio.sleep(60)
    return {}


async def crash(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    raise ValueError("a bug")


HANDLERS: Mapping[str, Handler] = {"greet": greet, "count": count, "refuse": refuse, "wait": wait, "crash": crash}


def serve(
    path: Path, scenario: Callable[[], Awaitable[None]], handlers: Mapping[str, Handler] = HANDLERS, idle_s: float = 2
) -> None:
    """Runs `scenario` beside a server; an error of the server's is the test's."""

    async def both() -> None:
        server = ControlServer(path, handlers, idle_s)
        server.open()
        serving = asyncio.create_task(server.run())
        talking = asyncio.ensure_future(scenario())
        await asyncio.wait((serving, talking), return_when=asyncio.FIRST_COMPLETED)
        for task in (talking, serving):
            if not task.done():
                task.cancel()
        await asyncio.wait((serving, talking))
        for task in (serving, talking):
            if not task.cancelled():
                task.result()

    asyncio.run(both())


async def ask(path: Path, command: str, silence_s: float = 2, **arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """The client is synchronous: it gets a thread."""
    told: list[str] = []
    result = await asyncio.to_thread(request, path, command, arguments, told.append, silence_s)
    return result, told


def names_in(directory: Path) -> list[str]:
    return [it.name for it in directory.iterdir()]


async def raw(path: Path, data: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 22)
    writer.write(data)
    answer: dict[str, Any] = json.loads(await reader.readline())
    assert await reader.read() == b""  # the server closes after its answer
    writer.close()
    await writer.wait_closed()
    return answer


def test_a_request_and_its_result(tmp_path: Path) -> None:
    """Arguments go in, the handler's result comes back."""

    async def scenario() -> None:
        assert await ask(tmp_path / "s", "greet", name="tor-a") == ({"hello": "tor-a"}, [])

    serve(tmp_path / "s", scenario)


def test_progress_comes_before_the_result(tmp_path: Path) -> None:
    """Each progress text reaches the client's callback, in order."""

    async def scenario() -> None:
        assert await ask(tmp_path / "s", "count") == ({"steps": 3}, ["step 0", "step 1", "step 2"])

    serve(tmp_path / "s", scenario)


def test_a_refusal_carries_text_and_exit_code(tmp_path: Path) -> None:
    """What a handler raises as ControlError is what the command prints and ends with."""

    async def scenario() -> None:
        with pytest.raises(Refused, match="peer tor-c is not configured") as caught:
            await ask(tmp_path / "s", "refuse")
        assert caught.value.exit == 2

    serve(tmp_path / "s", scenario)


def test_an_unknown_command_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    """A newer command line than the daemon is told what the daemon can do."""

    async def scenario() -> None:
        with pytest.raises(Refused, match="no command 'flows'; it knows count, crash, greet") as caught:
            await ask(tmp_path / "s", "flows")
        assert caught.value.exit == 2

    serve(tmp_path / "s", scenario)


@pytest.mark.parametrize(
    "line",
    [b"hello\n", b"[]\n", b'{"command": 1}\n', b'{"command": "greet", "arguments": []}\n', b"[" * 90000 + b"\n"],
)
def test_nonsense_is_answered_with_the_format(tmp_path: Path, line: bytes) -> None:
    """Whatever is no request is refused as a usage error, and the server goes on."""

    async def scenario() -> None:
        answer = await raw(tmp_path / "s", line)
        assert "a request is" in answer["error"]
        assert answer["exit"] == 2
        assert (await ask(tmp_path / "s", "greet"))[0] == {"hello": "nobody"}

    serve(tmp_path / "s", scenario)


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    """A client cannot fill the daemon's memory: a request has a longest length."""

    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"x" * (LINE_LIMIT + 200_000))
        assert json.loads(await reader.readline())["error"] == f"a request has at most {LINE_LIMIT} bytes"
        writer.transport.abort()

    serve(tmp_path / "s", scenario)


def test_a_large_result_arrives_whole(tmp_path: Path) -> None:
    """Results have no limit of their own: 40,000 routes are one answer."""

    async def many(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return {"routes": ["10.0.0.0/24"] * 200_000}

    async def scenario() -> None:
        assert len((await ask(tmp_path / "s", "many"))[0]["routes"]) == 200_000

    serve(tmp_path / "s", scenario, {"many": many})


def test_a_client_that_goes_cancels_its_handler(tmp_path: Path) -> None:
    """Ctrl-C in `bgpd drain` ends the handler at its next wait."""
    ended = asyncio.Event()

    async def patient(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        progress("waiting")
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return {}

    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b'{"command": "patient"}\n')
        await reader.readline()
        writer.close()
        async with asyncio.timeout(2):
            await ended.wait()

    serve(tmp_path / "s", scenario, {"patient": patient})


def test_a_client_that_says_nothing_is_dropped(tmp_path: Path) -> None:
    """A connection without a request does not stay for ever."""

    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        async with asyncio.timeout(2):
            assert await reader.read() == b""
        writer.close()

    serve(tmp_path / "s", scenario, idle_s=0.05)


async def talkative(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    for _ in range(500):
        progress("x" * 10_000)
    return {"told": True}


def test_progress_that_nobody_reads_is_left_out(tmp_path: Path) -> None:
    """Five megabytes of progress do not pile up in the daemon; the result still comes."""

    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"), limit=1 << 16)
        writer.write(b'{"command": "talkative"}\n')
        await asyncio.sleep(0.2)  # meanwhile the handler has said all it has to say
        received = await reader.read()
        assert len(received) < 2 * LINE_LIMIT
        assert json.loads(received.splitlines()[-1]) == {"result": {"told": True}}
        writer.close()

    serve(tmp_path / "s", scenario, {"talkative": talkative})


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    """A client that takes no answer loses the connection before its end; others are served meanwhile."""

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
            deaf.connect(str(tmp_path / "s"))
            deaf.sendall(b'{"command": "talkative"}\n')
            await asyncio.sleep(0.3)
            assert (await ask(tmp_path / "s", "greet"))[0] == {"hello": "nobody"}
            deaf.settimeout(1)
            received = b""
            while data := deaf.recv(1 << 20):
                received += data
            assert b"result" not in received

    serve(tmp_path / "s", scenario, {"talkative": talkative, "greet": greet}, idle_s=0.1)


def test_a_bug_in_a_handler_ends_the_daemon(tmp_path: Path) -> None:
    """Only ControlError is an answer; anything else comes out of `run`, and the client learns that we ended."""

    async def scenario() -> None:
        with pytest.raises(NotReachable, match="bgpd ended before it answered"):
            await ask(tmp_path / "s", "crash")
        await asyncio.sleep(60)

    with pytest.raises(ExceptionGroup) as caught:
        serve(tmp_path / "s", scenario)
    assert caught.group_contains(ValueError, match="a bug")


def test_requests_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """`bgpd status` answers while a drain is under way."""

    async def scenario() -> None:
        slow = asyncio.create_task(ask(tmp_path / "s", "wait", silence_s=0.2))
        assert (await ask(tmp_path / "s", "greet"))[0] == {"hello": "nobody"}
        with pytest.raises(NotReachable, match="has not answered"):
            await slow

    serve(tmp_path / "s", scenario)


def test_the_socket_is_for_root_only(tmp_path: Path) -> None:
    """Mode 0600, and nothing else left in the directory."""

    async def scenario() -> None:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert names_in(tmp_path) == ["s"]

    serve(tmp_path / "s", scenario)


def test_the_socket_is_gone_afterwards(tmp_path: Path) -> None:
    """An orderly end leaves no socket behind, so that the command line says at once that nobody is there."""

    async def nothing() -> None:
        await asyncio.sleep(0.01)

    serve(tmp_path / "s", nothing)
    assert names_in(tmp_path) == []
    with pytest.raises(NotReachable, match=r"s: No such file or directory; is bgpd\.service running\?"):
        request(tmp_path / "s", "greet", {}, print)


def test_a_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    """A leftover socket that nobody answers on is no obstacle, and the client says so meanwhile."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
        killed.bind(str(tmp_path / "s"))
    with pytest.raises(NotReachable, match="Connection refused"):
        request(tmp_path / "s", "greet", {}, print)

    async def scenario() -> None:
        assert (await ask(tmp_path / "s", "greet"))[0] == {"hello": "nobody"}

    serve(tmp_path / "s", scenario)


def test_the_socket_of_a_living_daemon_is_not_taken(tmp_path: Path) -> None:
    """A second daemon on the same directory is refused, and the first one goes on."""

    async def scenario() -> None:
        with pytest.raises(OSError, match="another bgpd answers on it"):
            ControlServer(tmp_path / "s", HANDLERS).open()
        assert (await ask(tmp_path / "s", "greet"))[0] == {"hello": "nobody"}

    serve(tmp_path / "s", scenario)


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    """A mistaken `paths.run` must not cost somebody a file."""
    (tmp_path / "s").write_text("precious")
    with pytest.raises(OSError, match="is no socket"):
        ControlServer(tmp_path / "s", HANDLERS).open()
    assert (tmp_path / "s").read_text() == "precious"


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    """unix(7) allows 107 bytes; the error says which path it was."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with pytest.raises(OSError, match=r"AF_UNIX path too long.*ddd/s"):
        ControlServer(deep / "s", HANDLERS).open()


def test_whatever_else_listens_there_is_not_bgpd(tmp_path: Path) -> None:
    """A stranger's answer is told apart from ours."""

    async def scenario() -> None:
        async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b"220 smtp\n")
            writer.close()

        async with await asyncio.start_unix_server(stranger, str(tmp_path / "s")):
            with pytest.raises(NotReachable, match="is not bgpd"):
                await ask(tmp_path / "s", "greet")

    asyncio.run(scenario())
