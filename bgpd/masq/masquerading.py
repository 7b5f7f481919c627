"""The masquerade subsystem put together: the document, one plan, the list in the maps, the rule that asks for it.

Input are stores (configuration, nodes, ConfigMaps), which others fill, or the document's file. Three reconcilers: the
list of each family, and the rule. The rule comes after the lists: a rule in front of an empty list would translate
what is listed, and the flow would stay translated for as long as it lasts. With `map: cilium` there is no rule of
ours.

Nothing is taken back when the daemon ends: maps, program and table do their work without it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from bgpd.config.load import Loaded
from bgpd.config.masquerade import Masquerade
from bgpd.datapath import inherited, pins
from bgpd.datapath.loader import Datapath
from bgpd.masq.map import CILIUM, Held, ListMaps, MasqList, cilium_maps, own_maps, wanted
from bgpd.masq.memory import Memory
from bgpd.masq.plan import FamilyPlan, MasqPlan, Rule, plan, rules_of
from bgpd.masq.source import ConfigMapSource, FileSource
from bgpd.masq.table import KEY, TABLES, Side, Table, side
from bgpd.model.configmap import ConfigMap
from bgpd.model.lpm import LpmKey
from bgpd.model.masq import Reading
from bgpd.model.node import Node
from bgpd.model.outcome import Blocked
from bgpd.netlink.owntables import OwnTables, remove, taking_out
from bgpd.runtime.reconcile import Desired, Reconciler, Round
from bgpd.runtime.store import Revision, Store

VERSIONS = (4, 6)
PROGRAM = "masquerade"
PINS = ("ipmasq_*", "masq*")  # maps and programs, whatever release has pinned them
FIXED = ("enabled", "map", "compat", "ipv6")  # of what the plan looks at; a reload says that these wait for a restart


class Masquerading:
    """Keeps lists and rule as planned. `reading` is the document, as its source last read it."""

    def __init__(
        self,
        node_name: str,
        config: Store[Loaded],
        nodes: Store[Mapping[str, Node]],
        config_maps: Store[Mapping[str, ConfigMap]],
        report: Callable[[Round], None],
    ) -> None:
        self._node_name, self._config, self._nodes = node_name, config, nodes
        self._planned: tuple[tuple[Revision, ...], MasqPlan] | None = None
        start = config.newest.value.config
        self._started_with = start.masquerade
        self._owns = start.masquerade.translates
        self.reading = Store(Reading())
        self._memory = Memory(start.paths.state / "masq-document", self.reading)
        self._document = _document_source(start.masquerade, config_maps, self.reading)
        self._datapath = Datapath("masq", start.paths.bpf, inherited.tell)
        self.lists = {
            version: Reconciler(
                f"masq_ipv{version}",
                partial(self._want_list, version),
                MasqList(partial(self._maps, version)),
                lambda key: key.order,
                report,
                resync_s=self._resync_s,
            )
            for version in VERSIONS
        }
        self._rule = OwnTables(TABLES)
        self.rule: Reconciler[str, Table] = Reconciler(
            "masq_rule", self._want_rule, self._rule, str, report, resync_s=self._resync_s
        )
        for store in self._stores:
            store.on_change(self._inputs_changed)

    @property
    def loops(self) -> Sequence[Reconciler[LpmKey, Held] | Reconciler[str, Table]]:
        return (*self.lists.values(), *([self.rule] if self._owns else []))

    @property
    def _stores(self) -> tuple[Store[Loaded], Store[Mapping[str, Node]], Store[Reading]]:
        return self._config, self._nodes, self.reading

    @property
    def node(self) -> Node | None:
        return self._nodes.newest.value.get(self._node_name)

    @property
    def plan(self) -> MasqPlan:
        """The plan from the newest inputs."""
        revisions = tuple(store.newest.revision for store in self._stores)
        if self._planned is None or self._planned[0] != revisions:
            newest = self._config.newest.value.config.masquerade
            masquerade = newest.model_copy(update={key: getattr(self._started_with, key) for key in FIXED})
            self._planned = revisions, plan(masquerade, self.reading.newest.value.document, self.node)
        return self._planned[1]

    def problems(self) -> Iterator[str]:
        """Everything about masquerading that an operator should know; nothing on a healthy node."""
        reading, planned = self.reading.newest.value, self.plan
        kept = "; the last good list stays in use" if reading.document else ""
        yield from (f"masquerade: {fault}{kept}" for fault in reading.faults)
        if reading.document is None:
            yield "masquerade: there was no good document so far, so list and rule stay as they are"
        if self._memory.problem:
            yield f"masquerade: {self._memory.problem}"
        rules = [family.rule for family in _families(planned)]
        yield from dict.fromkeys(f"masquerade: {rule.reason}" for rule in rules if isinstance(rule, Blocked))
        for loop in self.loops:
            reasons = dict.fromkeys(outcome.reason for outcome in loop.trouble.values())
            yield from (f"masquerade: {loop.name}: {reason}" for reason in (*reasons, *filter(None, [loop.error])))

    async def run(self) -> None:
        """Reads the document and turns all loops, until cancelled."""
        self._memory.recall()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._document.run(), name="masquerade document")
            group.create_task(self._memory.run(), name="masquerade memory")
            for loop in self.loops:
                group.create_task(loop.run(), name=f"reconcile {loop.name}")
            if self._owns:
                group.create_task(self._rule.watch(self.rule.suspect), name="nftables watch")
                group.create_task(self._start_rule(), name="rule after lists")

    async def _start_rule(self) -> None:
        """The rule waits for the lists, for as long as the kernel refuses them; then not for its own next resync."""
        for loop in self.lists.values():
            await loop.wait_until(loop.kick(), math.inf)
        self.rule.kick()

    # --- what the reconcilers ask -------------------------------------------------------------------------

    def _want_list(self, version: int) -> Desired[LpmKey, Held]:
        family = self.plan.of(version)
        if family is None:
            return Desired({}, complete=self.plan.complete)
        newest = self.reading.newest
        # a document that is only remembered may add, and takes nothing away
        complete = self.plan.complete and newest.synced
        return Desired(wanted(family.entries, counted=self._owns), complete=complete, at=newest.at)

    def _want_rule(self) -> Desired[str, Table]:
        blocked = any(isinstance(family.rule, Blocked) for family in _families(self.plan))
        listed = all(loop.ever_settled and not loop.error for loop in self.lists.values())
        if blocked or not self.plan.complete or not listed:  # what stands already may stay
            return Desired({}, complete=False)
        sides = {version: _side(self.plan.of(version)) for version in VERSIONS}
        if not any(sides.values()):
            return Desired({}, complete=True)
        program = self._datapath.installed().programs[PROGRAM]
        table = Table(str(program.pin), program.id, sides[4], sides[6])
        return Desired({KEY: table}, complete=True, at=max(self._nodes.newest.at, self.reading.newest.at))

    def _maps(self, version: int) -> ListMaps:
        if not self._owns:
            return cilium_maps(CILIUM, version)
        return own_maps(self._datapath.installed(), self._datapath.directory, version)

    def _resync_s(self) -> float:
        document = self.reading.newest.value.document
        return document.resync_interval_s if document else 60.0

    def _inputs_changed(self) -> None:
        for loop in self.loops:
            loop.kick()


def clear(directory: Path) -> list[str]:
    """Takes rule, program and maps of ours out of the kernel; what there was. TargetError: it cannot be done.

    For a node where no daemon masquerades any more. Open flows keep their translation, which is conntrack's, while
    anybody translates here: when the last such table goes (kube-proxy's is one), the kernel forgets all of them.
    """
    with taking_out("masquerade") as connection:
        removed = [f"nftables {key}" for key in remove(connection, TABLES)]
        return removed + pins.remove(directory, PINS)


def _document_source(
    masquerade: Masquerade, config_maps: Store[Mapping[str, ConfigMap]], reading: Store[Reading]
) -> FileSource | ConfigMapSource:
    rules, place = rules_of(masquerade), masquerade.config
    if place.config_map is not None:
        return ConfigMapSource(place.config_map, rules, config_maps, reading)
    assert place.path is not None, "the configuration gives one of the two"
    return FileSource(place.path, rules, reading)


def _families(planned: MasqPlan) -> list[FamilyPlan]:
    return [family for family in map(planned.of, VERSIONS) if family is not None]


def _side(family: FamilyPlan | None) -> Side | None:
    if family is None or not isinstance(family.rule, Rule):
        return None
    return side(family.rule.sources, family.rule.pod_cidrs, family.rule.snat_to)
