"""The server on its socket: who waits for whom, what is undone, what is remembered. The attacher only records."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bgpd.cni.frame import Frame
from bgpd.cni.journal import Journal, Queue
from bgpd.cni.server import CniServer
from bgpd.model.attachment import AttachmentKey
from bgpd.model.outcome import DONE, Blocked, Retry
from tests.unit.cni_attacher import Recorder
from tests.unit.cni_requests import CONTAINER, configuration, frame, previous

T = TypeVar("T")
SOON_S = 10.0
KEY = AttachmentKey("cluster", CONTAINER, "eth0")


class Bench:
    """A server at work, and the ways a plugin speaks to it."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "cni.sock"
        self.journal, self.queue = Journal(directory / "endpoints"), Queue(directory / "cni-queue")
        self.attacher = Recorder()
        self.done: list[tuple[str, bool]] = []
        self.server = CniServer(
            self.socket,
            self.attacher,
            self.journal,
            self.queue,
            on_done=lambda done: self.done.append((done.verb, done.failed)),
            replay_s=0.01,
        )

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        assert self.journal.load() == ()
        task = asyncio.create_task(self.server.run())
        try:
            await until(self.socket.exists)
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert not self.socket.exists()

    async def open(self, asked: Frame) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(asked.encode())
        await writer.drain()
        return reader, writer

    async def ask(self, asked: Frame) -> tuple[int, Any]:
        """Exit status and what is printed."""
        reader, writer = await self.open(asked)
        answer = await reader.read()
        writer.close()
        head, _, output = answer.partition(b"\n")
        magic, status, length = head.split()
        assert (magic, int(length)) == (b"bgpd-cni/1", len(output))
        return int(status), json.loads(output) if output else None

    async def refusal(self, asked: Frame) -> tuple[int, str]:
        status, error = await self.ask(asked)
        assert status == 1
        assert error["cniVersion"] == json.loads(asked.configuration)["cniVersion"]
        return error["code"], error["msg"]


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():  # noqa: ASYNC110 - what is waited for is a file, or a call of the attacher
            await asyncio.sleep(0.001)


def run(scenario: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(3 * SOON_S):
            return await scenario

    return asyncio.run(bounded())


def served(bench: Bench, scenario: Callable[[], Awaitable[T]]) -> T:
    async def whole() -> T:
        async with bench.serving():
            return await scenario()

    return run(whole())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def of(container: str, verb: str = "ADD", **changes: Any) -> Frame:
    return frame(verb, configuration(**changes), CNI_CONTAINERID=container)


def test_the_socket_is_root_s_alone(bench: Bench) -> None:
    async def scenario() -> int:
        return bench.socket.stat().st_mode & 0o777

    assert served(bench, scenario) == 0o600


def test_an_add_is_attached_remembered_and_answered_with_the_previous_result(bench: Bench) -> None:
    async def scenario() -> tuple[int, Any]:
        return await bench.ask(frame("ADD"))

    assert served(bench, scenario) == (0, previous())
    assert bench.attacher.attached.keys() == bench.journal.attachments.keys() == {KEY}


def test_check_del_and_status_print_nothing(bench: Bench) -> None:
    async def scenario() -> list[tuple[int, Any]]:
        await bench.ask(frame("ADD"))
        status = frame("STATUS", configuration("1.1.0"))
        return [await bench.ask(asked) for asked in (frame("CHECK"), status, frame("DEL"), frame("DEL"))]

    assert served(bench, scenario) == [(0, None)] * 4
    assert (bench.attacher.attached, dict(bench.journal.attachments)) == ({}, {})


def test_every_request_is_told_with_how_it_ended(bench: Bench) -> None:
    """Also one that cannot be understood."""
    bench.attacher.attach_outcome = Blocked("a dummy interface")

    async def scenario() -> None:
        await bench.ask(frame("ADD"))
        await bench.ask(frame("DEL"))
        await bench.ask(Frame(b"", b"nonsense"))

    served(bench, scenario)
    assert bench.done == [("ADD", True), ("DEL", False), ("unknown", True)]


def test_200_pods_at_once_lose_none(bench: Bench) -> None:
    """They are attached beside each other, not one after the other."""
    bench.attacher.holds["attach"] = asyncio.Event()
    containers = [f"c{number}" for number in range(200)]

    async def scenario() -> list[int]:
        asked = [asyncio.create_task(bench.ask(of(container))) for container in containers]
        await until(lambda: bench.attacher.most_at_once == len(containers))
        bench.attacher.holds["attach"].set()
        return [status for status, _ in await asyncio.gather(*asked)]

    assert served(bench, scenario) == [0] * len(containers)
    assert {key.container for key in bench.journal.attachments} == set(containers)
    assert len(bench.attacher.attached) == len(containers)


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Retry("the table is not there yet"), (11, "the table is not there yet")),
        (Blocked("it is a tap"), (100, "it is a tap")),
    ],
)
def test_an_add_that_fails_is_undone(bench: Bench, outcome: Retry | Blocked, told: tuple[int, str]) -> None:
    bench.attacher.attach_outcome = outcome

    async def scenario() -> tuple[int, str]:
        return await bench.refusal(frame("ADD"))

    assert served(bench, scenario) == told
    assert bench.attacher.calls == [("attach", CONTAINER), ("detach", CONTAINER)]
    assert dict(bench.journal.attachments) == {}


def test_an_add_beyond_its_deadline_is_undone_before_the_plugin_gives_up(bench: Bench) -> None:
    bench.attacher.holds["attach"] = asyncio.Event()

    async def scenario() -> tuple[int, str]:
        return await bench.refusal(frame("ADD", configuration() | {"deadline-seconds": 1}))

    code, text = served(bench, scenario)
    assert code == 11
    assert text.startswith("the policy of the pod was not in the kernel within 0.9 s")
    assert bench.attacher.calls[-1] == ("detach", CONTAINER)
    assert dict(bench.journal.attachments) == {}


def test_a_del_ends_an_add_that_is_under_way(bench: Bench) -> None:
    """Both are answered; nothing is left."""
    bench.attacher.holds["attach"] = asyncio.Event()

    async def scenario() -> tuple[tuple[int, str], tuple[int, Any]]:
        adding = asyncio.create_task(bench.refusal(frame("ADD")))
        await bench.attacher.started.wait()
        deleted = await bench.ask(frame("DEL"))
        return await adding, deleted

    added, deleted = served(bench, scenario)
    assert added == (11, "a DEL of the same attachment came before the ADD was done")
    assert deleted == (0, None)
    assert (bench.attacher.attached, dict(bench.journal.attachments)) == ({}, {})


def test_an_add_whose_plugin_was_killed_is_undone(bench: Bench) -> None:
    bench.attacher.holds["attach"] = asyncio.Event()

    async def scenario() -> None:
        _, writer = await bench.open(frame("ADD", configuration() | {"deadline-seconds": 600}))
        await bench.attacher.started.wait()
        writer.transport.abort()
        await until(lambda: ("detach", CONTAINER) in bench.attacher.calls)
        await until(lambda: not bench.journal.attachments)

    served(bench, scenario)
    assert bench.attacher.attached == {}


def test_a_del_goes_on_without_its_plugin(bench: Bench) -> None:
    bench.attacher.holds["detach"] = asyncio.Event()

    async def scenario() -> None:
        await bench.ask(frame("ADD"))
        _, writer = await bench.open(frame("DEL"))
        await until(lambda: ("detach", CONTAINER) in bench.attacher.calls)
        writer.transport.abort()
        await bench.ask(frame("STATUS", configuration("1.1.0")))  # the server has seen it go by now
        bench.attacher.holds["detach"].set()
        await until(lambda: not bench.journal.attachments)

    served(bench, scenario)
    assert bench.attacher.attached == {}


def test_what_cannot_be_detached_stays_remembered(bench: Bench) -> None:
    """The runtime tries again, and then it is known what to detach."""
    bench.attacher.detach_outcome = Retry("busy")

    async def scenario() -> tuple[int, str]:
        await bench.ask(frame("ADD"))
        return await bench.refusal(frame("DEL"))

    assert served(bench, scenario) == (11, "busy")
    assert bench.journal.attachments.keys() == {KEY}


def test_a_second_life_knows_what_the_first_attached(bench: Bench, tmp_path: Path) -> None:
    async def scenario() -> None:
        await bench.ask(frame("ADD"))

    served(bench, scenario)
    second = Bench(tmp_path)

    async def check() -> tuple[int, Any]:
        return await second.ask(frame("CHECK"))

    assert served(second, check) == (0, None)
    assert second.journal.attachments == bench.journal.attachments


def test_check_says_what_differs(bench: Bench) -> None:
    changed = previous()
    changed["ips"] = changed["ips"][:1]

    async def scenario() -> list[tuple[int, str]]:
        unknown = await bench.refusal(frame("CHECK"))
        await bench.ask(frame("ADD"))
        bench.attacher.differs = ("the filter on veth3f is gone",)
        return [unknown, await bench.refusal(frame("CHECK", configuration(prevResult=changed)))]

    assert served(bench, scenario) == [
        (101, "bgpd has no such attachment: no policy is enforced on it"),
        (101, "addresses: was 10.244.1.7, fd00::7, is 10.244.1.7; the filter on veth3f is gone"),
    ]


def test_gc_removes_what_the_runtime_does_not_name(bench: Bench) -> None:
    """Of its network only; and it goes on after a failure, then tells it."""
    valid = {"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]}
    gc = frame("GC", configuration("1.1.0") | valid)

    async def scenario() -> tuple[tuple[int, str], tuple[int, Any]]:
        for container in ("kept", "stale", "stale2"):
            await bench.ask(of(container))
        await bench.ask(of("other", name="storage"))
        bench.attacher.detach_outcome = Retry("busy")
        failed = await bench.refusal(gc)
        bench.attacher.detach_outcome = DONE
        return failed, await bench.ask(gc)

    failed, done = served(bench, scenario)
    assert failed == (11, "cluster,stale,eth0: busy; cluster,stale2,eth0: busy")
    assert done == (0, None)
    assert {key.container for key in bench.attacher.attached} == {"kept", "other"}
    assert bench.attacher.kept == frozenset(bench.journal.attachments) == frozenset(bench.attacher.attached)


def test_gc_leaves_an_add_alone_that_is_under_way(bench: Bench) -> None:
    bench.attacher.holds["attach"] = asyncio.Event()
    gc = frame("GC", configuration("1.1.0") | {"cni.dev/valid-attachments": []})

    async def scenario() -> tuple[int, Any]:
        adding = asyncio.create_task(bench.ask(frame("ADD")))
        await bench.attacher.started.wait()
        assert await bench.ask(gc) == (0, None)
        bench.attacher.holds["attach"].set()
        return await adding

    assert served(bench, scenario)[0] == 0
    assert bench.attacher.attached.keys() == {KEY}


def test_status_says_why_no_pod_can_start(bench: Bench) -> None:
    bench.attacher.reason = "the source is not synced"

    async def scenario() -> tuple[int, str]:
        return await bench.refusal(frame("STATUS", configuration("1.1.0")))

    assert served(bench, scenario) == (50, "the source is not synced")


def test_our_mistake_fails_one_request_and_no_other(bench: Bench) -> None:
    """Closed: the pod does not start."""
    bench.attacher.mistake = ZeroDivisionError("a mistake")

    async def scenario() -> tuple[tuple[int, str], tuple[int, Any]]:
        failed = await bench.refusal(frame("ADD"))
        bench.attacher.mistake = None
        return failed, await bench.ask(frame("ADD"))

    failed, then = served(bench, scenario)
    assert failed == (102, 'bgpd made a mistake; "journalctl -u bgpd" has it')
    assert then[0] == 0


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"x" * 200_000, b"bgpd-cni/2 1 1\n\0{", b"bgpd-cni/1 9999999 1\n"]
)
def test_another_language_is_refused(bench: Bench, said: bytes) -> None:
    async def scenario() -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(bench.socket))
        writer.write(said)
        answer = await reader.read()
        writer.close()
        return answer

    answer = served(bench, scenario)
    assert answer.startswith(b"bgpd-cni/1 1 ")
    assert json.loads(answer.partition(b"\n")[2])["code"] == 6


@pytest.mark.parametrize("length", [0, 5, 200])
def test_a_plugin_that_vanishes_while_it_speaks_is_no_request(bench: Bench, length: int) -> None:
    async def scenario() -> tuple[int, Any]:
        _, writer = await asyncio.open_unix_connection(str(bench.socket))
        writer.write(frame("ADD").encode()[:length])
        writer.close()
        return await bench.ask(of("another"))

    assert served(bench, scenario)[0] == 0
    assert {key.container for key in bench.attacher.attached} == {"another"}


def test_a_journal_that_cannot_be_written_fails_the_add(bench: Bench) -> None:
    """What is attached and not remembered would be nobody's after a restart."""

    async def scenario() -> tuple[int, str]:
        (bench.queue.directory.parent / "endpoints").rmdir()
        return await bench.refusal(frame("ADD"))

    code, text = served(bench, scenario)
    assert code == 11
    assert "the attachment cannot be remembered: " in text
    assert text.endswith("No such file or directory")
    assert bench.attacher.calls == []


# --- queued DELs ------------------------------------------------------------------------------------------


def queued(bench: Bench, asked: Frame, name: str = str(KEY)) -> Path:
    bench.queue.directory.mkdir(exist_ok=True)
    file = bench.queue.directory / name
    file.write_bytes(asked.encode())
    return file


def test_queued_dels_are_done_before_anybody_is_served(bench: Bench) -> None:
    file = queued(bench, frame("DEL"))
    bench.attacher.holds["detach"] = asyncio.Event()

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            server = group.create_task(bench.server.run())
            await until(lambda: bench.attacher.calls)
            assert not bench.socket.exists()
            bench.attacher.holds["detach"].set()
            await until(bench.socket.exists)
            assert not file.exists()
            server.cancel()

    run(scenario())
    assert bench.attacher.calls == [("detach", CONTAINER)]


def test_a_del_that_is_queued_later_is_done_too(bench: Bench) -> None:
    """Its plugin had found nobody listening, and was slow to write."""

    async def scenario() -> None:
        file = queued(bench, frame("DEL"))
        await until(lambda: not file.exists())

    served(bench, scenario)
    assert ("detach", CONTAINER) in bench.attacher.calls


def test_a_queued_del_that_fails_is_tried_again(bench: Bench) -> None:
    file = queued(bench, frame("DEL"))
    bench.attacher.detach_outcome = Retry("busy")

    async def scenario() -> None:
        await until(lambda: len(bench.attacher.calls) > 2)
        assert file.exists()
        bench.attacher.detach_outcome = DONE
        await until(lambda: not file.exists())

    served(bench, scenario)


def test_an_add_is_not_undone_by_a_del_from_before_it(bench: Bench) -> None:
    bench.attacher.detach_outcome = Retry("busy")
    file = queued(bench, frame("DEL"))

    async def scenario() -> None:
        assert (await bench.ask(frame("ADD")))[0] == 0
        assert not file.exists()
        bench.attacher.detach_outcome = DONE
        seen = len(bench.attacher.calls)
        queued(bench, of("later", "DEL"), "cluster,later,eth0")
        await until(lambda: ("detach", "later") in bench.attacher.calls[seen:])

    served(bench, scenario)
    assert bench.attacher.attached.keys() == {KEY}


def test_a_replay_that_has_to_wait_sees_that_an_add_has_come(bench: Bench) -> None:
    """It read the file, then waited for its turn behind the ADD that made it void."""
    bench.attacher.holds["check"] = asyncio.Event()

    async def scenario() -> None:
        await bench.ask(frame("ADD"))
        checking = asyncio.create_task(bench.ask(frame("CHECK")))
        await until(lambda: ("check", CONTAINER) in bench.attacher.calls)
        adding = asyncio.create_task(bench.ask(frame("ADD")))
        await bench.ask(frame("STATUS", configuration("1.1.0")))  # the ADD waits for its turn by now
        queued(bench, frame("DEL"))
        queued(bench, of("witness", "DEL"), "cluster,witness,eth0")
        await asyncio.sleep(0.1)  # the queue is looked at once a burst of changes is over
        bench.attacher.holds["check"].set()
        await asyncio.gather(checking, adding)
        await until(lambda: ("detach", "witness") in bench.attacher.calls)

    served(bench, scenario)
    assert bench.attacher.attached.keys() == {KEY}


def test_a_stop_undoes_what_is_under_way(bench: Bench) -> None:
    """Its plugin hears nothing, and tells the runtime to try again."""
    bench.attacher.holds["attach"] = asyncio.Event()

    async def whole() -> bytes:
        async with bench.serving():
            reader, writer = await bench.open(frame("ADD"))
            await bench.attacher.started.wait()
        answer = await reader.read()
        writer.close()
        return answer

    assert run(whole()) == b""
    assert bench.attacher.calls[-1] == ("detach", CONTAINER)
    assert dict(bench.journal.attachments) == {}


@pytest.mark.parametrize("content", [b"", b"garbage", frame("ADD").encode(), frame("DEL").encode()[:-1]])
def test_what_is_no_del_is_dropped_from_the_queue(bench: Bench, content: bytes) -> None:
    bench.queue.directory.mkdir()
    file = bench.queue.directory / "x"
    file.write_bytes(content)
    unfinished = bench.queue.directory / ".y"
    unfinished.write_bytes(frame("DEL").encode())

    async def scenario() -> None:
        assert not file.exists()
        assert not unfinished.exists()

    served(bench, scenario)
    assert bench.attacher.calls == []
