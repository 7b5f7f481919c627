"""An API server that follows a script, and a source at work on it.

A real one cannot be made to cut a line in two or to send garbage. It decides nothing about what is right: the
tests do. What a real one does is in tests/cluster.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bgpd.kube.client import ApiServer
from bgpd.kube.feed import Feed, SourceStatus
from bgpd.kube.parse import NODE, Kind
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
        self.warned: list[str] = []
        store.on_change(lambda: self.seen.append(set(store.newest.value)))
        source.status.on_change(lambda: self.warned.append(self.status.warning))

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
    directory: Path, *script: Answer, timing: Timing = QUICK, user: Any = None, kind: Kind[Any] = NODE
) -> AsyncIterator[Reading]:
    server = Scripted(list(script))
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    store, pauses = Nodes({}), list[float]()

    async def pause(delay_s: float) -> None:
        pauses.append(delay_s)
        await asyncio.sleep(0)

    api = ApiServer(kubeconfig(directory, server.url, user or {}), connect_s=0.5)
    source = ApiSource(api, Feed(kind, store, "a"), timing, rand=lambda: 0.0, pause=pause)
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
