"""How list and watch get over whatever a server or the way to it does; the server here follows a script.

A real one cannot be made to cut a line in two or to send garbage. What a real one does is in tests/cluster.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from bgpd.kube.client import ApiServer
from bgpd.kube.feed import Feed, SourceState, SourceStatus
from bgpd.kube.parse import NODE
from bgpd.kube.watch import ApiSource, Timing
from bgpd.runtime.backoff import Backoff
from tests.contract.test_source_contract import Nodes, running

QUICK = Timing(watch_s=1, slack_s=0.2, list_s=1, steady_s=0.05, backoff=Backoff(0.2, 30))
WITHIN_S = 5.0


class End(Enum):
    WELL = "the answer is complete"
    CUT = "the connection is closed in the middle"
    OPEN = "nothing more comes"


@dataclass(frozen=True)
class Answer:
    pieces: Sequence[bytes] = ()
    end: End = End.WELL
    status: int = 200
    headers: str = ""
    hold_s: float = 0  # before the end


@dataclass
class Scripted:
    """Gives the answers in order, one to each request; then watches stay open and silent."""

    script: list[Answer]
    asked: list[dict[str, str]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(dict(parse_qsl(urlsplit(head.split()[1]).query)))
        self.authorizations += [line[15:] for line in head.splitlines() if line.startswith("authorization: ")]
        answer = self.script.pop(0) if self.script else Answer(end=End.OPEN)
        writer.write(f"HTTP/1.1 {answer.status} X\r\nTransfer-Encoding: chunked\r\n{answer.headers}\r\n".encode())
        for piece in answer.pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)
        await asyncio.sleep(answer.hold_s)
        if answer.end is End.WELL:
            writer.write(b"0\r\n\r\n")
        elif answer.end is End.OPEN:
            await reader.read(1)  # until the client gives up
        return answer.end is End.WELL


def node(name: str, cidr: Any = "10.1.2.0/24", version: int = 7, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version), **metadata}, "spec": {"podCIDR": cidr}}


def listed(*items: Any, version: int = 5, more: str = "") -> Answer:
    content = {"metadata": {"resourceVersion": str(version), "continue": more}, "items": items}
    return Answer([json.dumps(content).encode()])


def line(kind: str, content: Any) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode() + b"\n"


def refused(status: int, message: str = "because", headers: str = "") -> Answer:
    return Answer([json.dumps({"kind": "Status", "message": message}).encode()], status=status, headers=headers)


class Reading:
    """A source at work on a scripted server, and all that it published and waited."""

    def __init__(self, server: Scripted, source: ApiSource[Any], store: Nodes) -> None:
        self.server, self.source, self.store = server, source, store
        self.pauses: list[float] = []
        self.seen: list[set[str]] = []
        store.on_change(lambda: self.seen.append(set(store.newest.value)))

    @property
    def status(self) -> SourceStatus:
        return self.source.status.newest.value

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not holds():  # noqa: ASYNC110 - of many kinds of thing, most without an event
                await asyncio.sleep(0.002)

    async def requests(self, count: int) -> None:
        await self.until(lambda: len(self.server.asked) >= count)

    @property
    def verbs(self) -> list[str]:
        """What was asked, a watch with the version it began at."""
        return [f"watch {query['resourceVersion']}" if "watch" in query else "list" for query in self.server.asked]


@asynccontextmanager
async def reading(
    directory: Path, *script: Answer, timing: Timing = QUICK, user: Any = None
) -> AsyncIterator[Reading]:
    server = Scripted(list(script))
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    store, pauses = Nodes({}), list[float]()

    async def pause(delay_s: float) -> None:
        pauses.append(delay_s)
        await asyncio.sleep(0)

    api = ApiServer(kubeconfig(directory, server.url, user or {}), connect_s=0.5)
    source = ApiSource(api, Feed(NODE, store, "a"), timing, rand=lambda: 0.0, pause=pause)
    result = Reading(server, source, store)
    result.pauses = pauses
    try:
        async with running(source):
            yield result
    finally:
        listener.close()


def kubeconfig(directory: Path, url: str, user: Any) -> Path:
    path = directory / "kubeconfig"
    content = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(content))
    return path


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def test_request_asks_for_one_name_and_bookmarks(tmp_path: Path) -> None:
    """The list is paged and for the newest version, both are for the one Node, the watch asks to be ended."""

    async def scenario() -> None:
        async with reading(tmp_path, listed(node("a"))) as it:
            await it.requests(2)
            assert it.server.asked == [
                {"limit": "500", "fieldSelector": "metadata.name=a"},
                {
                    "watch": "true",
                    "allowWatchBookmarks": "true",
                    "resourceVersion": "5",
                    "timeoutSeconds": "1",
                    "fieldSelector": "metadata.name=a",
                },
            ]

    run(scenario)


def test_watch_that_ends_is_resumed_where_it_was(tmp_path: Path) -> None:
    """The server's own timeout is no trouble: no list, no pause, the newest version, bookmarks included."""
    script = [listed(node("a")), Answer([line("BOOKMARK", node("", version=80))], End.WELL)]

    async def scenario() -> None:
        timing = Timing(watch_s=1, slack_s=0.2, steady_s=0)
        async with reading(tmp_path, *script, timing=timing) as it:
            await it.requests(3)
            assert it.verbs == ["list", "watch 5", "watch 80"]
            assert it.pauses == []
            assert (it.status.state, it.status.reconnects) == (SourceState.SYNCED, 0)

    run(scenario)


def test_events_may_be_cut_anywhere(tmp_path: Path) -> None:
    """An event that comes byte by byte is one event."""
    stream = line("MODIFIED", node("a", "10.9.9.0/24"))
    script = [listed(node("a")), Answer([bytes([byte]) for byte in stream], End.OPEN)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.until(lambda: str(it.store.newest.value.get("a")).find("10.9.9.0") > 0)

    run(scenario)


def test_event_larger_than_any_buffer(tmp_path: Path) -> None:
    """Five megabytes in one line, beyond every limit that aiohttp's own line reader has."""
    stream = line("MODIFIED", node("a", "10.9.9.0/24", annotations={"big": "x" * 5_000_000}))
    script = [listed(node("a")), Answer([stream], End.OPEN)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.until(lambda: str(it.store.newest.value.get("a")).find("10.9.9.0") > 0)

    run(scenario)


def test_list_is_published_when_its_last_page_is_there(tmp_path: Path) -> None:
    """Pages are asked for with the token of the one before; half a list is never seen."""
    script = [listed(node("a"), more="next"), listed(node("b"), version=6)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(3)
            assert it.server.asked[1]["continue"] == "next"
            assert it.seen == [{"a", "b"}]
            assert it.verbs[2] == "watch 6"

    run(scenario)


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(Answer([line("ERROR", {"code": 410, "message": "too old"})], End.OPEN), id="event"),
        pytest.param(refused(410), id="answer"),
    ],
)
def test_gone_leads_to_a_list_and_nothing_is_forgotten_meanwhile(tmp_path: Path, trouble: Answer) -> None:
    """410 lists anew at once; until that list is whole, also across a failing one, what was known stays."""
    script = [listed(node("a")), trouble, refused(500), listed(node("a"), node("b"), version=90)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(5)
            assert it.verbs == ["list", "watch 5", "list", "list", "watch 90"]
            assert it.seen == [{"a"}, {"a", "b"}]
            assert it.pauses == [0.4]  # none after the 410, the second failure's after the 500

    run(scenario)


def test_page_that_expired_begins_the_list_anew(tmp_path: Path) -> None:
    """A continue token lives five minutes; a list that took longer starts from its first page."""
    script = [listed(node("a"), more="next"), refused(410), listed(node("b"))]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(4)
            assert "continue" not in it.server.asked[2]
            assert it.seen == [{"b"}]

    run(scenario)


@pytest.mark.parametrize("garbage", [b"<html>\n", b'{"type": "ADDED", "object": {}}\n', b"\xff\xfe\n"])
def test_garbage_in_a_watch_leads_to_a_list(tmp_path: Path, garbage: bytes) -> None:
    """What came before the garbage counts, what was known stays, a list makes sure of the rest."""
    script = [
        listed(node("a")),
        Answer([line("ADDED", node("b")) + garbage], End.OPEN),
        listed(node("a"), version=90),
    ]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(4)
            assert it.verbs == ["list", "watch 5", "list", "watch 90"]
            assert it.seen == [{"a"}, {"a", "b"}, {"a"}]

    run(scenario)


@pytest.mark.parametrize("end", [End.CUT, End.WELL])
def test_half_an_event_is_asked_for_again(tmp_path: Path, end: End) -> None:
    """A connection lost inside an event resumes after the last whole one, without a list."""
    whole, half = line("ADDED", node("b", version=8)), line("DELETED", node("a", version=9))[:30]
    script = [listed(node("a")), Answer([whole, half], end)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(3)
            assert it.verbs == ["list", "watch 5", "watch 8"]
            assert it.seen == [{"a"}, {"a", "b"}]
            assert it.pauses == [0.2]
            await it.until(lambda: it.status.state is SourceState.SYNCED)
            assert it.status.reconnects == 1

    run(scenario)


def test_silent_watch_is_given_up_in_time(tmp_path: Path) -> None:
    """A server that neither sends nor ends the watch when asked to is left `slack_s` later."""

    async def scenario() -> None:
        async with reading(tmp_path, listed(node("a")), Answer(end=End.OPEN)) as it:
            await it.requests(2)
            started = asyncio.get_running_loop().time()
            await it.requests(3)
            assert 1.0 <= asyncio.get_running_loop().time() - started < 2.5
            assert it.verbs[2] == "watch 5"
            assert "fell silent" in it.status.last_error
            assert it.seen == [{"a"}]

    run(scenario)


def test_pauses_grow_to_a_limit_and_start_over(tmp_path: Path) -> None:
    """Doubling up to the limit while it fails; a watch that held makes the next failure a first one."""
    script = [refused(500)] * 10 + [listed(node("a")), Answer(end=End.CUT, hold_s=0.1)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(13)
            assert it.pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 0.2]
            await it.until(lambda: it.status.state is SourceState.SYNCED)
            assert it.status.reconnects == 11

    run(scenario)


def test_server_that_ends_every_watch_is_not_hammered(tmp_path: Path) -> None:
    """A watch that ends well but at once is followed by growing pauses, and is no trouble otherwise."""
    script = [listed(node("a"))] + [Answer()] * 3

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(5)
            assert it.pauses == [0.2, 0.4, 0.8]
            assert (it.status.state, it.status.reconnects) == (SourceState.SYNCED, 0)

    run(scenario)


def test_server_says_how_long_to_wait(tmp_path: Path) -> None:
    """429 and 503 with Retry-After are obeyed, up to the limit of our own pauses."""
    script = [refused(429, headers="Retry-After: 7\r\n"), refused(503, headers="Retry-After: 999\r\n"), listed()]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(4)
            assert it.pauses == [7, 30]

    run(scenario)


def test_overload_does_not_cost_a_list(tmp_path: Path) -> None:
    """A watch refused with 429 or 500 is tried again where it was: a list would be more load."""
    script = [listed(node("a")), refused(429), refused(500)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(4)
            assert it.verbs == ["list", "watch 5", "watch 5", "watch 5"]

    run(scenario)


def test_unauthorized_reads_the_token_again(tmp_path: Path) -> None:
    """After 401 the token file is read anew and tried at once; when that fails too, pauses begin."""
    token = tmp_path / "token"
    token.write_text("one\n")

    async def scenario() -> None:
        user = {"tokenFile": str(token)}
        script = [refused(401), refused(401), listed(node("a")), Answer(hold_s=0.2)]
        async with reading(tmp_path, *script, user=user) as it:
            await it.requests(4)
            assert it.pauses == [0.4]
            assert it.server.authorizations[0] == "Bearer one"
            assert it.status.last_error.startswith("the API server does not accept the credentials (401)")
            token.write_text("two")
            await it.requests(5)
            assert it.server.authorizations[-1] == "Bearer two"

    run(scenario)


def test_forbidden_names_the_missing_rule(tmp_path: Path) -> None:
    """The status says verb and resource as an RBAC rule has them, for list and for watch."""
    script = [refused(403, "no, you"), listed(node("a")), refused(403, "no, you")]

    async def scenario() -> None:
        errors = list[str]()
        async with reading(tmp_path, *script) as it:
            it.source.status.on_change(lambda: errors.append(it.status.last_error))
            await it.requests(4)
        rule = 'the role lacks apiGroups: [""], resources: ["nodes"], verbs: ["{}"] (403): no, you'
        assert f"not allowed to list nodes; {rule.format('list')}" in errors
        assert f"not allowed to watch nodes; {rule.format('watch')}" in errors

    run(scenario)


def test_proxy_page_is_no_list(tmp_path: Path) -> None:
    """HTML with status 200 is shown, and never taken for an empty cluster."""

    async def scenario() -> None:
        async with reading(tmp_path, Answer([b"<html>login here</html>"]), listed(node("a"))) as it:
            await it.requests(3)
            assert "not a list of Kubernetes objects" in it.status.last_error
            assert "login here" in it.status.last_error
            assert it.seen == [{"a"}]

    run(scenario)


def test_periodic_list_finds_what_a_watch_would_never_say(tmp_path: Path) -> None:
    """After `relist_s` the end of a watch is followed by a list; its result replaces everything."""
    script = [listed(node("a")), Answer(), listed(node("a", "10.9.9.0/24"), version=3)]

    async def scenario() -> None:
        timing = Timing(watch_s=1, slack_s=0.2, steady_s=0, relist_s=0)
        async with reading(tmp_path, *script, timing=timing) as it:
            await it.requests(4)
            assert it.verbs == ["list", "watch 5", "list", "watch 3"]
            assert str(it.store.newest.value["a"].pod_cidrs[0]) == "10.9.9.0/24"

    run(scenario)


def test_snapshot_carries_the_time_of_its_arrival(tmp_path: Path) -> None:
    """`at` is on the monotonic clock, and no later than the publication."""
    script = [listed(node("a")), Answer([line("MODIFIED", node("a", "10.9.9.0/24"))], End.OPEN)]

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with reading(tmp_path, *script) as it:
            await it.until(lambda: len(it.seen) == 2)
            assert begin <= it.store.newest.at <= loop.time()

    run(scenario)
