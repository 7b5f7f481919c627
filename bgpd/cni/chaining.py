"""The plugin's side of the daemon put together: who is attached, who serves the plugin, who puts it into the chain.

Endpoints come out, for whoever enforces policy; `enforced` and `unready` are that one's answers. The plugin is put
into the chain once an ADD can succeed, and stays there when the daemon ends: pods that start meanwhile would have no
policy, so they wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from bgpd.cni.attach import Enforced, PodAttacher
from bgpd.cni.journal import DIRECTORY, Journal, Queue
from bgpd.cni.publish import Places, Publisher, settings
from bgpd.cni.server import CniServer
from bgpd.config.schema import Config
from bgpd.model.configmap import ConfigMap
from bgpd.model.endpoint import Endpoints
from bgpd.observe import log
from bgpd.observe.metrics import RequestDone
from bgpd.observe.samples.cni import Cni
from bgpd.runtime.store import Store

LOOK_S = 0.2  # how often to ask whether an ADD can succeed now, until it can


class Chaining:
    """One node's. OSError when it is made: the state directory refuses."""

    def __init__(
        self,
        config: Config,
        config_maps: Store[Mapping[str, ConfigMap]],
        endpoints: Store[Endpoints],
        enforced: Enforced,
        unready: Callable[[], str],
        on_done: Callable[[RequestDone], object],
    ) -> None:
        paths, cni = config.paths, config.cni
        told = settings(config)
        self._journal, self._queue = Journal(paths.state / DIRECTORY), Queue(told.queue)
        for problem in self._journal.load():
            log.get("cni").warning("an attachment is forgotten", problem=problem)
        self.attacher = PodAttacher(endpoints, self._journal, paths.cni_cache, enforced, unready)
        self._server = CniServer(told.socket, self.attacher, self._journal, self._queue, on_done=on_done)
        self.publisher = Publisher(Places(paths.cni_conf, paths.cni_bin), told, cni.config_map, config_maps)

    def problems(self) -> Iterator[str]:
        """Everything about the plugin that an operator should know; nothing on a healthy node."""
        yield from (f"cni: {problem}" for problem in self.attacher.problems())
        plan = self.publisher.plan
        yield from (
            f"cni: {problem}" for problem in (plan.problem, *plan.warnings, self.publisher.problem) if problem
        )

    def figures(self) -> Cni:
        """What /metrics shows."""
        journal, publisher = self._journal, self.publisher
        return Cni(lambda: len(journal.attachments), self._queue.waiting, lambda: publisher.published)

    async def run(self) -> None:
        """Adopts, serves and publishes, until cancelled."""
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.attacher.run(), name="endpoints")
            group.create_task(self._server.run(), name="cni server")
            group.create_task(self.publisher.run(ready), name="cni conflist")
            group.create_task(self._once_ready(ready), name="cni readiness")

    async def _once_ready(self, ready: asyncio.Event) -> None:
        while self.attacher.status():  # noqa: ASYNC110 - several have a say in it, and none of them tells
            await asyncio.sleep(LOOK_S)
        ready.set()
