"""How notices become Events at a real API server: at which pace, and what one that is refused does to the others.

The clock is the test's: half an hour is no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bgpd.kube.client import ApiServer
from bgpd.kube.event import EACH_S, GROUP, REPEAT_S, RESOURCE, body
from bgpd.kube.mirror import RefusedError
from bgpd.kube.recorder import BACKOFF, PAUSE_S, Recorder
from bgpd.kube.watch import explained
from bgpd.model.notice import Notice, Reason, Reference
from bgpd.runtime.store import Store
from tests.contract.test_source_contract import run

from .controlplane import ControlPlane
from .rest import JsonObject

WITHIN_S = 10.0
NAMESPACE = "default"
EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"


def notice(name: str, note: str, namespace: str = NAMESPACE) -> Notice:
    about = Reference("networking.k8s.io/v1", "NetworkPolicy", namespace, name, f"uid of {name}")
    return Notice(about, Reason.POLICY_BLOCKED, "Enforce", note)


@dataclass
class Recording:
    """A recorder at work whose pauses take no time but the clock's; it rests when nothing is due."""

    control_plane: ControlPlane
    notices: Store[Mapping[str, Notice]] = field(default_factory=lambda: Store({}))
    now: float = 1000.0
    pauses: list[float] = field(default_factory=list)

    async def pause(self, delay_s: float) -> None:
        self.pauses.append(delay_s)
        self.now += delay_s
        await asyncio.sleep(0)

    def want(self, *wanted: Notice) -> None:
        """As policy does, whether anything is new or not."""
        self.notices.publish({})
        self.notices.publish({each.regarding.name: each for each in wanted})

    async def told(self, count: int) -> None:
        """Until so many attempts have been made; one more that is not due would show a moment later."""
        await self.until(lambda: len(self.pauses) >= count)
        await asyncio.sleep(0.1)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not holds():  # noqa: ASYNC110 - the recorder tells nobody
                await asyncio.sleep(0.01)

    def events(self, name: str) -> list[JsonObject]:
        found = self.control_plane.admin.get(EVENTS.format(NAMESPACE))["items"]
        return [it for it in found if it["regarding"].get("name") == name]


@asynccontextmanager
async def recording(control_plane: ControlPlane, kubeconfig: Path) -> AsyncIterator[Recording]:
    made = Recording(control_plane)
    server = ApiServer(kubeconfig)
    recorder = Recorder(
        server, made.notices, "worker1", clock=lambda: made.now, rand=lambda: 0.0, pause=made.pause
    )
    task = asyncio.create_task(recorder.run())
    try:
        yield made
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


def scene(control_plane: ControlPlane, act: Callable[[Recording], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with recording(control_plane, control_plane.kubeconfig("admin", "system:masters")) as it:
            await act(it)

    run(scenario)


def test_the_same_is_counted_and_repeated_after_half_an_hour(control_plane: ControlPlane) -> None:
    """Not before, however often it is wanted; and another recorder, as after a restart, counts on at once."""
    same = notice("repeated", "does not fit")

    async def first(it: Recording) -> None:
        it.want(same)
        await it.told(1)
        it.now += REPEAT_S - PAUSE_S - 1
        it.want(same)
        await it.told(1)
        (event,) = it.events("repeated")
        assert "series" not in event
        it.now += 1
        it.want(same)
        await it.told(2)
        assert it.events("repeated")[0]["series"]["count"] == 2

    async def second(it: Recording) -> None:
        it.want(same)
        await it.told(1)
        (event,) = it.events("repeated")
        assert event["series"]["count"] == 3

    scene(control_plane, first)
    scene(control_plane, second)


def test_another_text_is_another_event_a_minute_later(control_plane: ControlPlane) -> None:
    """Of the texts in between only the newest counts."""

    async def act(it: Recording) -> None:
        it.want(notice("changing", "one"))
        await it.told(1)
        for text in ("two", "three"):
            it.want(notice("changing", text))
        it.now += EACH_S - PAUSE_S - 1
        it.want(notice("changing", "four"))
        await it.told(1)
        assert [each["note"] for each in it.events("changing")] == ["one"]
        it.now += 1
        it.want(notice("changing", "four"), notice("beside", "told at once"))
        await it.told(3)
        assert sorted(each["note"] for each in it.events("changing")) == ["four", "one"]
        assert len(it.events("beside")) == 1
        assert it.pauses == [PAUSE_S] * 3

    scene(control_plane, act)


def test_one_that_is_refused_keeps_nobody_waiting(control_plane: ControlPlane) -> None:
    """Its namespace is gone. It is tried again after all others, with growing pauses."""

    async def act(it: Recording) -> None:
        it.want(notice("astray", "refused", namespace="no-such-namespace"), notice("well", "told"))
        await it.told(5)
        assert len(it.events("well")) == 1
        first, second, third = (BACKOFF.delay_s(attempt, 0.0) for attempt in (1, 2, 3))
        assert it.pauses[:5] == [first, PAUSE_S, first, second, third]

    scene(control_plane, act)


def test_a_namespace_that_is_on_its_way_out_lacks_no_right(control_plane: ControlPlane) -> None:
    """Nobody may make anything in it: no role would help, and the text must not say so."""
    admin, leaving = control_plane.admin, "leaving"
    admin.create("/api/v1/namespaces", {"metadata": {"name": leaving}})
    admin.create(
        f"/api/v1/namespaces/{leaving}/configmaps", {"metadata": {"name": "it", "finalizers": ["example.com/stays"]}}
    )
    admin.delete(f"/api/v1/namespaces/{leaving}")

    async def act() -> None:
        late = body(notice("late", "does not fit", leaving), "worker1", 0.0)
        async with ApiServer(control_plane.kubeconfig("admin", "system:masters")) as server:
            with pytest.raises(RefusedError, match="terminated") as refusal:
                await server.create(EVENTS.format(leaving), late, WITHIN_S)
        assert refusal.value.status == 403
        assert "role" not in explained(refusal.value, "create", GROUP, RESOURCE)

    run(act)


def test_a_server_that_is_away_is_waited_for(control_plane: ControlPlane) -> None:
    """With growing pauses; what is wanted then is told."""

    async def act(it: Recording) -> None:
        control_plane.kill_apiserver()
        try:
            it.want(notice("late", "told late"))
            await it.told(3)
            assert it.pauses[:3] == [BACKOFF.delay_s(attempt, 0.0) for attempt in (1, 2, 3)]
        finally:
            control_plane.start_apiserver()  # not in a thread: it would end with the thread
        await it.until(lambda: it.pauses[-1] == PAUSE_S)
        assert len(it.events("late")) == 1

    scene(control_plane, act)
