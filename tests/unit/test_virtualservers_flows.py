"""When connections are counted, and what is said of it; what the kernel does with them: tests/fabric."""

from __future__ import annotations

import asyncio

from bgpd.virtualservers.flows import Flows


def test_what_nobody_asks_about_is_no_problem() -> None:
    """A virtual server that counted connections may have gone while the kernel could not be asked."""

    async def run() -> None:
        flows = Flows()
        flows.problem = "connections cannot be looked at"
        looking = asyncio.create_task(flows.run(tuple, lambda: None))
        while flows.problem:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        looking.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
