"""Virtual servers put together: ConfigMaps, Services and monitors in, one table and what may be announced out.

    ConfigMaps ─► parse ─┐                   ┌─► table ─► the kernel ─┐
    Services, slices ────┼─► pools ─► served ┤                        ├─► candidates, which bgp.plan announces
                         └─► monitors ─► ────┘                        ┘

An address becomes a candidate that may be announced once the kernel leads its traffic to pods, never before.

Nothing is taken back when the daemon ends: the table does its work without it, and says to the next daemon which pods
were in service. Those are so until their monitors' timeout, so that a restart moves nobody. `clear` takes it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgpd.config.load import Loaded
from bgpd.config.virtualservers import VirtualServers
from bgpd.model.brief import brief
from bgpd.model.candidate import Candidate
from bgpd.model.configmap import ConfigMap
from bgpd.model.fault import Fault
from bgpd.model.node import Node
from bgpd.model.service import EndpointSlice, Service
from bgpd.model.uplink import Uplinks
from bgpd.model.virtualserver import MARK, Balance, Frontend, Member
from bgpd.netlink.owntables import OwnTables, remove, taking_out
from bgpd.observe import log
from bgpd.runtime.reconcile import Desired, Reconciler, Round
from bgpd.runtime.store import Store
from bgpd.virtualservers.believed import Believed, Known
from bgpd.virtualservers.claim import API_SERVER, Claims, claims
from bgpd.virtualservers.flows import Flows
from bgpd.virtualservers.members import Endpoints, by_service
from bgpd.virtualservers.monitor import Rule
from bgpd.virtualservers.monitoring import Monitoring, Watched
from bgpd.virtualservers.parse import Reading, parse
from bgpd.virtualservers.plan import Pool, Served, candidates, pools, served, slots
from bgpd.virtualservers.table import KEY, TABLES, Table

NAME = "virtual_servers"
LOOK_S = 5.0  # how long the first look at the kernel may take before monitors begin without it


@dataclass(frozen=True, slots=True)
class Objects:
    """What Kubernetes has, by namespace/name. `uplinks` is what the node has found of its gateways."""

    config_maps: Store[Mapping[str, ConfigMap]]
    services: Store[Mapping[str, Service]]
    slices: Store[Mapping[str, EndpointSlice]]
    nodes: Store[Mapping[str, Node]]
    uplinks: Store[Uplinks]


class Serving:
    """Keeps the table as planned. `served` is how each virtual server stands, by the name of its ConfigMap.

    `never_empty`: the source is an API server, which has objects of its own.
    """

    def __init__(
        self,
        node_name: str,
        config: Store[Loaded],
        objects: Objects,
        candidates: Store[tuple[Candidate, ...]],
        report: Callable[[Round], None],
        noted: Callable[[], None],
        never_empty: bool,
    ) -> None:
        self._node_name, self._config, self._objects, self._candidates = node_name, config, objects, candidates
        self._report, self._noted = report, noted
        self._read: dict[str, tuple[ConfigMap, Reading]] = {}
        self._pools: Mapping[str, Pool] = {}
        self._believed, self._awake = Believed(never_empty), asyncio.Event()
        self._due: asyncio.TimerHandle | None = None
        self._log = log.get(NAME)
        self._own = Node(node_name)  # as it was last seen: pods outlive its object
        self._claimed: tuple[Any, Claims] | None = None
        self._begun = self._offering = False
        self._told: Mapping[Frontend, frozenset[Member]] | None = None
        self.served: Mapping[str, Served] = {}
        self.monitoring = Monitoring(self.rule, self._checked)
        self.flows = Flows()
        self._tables = OwnTables(TABLES)
        self.loop: Reconciler[str, Table] = Reconciler(NAME, self._desired, self._tables, str, self._reconciled)
        for store in (config, objects.config_maps, objects.services, objects.slices, objects.nodes, objects.uplinks):
            store.on_change(self._changed)

    @property
    def loops(self) -> Sequence[Reconciler[str, Table]]:
        return (self.loop,)

    @property
    def readings(self) -> Mapping[str, Reading]:
        """What became of each ConfigMap."""
        return {name: reading for name, (_, reading) in self._read.items()}

    @property
    def warnings(self) -> list[Fault]:
        return [warning for reading in self.readings.values() for warning in reading.warnings]

    def problems(self) -> Iterator[str]:
        """Everything about virtual servers that an operator should know; nothing on a healthy node."""
        if self._believed.held:
            yield f"virtual servers: {self._believed.held}"
        faults = [fault for reading in self.readings.values() for fault in reading.faults]
        yield from brief(faults, lambda fault: f"virtual servers: {fault}")
        yield from brief(
            [(name, each.why) for name, each in self.served.items() if each.why],
            lambda lacking: f"virtual server {lacking[0]}: {lacking[1]}",
        )
        reasons = dict.fromkeys(outcome.reason for outcome in self.loop.trouble.values())
        yield from (f"virtual servers: {reason}" for reason in (*reasons, *filter(None, [self.loop.error])))
        yield from (f"virtual servers: {problem}" for problem in self.monitoring.problems())
        if self.flows.problem:
            yield f"virtual servers: {self.flows.problem}"

    def in_kernel(self, frontend: Frontend) -> str:
        """Why its traffic is not led to pods; empty when it is."""
        table, trouble = self.loop.have.get(KEY), self.loop.trouble.get(KEY)
        if table is not None and frontend in (table.served or {}) and not (table.damage and trouble):
            return ""  # what is damaged is being repaired, and leads meanwhile: that is no reason to withdraw
        return (trouble.reason if trouble else self.loop.error) or "the kernel does not lead its traffic to pods yet"

    async def run(self) -> None:
        """Until cancelled. The table stays."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.loop.run(), name=f"reconcile {NAME}")
            group.create_task(self._tables.watch(self.loop.suspect), name="nftables watch")
            group.create_task(self.monitoring.run(), name="monitors")
            group.create_task(self.flows.run(self._counted, self.loop.kick), name="connections")
            group.create_task(self._begin(), name="virtual servers begin")

    async def _begin(self) -> None:
        """Monitors begin once it is known who was in service before, and once the source is to be believed."""
        for store in (*self._sources, self._objects.nodes):
            while not store.newest.synced:
                await store.newer_than(store.newest.revision)
        await self.loop.wait_until(self.loop.kick(), LOOK_S)
        while self._holds(served=bool(self._led())):
            await self._awake.wait()
        self._begun = True
        self._changed()
        await self.loop.wait_until(self.loop.kick(), LOOK_S)
        self._offering = True  # not before: whoever is announced from an earlier life would be withdrawn
        self._publish()

    # --- what follows from what -------------------------------------------------------------------------------

    @property
    def _sources(self) -> Sequence[Store[Any]]:
        """What says who is served."""
        return self._objects.config_maps, self._objects.services, self._objects.slices

    @property
    def _settings(self) -> VirtualServers:
        return self._config.newest.value.config.virtual_servers

    def rule(self) -> Rule:
        """How many results in a row count, now."""
        return Rule(self._settings.rise, self._settings.fall)

    def _changed(self) -> None:
        """Objects or configuration are others now, or those of before have counted on for long enough."""
        if not self._begun:
            self._awake.set()
            return
        self._holds()
        maps, services, slices = self._believed.known
        known = self._read
        self._read = {
            name: known[name] if name in known and known[name][0] == each else (each, parse(each))
            for name, each in sorted(maps.items())
        }
        servers = [reading.server for _, reading in self._read.values() if reading.server is not None]
        endpoints = Endpoints(services, by_service(slices.values()))
        self._pools = pools(servers, endpoints, self._claims(endpoints))
        watched = {
            Watched(pool.server.namespace, member, monitor)
            for pool in self._pools.values()
            for member in pool.members
            for monitor in pool.server.monitors
        }
        self.monitoring.follow(watched, self._members_in_kernel())
        self._checked()

    def _claims(self, endpoints: Endpoints) -> Claims:
        """Made anew only when something is another: slices change often, and Services may be many."""
        bgp, nodes = self._config.newest.value.config.bgp, self._objects.nodes.newest.value
        self._own = nodes.get(self._node_name, self._own)
        api_server = tuple(endpoints.slices.get(API_SERVER, ()))
        inputs = bgp, nodes, endpoints.services, api_server, self._objects.uplinks.newest.value
        if self._claimed is None or self._claimed[0] != inputs:
            known = {**nodes, self._node_name: self._own}.values()
            made = claims(self._node_name, bgp, known, endpoints.services.values(), *inputs[3:])
            self._claimed = inputs, made
        return self._claimed[1]

    def _holds(self, *, served: bool = False) -> bool:
        """Whether something counts that the source does not show any more."""
        self._awake.clear()
        objects, now, before = self._objects, asyncio.get_running_loop().time(), self._believed.held
        newest = Known(objects.config_maps.newest.value, objects.services.newest.value, objects.slices.newest.value)
        self._believed.take(newest, objects.nodes.newest.value, now, served=served)
        if self._due is not None:
            self._due.cancel()
        due, held = self._believed.due, self._believed.held
        self._due = None if due is None else asyncio.get_running_loop().call_at(due, self._changed)
        if held and held != before:
            self._log.warning("the source became empty", held=held)
        return bool(held)

    def _checked(self) -> None:
        """A monitor has found something else."""
        settings = self._settings
        self.served = {name: served(pool, self.monitoring.of, settings) for name, pool in self._pools.items()}
        self.loop.kick()
        self._publish()
        self._noted()

    def _reconciled(self, round: Round) -> None:
        """Who gets how much changes with every look at connections: that is told only of who gets any."""
        led = self._led()
        if led != self._told or round.failed or round.drift or round.error:
            self._told = led
            self._report(round)
        self.flows.settle(led)
        self._publish()

    def _publish(self) -> None:
        if not self._offering:
            return
        self._candidates.publish(candidates(self.served.values(), self.in_kernel, self._settings))

    def _desired(self) -> Desired[str, Table]:
        if not self._begun:
            return Desired({}, complete=False)
        led = {
            each.pool.server.frontend: slots(each, self.flows.open_to(each.pool.server.frontend))
            for each in self.served.values()
            if each.in_service
        }
        return Desired({KEY: Table(led)}, complete=True, at=max(store.newest.at for store in self._sources))

    def _counted(self) -> Collection[Frontend]:
        """Whose connections count for who gets the next."""
        return [
            each.pool.server.frontend
            for each in self.served.values()
            if len(each.in_service) > 1 and each.pool.server.balance is Balance.LEAST_CONNECTIONS
        ]

    def _led(self) -> Mapping[Frontend, frozenset[Member]]:
        """The members that the kernel leads each frontend's traffic to."""
        table = self.loop.have.get(KEY)
        return {frontend: frozenset(dealt) for frontend, dealt in ((table.served if table else None) or {}).items()}

    def _members_in_kernel(self) -> frozenset[Member]:
        return frozenset(member for members in self._led().values() for member in members)


def clear(state: Path) -> list[str]:
    """Takes the table out of the kernel, and the mark in `state` away; what there was. TargetError: it cannot be.

    Open connections go on: conntrack has their translation, unless nobody else translates here.
    """
    with taking_out("virtual servers") as connection:
        removed = [f"nftables {key}" for key in remove(connection, TABLES)]
    (state / MARK).unlink(missing_ok=True)
    return removed
