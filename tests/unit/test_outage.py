"""Minutes without an API server, in virtual time: the pauses between attempts are what makes time pass.

Connections are real and refused by a port that nobody listens on, so that an attempt costs no time of its own.
The same with a whole daemon, and in real time, is in tests/cluster/test_daemon_faults.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bgpd.kube.client import ApiServer
from bgpd.kube.feed import Feed, SourceState
from bgpd.kube.parse import NODE
from bgpd.kube.watch import ApiSource, Timing
from tests.contract.test_source_contract import Nodes, running
from tests.unit.scripted_api import Answer, End, Scripted, kubeconfig, line, listed, node

WITHIN_S = 5.0  # of real time


class Outage:
    """A server that dies in its first watch, and that is there again after `lasts_s`, and then follows `script`."""

    def __init__(self, lasts_s: float, *script: Answer) -> None:
        self._lasts_s = lasts_s
        self._server = Scripted([listed(node("a")), Answer(end=End.CUT), *script])
        self._listener: asyncio.Server | None = None
        self.port = 0
        self.now = 0.0
        self.pauses: list[float] = []

    async def listen(self) -> None:
        self._listener = await asyncio.start_server(self._server.serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        assert self._listener is not None
        self._listener.close()

    async def pause(self, delay_s: float) -> None:
        """Lets time pass. The first call, after the watch was cut, begins the outage."""
        self.pauses.append(delay_s)
        if len(self.pauses) == 1:
            self.close()
        before, self.now = self.now, self.now + delay_s
        if before < self._lasts_s <= self.now:
            await self.listen()


CHANGED = listed(node("a", "10.9.9.0/24"), version=900)
GONE = Answer([line("ERROR", {"code": 410, "message": "too old resource version"})])


@pytest.mark.parametrize(
    ("lasts_s", "script", "attempts"),
    [
        pytest.param(600.0, [CHANGED], range(20, 40), id="ten minutes: the state is too old not to list"),
        pytest.param(240.0, [GONE, CHANGED], range(10, 20), id="four minutes: 410, and a list without a pause"),
    ],
)
def test_outage(tmp_path: Path, lasts_s: float, script: list[Answer], attempts: range) -> None:
    """What is known stays, the attempts are few, and the first one after the outage brings the new state."""

    async def scenario() -> None:
        outage, store = Outage(lasts_s, *script), Nodes({})
        await outage.listen()
        api = ApiServer(kubeconfig(tmp_path, f"http://127.0.0.1:{outage.port}", {}))
        timing = Timing()
        source = ApiSource(
            api, Feed(NODE, store, "a"), timing, clock=lambda: outage.now, rand=lambda: 0.0, pause=outage.pause
        )
        published = list[tuple[float, str]]()
        states = list[tuple[SourceState, float]]()
        store.on_change(lambda: published.append((outage.now, str(store.newest.value["a"].pod_cidrs[0]))))
        source.status.on_change(lambda: states.append((source.status.newest.value.state, outage.now)))
        async with running(source), asyncio.timeout(WITHIN_S):
            while len(published) < 2:
                await store.newer_than(store.newest.revision)
        outage.close()
        back_at = sum(outage.pauses)
        assert published == [(0.0, "10.1.2.0/24"), (back_at, "10.9.9.0/24")]
        assert lasts_s <= back_at < lasts_s + timing.backoff.limit_s
        assert len(outage.pauses) in attempts
        assert {state for state, at in states if 0 < at < back_at} == {SourceState.RETRYING}

    asyncio.run(scenario())
