"""NetworkPolicy put together: objects of the cluster and endpoints of the node, one compiler, the maps, the tables.

Input are stores, which others fill. Three reconcilers: the maps that say what is allowed (`map`), the pods behind
ports of bridges, and the tables, whose rules ask the programs (`table`). The tables come last: what a program finds
in the maps decides, and without a table nobody asks it. Beside them those of `macvlans` and of `ipvlans`, whose pods
the tables do not see. Whoever waits for one pod waits for what polices that pod, and for nobody else's.

Programs that another release has left, and their maps, are what counts until all of ours has been written (see
`_note_written`).

A pod of this node is policed by its addresses, wherever they become known first: from its interface when it is
attached, or from Kubernetes, as with pods that ran before. What a pod may send as is known of interfaces only.

Nothing is taken back when the daemon ends: maps, programs and tables do their work without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bgpd.config.load import Loaded
from bgpd.datapath import inherited, layout
from bgpd.datapath.loader import Datapath
from bgpd.model.attachment import AttachmentKey, PodName
from bgpd.model.endpoint import Endpoint, Endpoints, IpvlanLink, IpvlanMode, MacvlanLink, VethLink
from bgpd.model.notice import Notice
from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.model.policy import Snapshot
from bgpd.model.prefix import Address
from bgpd.netlink.owntables import OwnTables
from bgpd.policy import bridges, ipvlans, parents
from bgpd.policy import map as maps
from bgpd.policy.entries import Contents
from bgpd.policy.fit import CAPACITY, Fitting, Misfit
from bgpd.policy.ipvlans import Ipvlans
from bgpd.policy.macvlans import Macvlans
from bgpd.policy.map import PodLinks, PolicyMaps, Stages
from bgpd.policy.ondemand import LOOK_S, Needs, OnDemand
from bgpd.policy.report import notices
from bgpd.policy.table import TABLES, Source, Table, bridge_table, inet_table, key
from bgpd.policy.view import Objects, View
from bgpd.runtime.reconcile import Desired, Reconciler, Round
from bgpd.runtime.store import Revision, Store

LOOK_BACK_S = 5.0  # how long what somebody else has done to the maps may last: nobody is told of it
_ASK_S = 0.2
_KNOWN_SHARE = 0.8  # of an ADD's deadline
AGAIN_S = 10.0  # how long a policy that did not fit waits for room that has come, if it has not been changed itself
AGAIN_ANYHOW_S = 600.0  # for one that needs less room because of pods elsewhere
AGAIN_SHARE = 1 / 200  # finding out takes at most this share of the time: one in so many pods waits for it


class Policing:
    """Keeps maps and tables as planned. `endpoints` are the interfaces that pods of this node were attached by."""

    def __init__(
        self,
        node_name: str,
        config: Store[Loaded],
        objects: Objects,
        endpoints: Store[Endpoints],
        report: Callable[[Round], None],
    ) -> None:
        self._config, self.objects, self.endpoints = config, objects, endpoints
        self._view = View(node_name, objects)
        self._fitting = Fitting(CAPACITY)
        self._compiled: tuple[tuple[Revision, ...], tuple[Contents, ...]] | None = None
        self._tried: Revision | None = None  # of the configuration, when it was last tried whether all fits
        self._tried_at = self._again_s = 0.0
        self.notices: Store[Mapping[str, Notice]] = Store({})
        """What the cluster is to be told, by policy."""
        self.snapshot = Snapshot(pods={}, namespaces={}, policies={}, local={})
        self.datapath = Datapath("policy", config.newest.value.config.paths.bpf, inherited.tell)
        self._unjudged: tuple[int, ...] = ()  # versions that bridges hand to nobody
        self._own_tables = OwnTables(TABLES)
        self._planned: tuple[tuple[Revision, tuple[int, ...]], Mapping[str, Table]] | None = None
        self.maps: Reconciler[str, Stages] = Reconciler(
            "policy_maps", self._want_maps, OnDemand(self._open_maps), str, report, resync_s=lambda: LOOK_BACK_S
        )
        self.links: Reconciler[int, tuple[bytes, bytes]] = Reconciler(
            "policy_links", self._want_links, OnDemand(self._open_links), int, report, resync_s=lambda: LOOK_BACK_S
        )
        self.macvlans = Macvlans(config, endpoints, self.datapath, report, self._knows_macvlans)
        self.ipvlans = Ipvlans(config, endpoints, self.datapath, report, self._knows_ipvlans)
        self.tables: Reconciler[str, Table] = Reconciler(
            "policy_tables", self._want_tables, self._own_tables, str, report
        )
        self._written = {loop: asyncio.Event() for loop in self._writing}
        for store in (*self._stores, config):
            store.on_change(self._inputs_changed)

    @property
    def loops(self) -> Sequence[Reconciler[Any, Any]]:
        return (self.maps, self.links, *self.macvlans.loops, *self.ipvlans.loops, self.tables)

    @property
    def _writing(self) -> tuple[Reconciler[Any, Any], ...]:
        """The loops of what programs read."""
        return self.maps, self.links, self.macvlans.stations, self.ipvlans.neighbors

    @property
    def _stores(self) -> tuple[Store[Any], ...]:
        objects = self.objects
        return self.endpoints, objects.nodes, objects.pods, objects.namespaces, objects.policies

    @property
    def contents(self) -> Contents:
        """What the maps are to hold, as last worked out."""
        return self._compiled[1][-1] if self._compiled else Contents()

    def owner(self, address: bytes) -> str | None:
        """The pod that has the address, as struct policy_address has it; None: none has."""
        return self._fitting.owner(address)

    @property
    def misfits(self) -> tuple[Misfit, ...]:
        """The policies that are not in force on some pods of this node, for want of room."""
        return self._fitting.misfits

    def unready(self) -> str:
        """Why the policy of no pod can be put into the kernel at present; empty: it can, and has been once.

        What single kinds of links take besides is in nobody else's way: see `blocked`.
        """
        loops = (self.maps, self.links, self.tables)
        return (
            self._unread
            or next((f"{loop.name}: {reason}" for loop in loops if (reason := loop.reason())), "")
            or next((f"{loop.name} has not been settled yet" for loop in loops if not loop.ever_settled), "")
        )

    @property
    def blocked(self) -> dict[AttachmentKey, str]:
        """The endpoints whose policy cannot be put into the kernel at present, and why."""
        why = self._obstacle if any(loop.reason() for loop in self.loops) else self.ipvlans.overflow
        return {key: reason for key, each in self.endpoints.newest.value.items() if (reason := why(each))}

    @property
    def _unread(self) -> str:
        kinds = " and ".join(self.objects.unread)
        return f"bgpd has not read every {kinds} of the cluster yet; `bgpd status` says why" if kinds else ""

    async def enforced(self, endpoint: Endpoint) -> Outcome:
        """Done: the policy of the endpoint, which was published before, is in the kernel. Cancel it to give up."""
        if reason := unenforceable(endpoint):
            return Blocked(reason)
        if not await self._becomes_known(endpoint):
            return Retry(self._unread or self._unshown(endpoint.pod))
        for loop, keys in self._needs(endpoint):
            follows_inputs_alone = loop in (self.maps, self.links)  # and these have kicked it
            revision = loop.kicked if follows_inputs_alone else loop.kick()
            while not (await self._is_written(loop) and await loop.wait_until(revision, _ASK_S, keys)):
                if reason := self._hindrance(endpoint):
                    return Retry(reason)
            if reason := loop.reason(keys):
                return Retry(f"{loop.name}: {reason}")
        return DONE

    def _needs(self, endpoint: Endpoint) -> Needs:
        """What polices it, each after what it takes: of each loop the objects without which it is not."""
        match endpoint.link:
            case MacvlanLink() as link:
                own = self.macvlans.needs(endpoint, link)
            case IpvlanLink() as link:
                through_tables = ((self.links, None),) if link.mode is not IpvlanMode.L2 else ()  # which wait for it
                own = (*through_tables, *self.ipvlans.needs(endpoint, link))
            case _:
                own = ((self.links, None),)
        return (self.maps, None), *own, (self.tables, None)

    def _hindrance(self, endpoint: Endpoint) -> str:
        """Why it takes more than a moment; empty: it does not."""
        if self.endpoints.newest.value.get(endpoint.key) != endpoint:
            return f"{endpoint} has gone, or has another link, since it was to be attached"
        return self._unread or self._obstacle(endpoint)

    def _obstacle(self, endpoint: Endpoint) -> str:
        """What its own policy lacks in the kernel, and why; empty: nothing that is known."""
        found = ((loop.name, loop.reason(keys)) for loop, keys in self._needs(endpoint))
        reason = next((f"{name}: {reason}" for name, reason in found if reason), "")
        return reason or self.ipvlans.overflow(endpoint)

    def problems(self) -> Iterator[str]:
        """Everything about NetworkPolicy that an operator should know; nothing on a healthy node."""
        if unread := self.objects.unread:
            yield f"policy: not every {' and '.join(unread)} has been read; the rules in the kernel stay as they are"
        elif self._is_emptied:
            yield "policy: there is no Pod; is the source right? The rules in the kernel stay as they are"
        strangers = sorted({pod.namespace for pod in self.snapshot.pods.values()} - self.snapshot.namespaces.keys())
        if strangers:
            names = ", ".join(strangers[:10])
            yield f"policy: there is no Namespace {names}, but pods of it: no namespaceSelector selects them"
        yield from (f"policy: {misfit.reason}" for misfit in self.misfits)
        yield from self.ipvlans.problems()
        told: dict[str, dict[str, None]] = {}
        for loop in self.loops:
            reasons = (outcome.reason for outcome in loop.trouble.values())
            for reason in (*reasons, *filter(None, [loop.error])):
                told.setdefault(reason, {})[loop.name] = None
        yield from (f"policy: {', '.join(names)}: {reason}" for reason, names in told.items())

    async def run(self) -> None:
        """All loops, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for loop in self.loops:
                group.create_task(loop.run(), name=f"reconcile {loop.name}")
            for loop in self._written:
                group.create_task(self._note_written(loop), name=f"what {loop.name} has written")
            group.create_task(self._own_tables.watch(self.tables.suspect), name="nftables watch of policy")
            group.create_task(bridges.follow(self._bridges_changed), name="bridge settings")
            group.create_task(self.macvlans.follow(), name="what nobody tells the loops of macvlans")
            group.create_task(self.ipvlans.follow(), name="what nobody tells the loops of ipvlans")
            group.create_task(self._start_tables(), name="tables after maps")

    def _bridges_changed(self, unjudged: tuple[int, ...]) -> None:
        self._unjudged = unjudged
        self.tables.kick()

    async def _note_written(self, loop: Reconciler[Any, Any]) -> None:
        """Once all is known and the loop has written what can be: what asks for it may go on with our programs."""
        for store in self._stores:
            while not store.newest.synced:
                await store.newer_than(store.newest.revision)
        while self._may_be_emptied or not await loop.wait_until(loop.kick(), LOOK_S, ()) or self._may_be_emptied:
            pods = self.objects.pods
            if not pods.newest.value:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ASK_S):
                        await pods.newer_than(pods.newest.revision)
        self._written[loop].set()
        for asking in (self.tables, self.macvlans.parents, self.ipvlans.shared, self.ipvlans.parents):
            asking.kick()

    async def _is_written(self, loop: Reconciler[Any, Any]) -> bool:
        """Waits a little for it. Of a loop that writes nothing that programs read it is always so."""
        if loop not in self._written:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ASK_S):
                await self._written[loop].wait()
        return self._has_written(loop)

    def _has_written(self, *loops: Reconciler[Any, Any]) -> bool:
        """Whether what these wrote is all that is wanted, or was at a moment."""
        return all(self._written[loop].is_set() for loop in loops)

    def _knows_macvlans(self) -> bool:
        return self._has_written(self.maps, self.macvlans.stations)

    def _knows_ipvlans(self) -> bool:
        return self._has_written(self.maps, self.ipvlans.neighbors)

    async def _start_tables(self) -> None:
        """The tables wait for the maps as long as the kernel refuses them; then not for their own next resync."""
        for loop in (self.maps, self.links):
            while not loop.ever_settled:
                await loop.wait_until(loop.kick(), LOOK_S)
        self.tables.kick()
        for loop in (self.maps, self.links):
            loop.suspect()  # the first look took as long as loading the programs did, and put the next one off

    def _inputs_changed(self) -> None:
        if self._compiled is None and not self.objects.unread:
            self.snapshot = self._view.look(self.endpoints.newest.value)  # a kernel that refuses all hides no pod
        for loop in (self.tables, self.maps, self.links):  # what takes the kernel longest goes first
            loop.kick()
        self.macvlans.inputs_changed()
        self.ipvlans.inputs_changed()

    # --- what the reconcilers ask -------------------------------------------------------------------------

    def _want_maps(self) -> Desired[str, Stages]:
        if self.objects.unread or self._is_emptied:
            return Desired({}, complete=False)
        return Desired({maps.KEY: Stages(self._stages())}, complete=True, at=max(it.newest.at for it in self._stores))

    @property
    def _is_emptied(self) -> bool:
        """A source that shows no pod at all has lost them: rules of pods that are gone do no harm, opening would.

        Where programs of another release are asked, it is their maps that have rules, and ours may have none yet.
        """
        if self.objects.pods.newest.value or (policed := self.maps.have.get(maps.KEY)) is None:
            return False
        asks_others = self._others() or self.macvlans.asks_others or self.ipvlans.asks_others
        return bool(policed.steps[-1].peers or asks_others)

    @property
    def _may_be_emptied(self) -> bool:
        """So too as long as there is no pod, and nobody knows yet whose programs are asked."""
        knows_asked = self.tables.ever_applied and self.macvlans.knows_asked and self.ipvlans.knows_asked
        return self._is_emptied or not (self.objects.pods.newest.value or knows_asked)

    def _others(self) -> list[str]:
        """The tables that ask programs that are not ours."""
        ours = {program.id for program in self.datapath.installed().programs.values()}
        return [name for name, table in self.tables.have.items() if not ours.issuperset(table.ids)]

    def _stages(self) -> tuple[Contents, ...]:
        """All stages once; they are what is wanted until an input changes, or what did not fit is tried again."""
        revisions = tuple(store.newest.revision for store in (*self._stores, self._config))
        policed = self.maps.have.get(maps.KEY)
        have = policed.steps[-1] if policed is not None else Contents()
        started = time.monotonic()
        wait_s = self._again_s if self._fitting.may_fit(have) else max(self._again_s, AGAIN_ANYHOW_S)
        is_due = not self._fitting.all_fits and started - self._tried_at >= wait_s
        is_new = self._compiled is None or self._compiled[0] != revisions
        if self._compiled is None or is_new or is_due:
            configured = self._config.newest.revision
            again = not is_new or configured != self._tried  # whoever waits for what is new does not wait for a try
            self.snapshot = self._view.look(self.endpoints.newest.value)
            overflow = self._config.newest.value.config.policy.on_overflow
            self._compiled = revisions, self._fitting.advance(self.snapshot, have, overflow, again=again)
            self.notices.publish(notices(self.misfits))
            if again:
                self._tried, self._tried_at = configured, time.monotonic()
                self._again_s = max(AGAIN_S, (self._tried_at - started) / AGAIN_SHARE)
        return self._compiled[1]

    def _want_links(self) -> Desired[int, tuple[bytes, bytes]]:
        want = {
            endpoint.link.index: _link(endpoint.addresses)
            for endpoint in self.endpoints.newest.value.values()
            if isinstance(endpoint.link, VethLink) and endpoint.link.bridge is not None
        }
        return Desired(want, complete=self.endpoints.newest.synced)

    def _want_tables(self) -> Desired[str, Table]:
        if not (self.maps.ever_settled and self.links.ever_settled and self.endpoints.newest.synced):
            return Desired({}, complete=False)
        made_of = self.endpoints.newest.revision, self._unjudged
        if self._planned is None or self._planned[0] != made_of:
            self._planned = made_of, {key(table.family): table for table in self._tables()}
        wanted = self._planned[1]
        if not self._has_written(self.maps, self.links):
            return Desired({name: wanted[name] for name in wanted.keys() - self._others()}, complete=False)
        return Desired(wanted, complete=True)

    def _tables(self) -> tuple[Table, Table]:
        installed, place = self.datapath.installed(), str(self.datapath.directory)
        number = {name: program.id for name, program in installed.programs.items()}
        endpoints = self.endpoints.newest.value.values()
        routed, bridged = sources(endpoints)
        return (
            inet_table(
                place,
                number["policy"],
                number["policy_reply"],
                routed,
                [(link.parent, address) for each, link in ipvlans.on_stack(endpoints) for address in each.addresses],
                number["policy_bridge"],
            ),
            bridge_table(place, number["policy_astray"], number["policy_bridge"], bridged, self._unjudged),
        )

    def _open_maps(self) -> PolicyMaps:
        return PolicyMaps(self.datapath.installed(), self.datapath.directory)

    def _open_links(self) -> PodLinks:
        return PodLinks(self.datapath.installed())

    async def _becomes_known(self, endpoint: Endpoint) -> bool:
        """Waits for it, and gives up before the plugin does, which could not say what was waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.newest.value.config.cni.deadline_seconds * _KNOWN_SHARE):
                while not self._is_known(endpoint):
                    await self.objects.pods.newer_than(self.objects.pods.newest.revision)
        return self._is_known(endpoint)

    def _is_known(self, endpoint: Endpoint) -> bool:
        """Whether Kubernetes has shown this very pod: one of a StatefulSet has the name of the one before it."""
        if endpoint.pod is None:
            return True
        pod = self.objects.pods.newest.value.get(f"{endpoint.pod.namespace}/{endpoint.pod.name}")
        return pod is not None and endpoint.pod.uid in ("", pod.uid)

    def _unshown(self, pod: PodName | None) -> str:
        """What an ADD waits for whose pod nobody knows policies of."""
        found = "only an earlier one of that name" if str(pod) in self.objects.pods.newest.value else "nothing of it"
        remedy = "does bgpd follow the kubelet's API server, and reach it? Among manifests, the Pod must be there"
        return f"Kubernetes has not shown the pod {pod} to bgpd yet, {found}; {remedy}"


def unenforceable(endpoint: Endpoint) -> str:
    """Why policy cannot be enforced on such an interface; empty: it can."""
    match endpoint.link:
        case MacvlanLink() as link:
            return parents.refusal(link)
        case IpvlanLink() as link:
            return ipvlans.refusal(link)
    return ""


def sources(endpoints: Iterable[Endpoint]) -> tuple[list[Source], list[Source]]:
    """What may come in by each link: those that are routed, and ports of bridges."""
    routed: list[Source] = []
    bridged: list[Source] = []
    for endpoint in endpoints:
        if isinstance(endpoint.link, VethLink):
            source = Source(endpoint.link.index, bytes.fromhex(endpoint.mac.replace(":", "")), endpoint.addresses)
            (routed if endpoint.link.bridge is None else bridged).append(source)
    return routed, bridged


def _link(addresses: Sequence[Address]) -> tuple[bytes, bytes]:
    first = {address.version: layout.policy_address(address) for address in reversed(addresses)}
    return first.get(4, bytes(16)), first.get(6, bytes(16))
