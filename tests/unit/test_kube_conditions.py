"""When conditions are written: each node in its turn, and again in a new one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from bgpd.kube.ciliumbgp import CLUSTER_CONFIG
from bgpd.kube.client import ApiServer
from bgpd.kube.conditions import ConditionWriter, Wanted
from bgpd.model.custom import Condition, Target
from bgpd.runtime.store import Store
from tests.unit.scripted_api import WITHIN_S, kubeconfig

ACCEPTED = (Condition("bgpd.io/Accepted", True, "Accepted", "", 1),)
FIRST, SECOND = Target(CLUSTER_CONFIG.name, "first"), Target(CLUSTER_CONFIG.name, "second")


def test_what_another_node_wrote_and_somebody_took_back_has_a_turn_of_its_own_again(tmp_path: Path) -> None:
    """Or a thousand nodes would write at once, whose old turns are over."""
    chances, written, now_s = iter((0.5, 0.5, 0.0)), asyncio.Queue[str](), 0.0

    async def serve(request: web.Request) -> web.Response:
        written.put_nowait(request.path)
        return web.json_response({})

    async def scenario() -> str:
        nonlocal now_s
        app = web.Application()
        app.router.add_patch("/{path:.*}", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server = ApiServer(kubeconfig(tmp_path, f"http://127.0.0.1:{runner.addresses[0][1]}", {}))
        wanted: Store[Wanted] = Store({})
        writer = ConditionWriter(server, (CLUSTER_CONFIG,), wanted, clock=lambda: now_s, rand=lambda: next(chances))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(writer.run())
            for newest in ({FIRST: ACCEPTED}, {}, {FIRST: ACCEPTED, SECOND: ACCEPTED}):
                wanted.publish(newest)
                for _ in range(10):  # it has its say to each
                    await asyncio.sleep(0)
                now_s += 3600.0 if newest == {FIRST: ACCEPTED} else 0.0
            async with asyncio.timeout(WITHIN_S):
                first = await written.get()
            running.cancel()
        await runner.cleanup()
        return first

    assert asyncio.run(scenario()).endswith("/second/status")
