"""The composition root: builds every part, says who feeds whom, starts and stops them in order.

    source (API server or manifests) ──► nodes ─┐
    bgpd.yaml (SIGHUP, `bgpd reload`) ► config ─┼─► Routing: plan ─► diff ─► ExaBGP, through its bridge
    `bgpd drain` / `undrain` ────────► drain  ──┤    │   ▲                       │
    kernel (routers, default routes) ► uplinks ─┘    │   └── sessions, adj-rib-out (read back)
                                                     └─► Bfd ─► BIRD; what falls there ends its session

The same sources feed the parts that not every node has, each with reconcilers of its own (see `parts`): masquerade
and policy (maps, nf_tables, links of eBPF programs), the CNI plugin's server, node routes. With `peersFrom: cilium`
`config` is derived from the file's and from Cilium's objects.

One event loop, one TaskGroup, every task named. An unexpected exception ends the process and systemd starts it
again: BGP sessions belong to the speaker and do not notice. What the log tells of it all is `chronicle`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import time
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bgpd import __version__, gauges
from bgpd.bgp import launch
from bgpd.bgp.bfd import Bfd
from bgpd.bgp.bird import BirdFiles
from bgpd.bgp.discovery import Discovery
from bgpd.bgp.drain import Drainer
from bgpd.bgp.health import Health, Prober
from bgpd.bgp.places import by_address
from bgpd.bgp.plan import Drain
from bgpd.bgp.routing import Inputs, Routing
from bgpd.bgp.speaker import Speaker
from bgpd.bgp.stop import StopError, withdraw_everything
from bgpd.chronicle import Chronicle
from bgpd.config.bgp import SpeakerMode
from bgpd.config.load import Loaded
from bgpd.config.restart import Pending
from bgpd.config.schema import Config
from bgpd.console import Console
from bgpd.kube.feed import Feed
from bgpd.kube.sources import Source, api_server, api_source, condition_writer, manifest_source, recorder, several
from bgpd.model.bgp import SpeakerState
from bgpd.model.brief import brief
from bgpd.model.fault import FaultsError
from bgpd.model.node import Node
from bgpd.model.uplink import NOT_READ
from bgpd.observe import log
from bgpd.observe.control import ControlServer
from bgpd.observe.health import Readiness
from bgpd.observe.http import HttpServer
from bgpd.observe.metrics import Metrics
from bgpd.parts import Builder, Cluster, cilium_bgp_stores, conditioned_kinds, derived, feeds
from bgpd.runtime.collector import look_seldom
from bgpd.runtime.lock import RunLock
from bgpd.runtime.notify import Notifier, watchdog
from bgpd.runtime.process import Child
from bgpd.runtime.reconcile import Round
from bgpd.runtime.store import Store

if TYPE_CHECKING:
    from bgpd.kube.client import ApiServer
    from bgpd.masq.masquerading import Masquerading

Tasks: TypeAlias = dict[str, Coroutine[Any, Any, Any]]

HEARTBEAT_S = 1.0
PUBLISH_S = 0.1  # a burst of changes is published once, and when whoever waits for it has been answered
STOP_TIMEOUT_S = 10.0


class StartError(Exception):
    """The daemon cannot run here; the text says what is in the way and what to do about it."""


class Daemon:
    """One daemon. `file` is its configuration, `loaded` what was in it when it started."""

    def __init__(self, file: Path, loaded: Loaded) -> None:
        self.file, self.loaded = file, loaded
        self.log = log.get("daemon")
        self.notifier = Notifier()
        self.metrics = Metrics()
        self.stopping = asyncio.Event()
        self.readiness = Readiness(("starting",))
        self.heartbeat = time.monotonic()
        self.changed = asyncio.Event()  # something that /metrics shows may differ from what was last published
        self.changed.set()
        self._log_round = log.RoundLog(log.get("reconcile"))
        self._tell = Chronicle()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. StartError: something is in the way."""
        config = self.loaded.config
        log.configure(config.log.level.value, config.log.format.value)
        try:
            with contextlib.ExitStack() as stack:
                await self._serve(config, stack)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            if error.errno == errno.ENOSPC and not place:  # a write fails without a name
                place = f"{config.paths.run} or {config.paths.state}: "
            raise StartError(f"{place}{error.strerror or error}") from None
        except FaultsError as error:
            raise StartError(str(error)) from None

    async def _serve(self, config: Config, stack: contextlib.ExitStack) -> None:
        """Builds, wires, runs, and takes down in the reverse order."""
        look_seldom()
        config.paths.run.mkdir(parents=True, exist_ok=True)
        config.paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        stack.callback(RunLock(config.paths.run).release)
        files = launch.SpeakerFiles(config.paths.run)
        console, tasks = await self._build(config, files)
        listen = str(config.metrics.listen) if config.metrics.listen else ""
        http = HttpServer(listen, self.metrics.registry, self._heartbeat_age_s, lambda: self.readiness)
        http.start()
        stack.callback(http.stop)
        control = ControlServer(config.paths.run / "status.sock", console.handlers)
        control.open()
        child = None
        if config.bgp.speaker is SpeakerMode.MANAGED:
            child = Child("speaker", launch.command(files), launch.environment(files))
        async with asyncio.TaskGroup() as group:
            supervisor = group.create_task(child.run(), name="speaker process") if child else None
            running = [
                group.create_task(task, name=name) for name, task in (tasks | {"console": control.run()}).items()
            ]
            with self._signals(console):
                await self._started(console)
                await self.stopping.wait()
            self.notifier.stopping()
            for task in running:
                task.cancel()
            if child is not None and supervisor is not None:
                await self._stop_speaker(files, child)
                supervisor.cancel()
        self.log.info("stopped", speaker="stopped too" if child else "keeps its sessions and routes")

    async def _build(self, config: Config, files: launch.SpeakerFiles) -> tuple[Console, Tasks]:
        """Every part, and who feeds whom; the tasks are not started yet."""
        cluster = Cluster(cilium_bgp=cilium_bgp_stores(config))
        file, nodes = Store(self.loaded), Store[Mapping[str, Node]]({})
        file.publish(self.loaded)
        derivation = derived(config, file, nodes, cluster.cilium_bgp)
        in_effect = derivation.effective if derivation else file
        found = Store(NOT_READ), tuple(cluster.candidates(config))
        inputs = Inputs(in_effect, nodes, Store(Drain.NO), Store(Health()), *found)
        drainer = Drainer(inputs.drain, config.paths.state / "drain")
        header = launch.header(files, config.bgp.end_of_rib_timeout_seconds)
        files.prepare(header)
        speaker = Speaker(files.socket, Store(SpeakerState()))
        routing = Routing(config.node.name, inputs, speaker, header, self._report)
        bfd = Bfd(BirdFiles(config.paths.run), routing, self._report)
        server = await _api_server(config)
        source = _source(config, server, feeds(config, inputs.nodes, cluster))
        builder = Builder(config, inputs, cluster, self.metrics, self._report, self._note_change, derivation)
        parts = builder.build()
        console = Console(self.file, file, inputs, routing, bfd, source, drainer, parts)
        for loop in (*gauges.loops(console), bfd.loop):
            self.metrics.begin(loop.name)
        console.on_reload = lambda pending: self._reloaded(console, pending)
        stores = inputs.config, inputs.nodes, inputs.drain, inputs.health, source.status, speaker.state, bfd.state
        for store in stores:
            store.on_change(self._note_change)
        self._tell_changes(inputs, routing, bfd, source, parts.masquerading)
        tasks = {type(part).__name__.lower(): part.run() for part in parts.running}
        if console.policy is not None:
            tasks["policy events"] = console.policy.events.run()
        if server is not None and parts.policing is not None:
            tasks["recorder"] = recorder(server, parts.policing.notices, config.node.name)
        if server is not None and derivation is not None:
            tasks["conditions"] = condition_writer(server, conditioned_kinds(), derivation.unwritten)
        return console, tasks | {
            "source": source.run(),
            "speaker": speaker.run(),
            "routing": routing.run(),
            "bfd": bfd.run(),
            "health": Prober(config.bgp.health, inputs.health).run(),
            "discovery": Discovery(inputs.config, inputs.uplinks).run(),
            "heartbeat": self._beat(console),
            "watchdog": watchdog(self.notifier, lambda: True),
        }

    # --- life ---------------------------------------------------------------------------------------------

    async def _started(self, console: Console) -> None:
        """READY means that the daemon serves: what a node waits for is /readyz, which also asks for the routes."""
        config = self.loaded.config
        self.log.info(
            "started",
            version=__version__,
            node=config.node.name,
            config=str(self.file),
            source=console.source_kind,
            peers=[peer.name for peer in config.bgp.peers],
            drain=console.drain.value,
        )
        for warning in brief(self.loaded.warnings):
            self.log.warning("configuration", warning=warning)
        self.notifier.ready("starting")

    @contextlib.contextmanager
    def _signals(self, console: Console) -> Iterator[None]:
        """SIGTERM and SIGINT stop, SIGHUP reloads, while this lasts."""
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self.stopping.set,
            signal.SIGINT: self.stopping.set,
            signal.SIGHUP: lambda: self._reload(console),
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _reload(self, console: Console) -> None:
        self.notifier.reloading()
        with contextlib.suppress(FaultsError):  # it is in the log, in status and in a metric
            console.reload()
        self.notifier.ready()

    async def _stop_speaker(self, files: launch.SpeakerFiles, child: Child) -> None:
        """The speaker is ours: leave the fabric as an intended stop does, then end it."""
        try:
            await asyncio.to_thread(
                withdraw_everything, files.socket, STOP_TIMEOUT_S, lambda text: self.log.info("speaker", step=text)
            )
        except StopError as error:
            self.log.warning("speaker", error=str(error))
        await child.stop(STOP_TIMEOUT_S)

    # --- sight --------------------------------------------------------------------------------------------

    def _report(self, round: Round) -> None:
        self._log_round(round)
        self.metrics.observe_round(round)
        self.changed.set()

    def _tell_changes(
        self, inputs: Inputs, routing: Routing, bfd: Bfd, source: Source, masquerading: Masquerading | None
    ) -> None:
        tell, loop = self._tell, asyncio.get_running_loop()
        # told once the routes that it brings have been sent off: what was woken before has its turn first
        inputs.nodes.on_change(lambda: loop.call_soon(lambda: tell.node(routing.node_name, routing.node)))
        inputs.drain.on_change(lambda: tell.drain(inputs.drain.newest.value))
        inputs.health.on_change(lambda: tell.health(inputs.health.newest.value))
        sessions = routing.speaker.state
        sessions.on_change(lambda: tell.sessions(by_address(routing.plan.places), sessions.newest.value))
        source.status.on_change(lambda: tell.source(source.status.newest.value))
        bfd.state.on_change(lambda: tell.bfd(bfd.state.newest.value))
        if masquerading is not None:
            from bgpd.masq.sight import state_of  # a daemon that does not masquerade starts without it

            reading = masquerading.reading
            reading.on_change(lambda: tell.document(state_of(reading.newest), reading.newest.value))

    def _reloaded(self, console: Console, pending: Pending) -> None:
        self.changed.set()
        self._tell.reload(console.config_state, pending)

    def _note_change(self) -> None:
        self.changed.set()

    def _heartbeat_age_s(self) -> float:
        return time.monotonic() - self.heartbeat

    async def _beat(self, console: Console) -> None:
        """Shows that the loop turns, says what time brings, and publishes what other threads may read."""
        shown = ""
        while True:
            self.heartbeat = time.monotonic()
            self._tell.flaps()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self.changed.wait()
            if self.changed.is_set():
                self.changed.clear()
                self.readiness = gauges.ready(console)
                refused = "configuration refused, on the last good one; " if console.config_state.faults else ""
                status = refused + self.readiness.text.splitlines()[0]
                if status != shown:
                    shown = status
                    self.notifier.status(status)
                await asyncio.sleep(PUBLISH_S)
                self.metrics.publish(gauges.snapshot(console))


async def _api_server(config: Config) -> ApiServer | None:
    """None: the source is a directory. FaultsError: unusable credentials."""
    if config.source.kubernetes is None:
        return None
    server = api_server(config.source.kubernetes.kubeconfig)
    await server.check()
    return server


def _source(config: Config, server: ApiServer | None, feeds: Iterator[Feed[Any]]) -> Source:
    """The one source the configuration names, feeding our own objects."""
    if server is not None:
        return several([api_source(server, feed) for feed in feeds])
    assert config.source.manifests is not None
    return manifest_source(config.source.manifests, list(feeds))
