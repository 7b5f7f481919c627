"""The composition root: builds every part, says who feeds whom, starts and stops them in order.

    source (API server or manifests) ──► nodes ─┐
    bgpd.yaml (SIGHUP, `bgpd reload`) ► config ─┼─► Routing: plan ─► diff ─► ExaBGP, through its bridge
    `bgpd drain` / `undrain` ────────► drain  ──┘        ▲                       │
                                                         └── sessions, adj-rib-out (read back)

One event loop, one TaskGroup, every task named. An unexpected exception ends the process and systemd starts it
again: BGP sessions belong to the speaker and do not notice. Nothing is decided here beyond the wiring.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from bgpd.bgp import launch
from bgpd.bgp.drain import Drainer
from bgpd.bgp.plan import Drain
from bgpd.bgp.routing import Inputs, Routing
from bgpd.bgp.speaker import Speaker
from bgpd.config.load import Loaded
from bgpd.console import Console
from bgpd.model.bgp import SpeakerState
from bgpd.model.node import Node
from bgpd.observe.metrics import Metrics
from bgpd.runtime.lock import RunLock
from bgpd.runtime.notify import Notifier
from bgpd.runtime.store import Store

STOP_TIMEOUT_S = 10.0


class StartError(Exception):
    """The daemon cannot start here; the text says what to do about it."""


class Daemon:
    """One daemon. `file` is its configuration, `loaded` what was in it when it started."""

    def __init__(self, file: Path, loaded: Loaded) -> None:
        config = loaded.config
        self.node_name = config.node.name
        self.config: Store[Loaded] = Store(loaded)
        self.config.publish(loaded)
        self.nodes: Store[Mapping[str, Node]] = Store({})
        self.drain: Store[Drain] = Store(Drain.NO)
        self.sessions: Store[SpeakerState] = Store(SpeakerState())
        self.metrics = Metrics()
        self.notifier = Notifier()
        self.files = launch.SpeakerFiles(config.paths.run)
        self.header = launch.header(self.files, config.bgp.end_of_rib_timeout_seconds)
        self.speaker = Speaker(self.files.socket, self.sessions)
        self.routing = Routing(
            self.node_name,
            Inputs(self.config, self.nodes, self.drain),
            self.speaker,
            self.header,
            self._report,
        )
        self.source = _source(config, self.node_name, self.nodes)
        self.console = Console(self, file)
        self.stopping = asyncio.Event()
        self._heartbeat = time.monotonic()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. StartError: another daemon is here, or a directory is not usable."""
        config = self.config.newest.value.config
        try:
            config.paths.run.mkdir(parents=True, exist_ok=True)
            config.paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.files.prepare(self.header)
            lock = RunLock(config.paths.run)
            drainer = Drainer(self.drain, config.paths.state / "drain")
        except OSError as error:
            raise StartError(f"{error.filename or config.paths.run}: {error.strerror or error}") from None
        with lock:
            self._catch_signals()
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(task, name=name) for name, task in self._tasks(config, drainer).items()
                ]
                await self.stopping.wait()
                self.notifier.stopping()
                for task in tasks:
                    task.cancel()
