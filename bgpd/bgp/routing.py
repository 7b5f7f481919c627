"""The routes subsystem put together: one plan, two reconcilers, and the view of both that operators see.

Input are stores (configuration, nodes, drain, health, the speaker's sessions); the plan is computed again only when
one of them has changed that it depends on. It does not know where the stores are filled: `daemon.py` does.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bgpd.bgp import launch, render
from bgpd.bgp.health import Health
from bgpd.bgp.offers import Offers
from bgpd.bgp.plan import BgpPlan, Drain, plan
from bgpd.bgp.reconcile import (
    Routes,
    Sessions,
    announcement_order,
    announcements,
    is_up,
)
from bgpd.bgp.speaker import Speaker
from bgpd.config.load import Loaded
from bgpd.model.bgp import AdvertisementType, Announcement, AnnouncementKey, EndOfRib, EndOfRibKey, RouteKey
from bgpd.model.candidate import Candidate
from bgpd.model.node import Node
from bgpd.model.uplink import Uplinks
from bgpd.runtime.reconcile import Desired, Reconciler, Round
from bgpd.runtime.store import Revision, Store


@dataclass(frozen=True, slots=True)
class Inputs:
    """What routing depends on. `nodes` maps names to nodes; only our own is looked at. `uplinks` tells where peers
    are that are not given by address.

    `config` is the configuration in effect; unsynced, it does not name every session that may be wanted.

    `candidates` is what may be announced besides its pod CIDRs, by who finds them.
    """

    config: Store[Loaded]
    nodes: Store[Mapping[str, Node]]
    drain: Store[Drain]
    health: Store[Health]
    uplinks: Store[Uplinks]
    candidates: tuple[Store[tuple[Candidate, ...]], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all of it is known that says what is announced, so that other routes may go."""
        stores: tuple[Store[Any], ...] = (self.config, self.nodes, *self.candidates)
        return all(store.newest.synced for store in stores)


@dataclass(frozen=True, slots=True)
class Held:
    """Routes that are announced, are not wanted, and stay for now. `for_s` None: for as long as `why` holds."""

    routes: int
    why: str
    for_s: float | None = None

    @property
    def until(self) -> str:
        """What an operator reads after "it is announced"."""
        if self.for_s is None:
            return f"kept: {self.why}"
        return f"withdrawn in {self.for_s:.0f} s: {self.why}"


class Routing:
    """Keeps ExaBGP's sessions and routes as planned. `node_name` is this node's name in Kubernetes."""

    def __init__(
        self, node_name: str, inputs: Inputs, speaker: Speaker, header: str, report: Callable[[Round], None]
    ) -> None:
        self.node_name, self._inputs, self.speaker = node_name, inputs, speaker
        self._planned: tuple[tuple[Revision, ...], BgpPlan] | None = None
        self._last_seen: Node | None = None
        self._offers = Offers()
        files = launch.SpeakerFiles(inputs.config.newest.value.config.paths.run)
        sessions = Sessions(
            speaker,
            files.configuration,
            header,
            launch.exabgp(),
            lambda: self.plan.neighbors,
            self.carries_its_routes,
        )
        self._local_ends = sessions.local_ends
        self.sessions: Reconciler[str, str] = Reconciler("sessions", self._want_sessions, sessions, str, report)
        self.routes: Reconciler[AnnouncementKey, Announcement] = Reconciler(
            "routes",
            self._want_routes,
            Routes(speaker, lambda: self.plan.neighbors),
            announcement_order,
            report,
        )
        for store in self._stores:
            store.on_change(self._inputs_changed)
        speaker.state.on_change(self._speaker_changed)

    @property
    def plan(self) -> BgpPlan:
        """The plan from the newest inputs."""
        inputs = self._inputs
        revisions = tuple(store.newest.revision for store in self._stores)
        if self._planned is None or self._planned[0] != revisions:
            loaded = inputs.config.newest.value
            self._planned = revisions, plan(
                loaded.config.bgp,
                loaded.passwords,
                self._node_or_its_remains(),
                inputs.drain.newest.value,
                inputs.health.newest.value.reason,
                self._local_ends.newest.value,
                tuple(itertools.chain.from_iterable(store.newest.value for store in inputs.candidates)),
                inputs.uplinks.newest.value,
                self._offers,
            )
        return self._planned[1]

    def on_plan(self, call: Callable[[], None]) -> None:
        """Calls whenever the plan may be another one."""
        for store in self._stores:
            store.on_change(call)

    @property
    def _stores(self) -> tuple[Store[Any], ...]:
        inputs = self._inputs
        known = inputs.config, inputs.nodes, inputs.drain, inputs.health, inputs.uplinks, self._local_ends
        return *known, *inputs.candidates

    @property
    def node(self) -> Node | None:
        """Our own node as Kubernetes has it; None while it has none."""
        return self._inputs.nodes.newest.value.get(self.node_name)

    def _node_or_its_remains(self) -> Node | None:
        """Our node, with the addresses it last had should it show none.

        Once it is deleted, its addresses and labels: its sessions must stay to carry withdrawals.
        """
        if self.node is not None:
            shown = self.node.internal_ips or (self._last_seen.internal_ips if self._last_seen else ())
            self._last_seen = replace(self.node, internal_ips=shown)  # none at all is a lapse, not news
        elif self._last_seen is not None:
            self._last_seen = replace(self._last_seen, pod_cidrs=(), problems=())
        return self._last_seen

    @property
    def undecided(self) -> str:
        """Why what is announced stays as it is for now; empty when the plan decides."""
        inputs = self._inputs
        return undecided(inputs.complete, inputs.drain.newest.value, inputs.health.newest.value)

    @property
    def held(self) -> Held | None:
        """What is announced though it is not wanted, and is not being withdrawn; None: nothing."""
        routes = self.plan.routes
        count = sum(is_route(key) and key not in routes for key in self.routes.have)
        left_s = self.routes.held_s
        if not count or not self.speaker.state.newest.value.connected:
            return None
        if self.undecided:
            return Held(count, self.undecided)
        if left_s is None:
            return None
        gone = "there is no such Node" if self.node is None else "nothing is left to announce"
        return Held(count, gone, round(left_s, 1))

    @property
    def neighbors_known(self) -> bool:
        """Whether the plan names every session that is wanted, so that others may go.

        One whose defaults come from the node must not fall because the node is not known (yet); nor one whose place
        has to be found (again), because the daemon has just started.
        """
        nodes = self._inputs.nodes.newest
        placed = not self.plan.unplaced or self._inputs.uplinks.newest.synced
        known = (nodes.synced and self.node_name in nodes.value) or not self.plan.idle_peers
        return placed and known and self._inputs.config.newest.synced

    def carries_its_routes(self, peer: str) -> bool:
        """Whether this peer's session is up and has everything the plan wants it to have."""
        neighbor = self.plan.neighbors.get(peer)
        if neighbor is None or not is_up(self.speaker.state.newest.value, neighbor.peer_address):
            return False
        want, have = self._want_routes().want, self.routes.have
        return all(have.get(key) == value for key, value in want.items() if key.peer == peer)

    async def confirm(self, deadline_s: float) -> bool:
        """Whether the newest inputs are in ExaBGP's adj-rib-out, read back from it, in `deadline_s` seconds."""
        return await self.routes.wait_until(self.routes.kick(stale=True), deadline_s)

    async def run(self) -> None:
        """Both loops, until cancelled. They start once it is known whether there is a speaker to talk to."""
        await self.speaker.state.newer_than(Revision(0))
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sessions.run(), name="reconcile sessions")
            group.create_task(self.routes.run(), name="reconcile routes")

    # --- what the reconcilers ask -------------------------------------------------------------------------

    def _want_sessions(self) -> Desired[str, str]:
        want = {name: render.digest_of(render.block(neighbor)) for name, neighbor in self.plan.neighbors.items()}
        return Desired(want, complete=self.neighbors_known, emptied=not want and not self.plan.unplaced)

    def _want_routes(self) -> Desired[AnnouncementKey, Announcement]:
        nodes, drain, health = self._inputs.nodes.newest, self._inputs.drain.newest, self._inputs.health.newest
        empty = meant_empty(drain.value, health.value)
        if not health.value.known and not empty:
            return Desired({}, complete=False)  # as it is, until every check has had its first result
        # A node that Kubernetes does not show may come yet: only the bridge's timer then ends a graceful restart.
        complete = empty or (self._inputs.complete and self.node is not None)
        neighbors = self.plan.neighbors
        want = announcements(self.plan.routes, neighbors, self.speaker.state.newest.value, complete=complete)
        for key in self.routes.have:
            if isinstance(key, EndOfRibKey) and key.peer in neighbors:
                want[key] = EndOfRib()  # sent; nothing takes it back
        has_routes = any(isinstance(key, RouteKey) for key in want)
        return Desired(
            want,
            complete=not self.undecided,
            emptied=bool(neighbors) and not empty and self._is_odd(has_routes),
            at=max(nodes.at, drain.at, health.at, *(store.newest.at for store in self._inputs.candidates)),
        )

    def _is_odd(self, has_routes: bool) -> bool:
        """Whether a source may have lied: a node has pod CIDRs to announce, and need not have a pod or a service.
        One that does not exist announces what others still know of it, and no pod CIDRs."""
        bgp = self._inputs.config.newest.value.config.bgp
        has_always_some = bgp.announces(AdvertisementType.POD_CIDR) or not bgp.advertisements
        return self.node is None or (not has_routes and has_always_some)

    # --- wake-ups -----------------------------------------------------------------------------------------

    def _inputs_changed(self) -> None:
        """Of a peer that was not planned so far nobody knows what its session carries: that is read first.

        Routes take their turn first: sessions change seldom, and a route that is announced is waited for.
        """
        before = self._planned[1].neighbors if self._planned else {}
        self.routes.kick(stale=not self.plan.neighbors.keys() <= before.keys())
        self.sessions.kick()

    def _speaker_changed(self) -> None:
        """A session came or went: ExaBGP replays or forgets on its own then, so both are read again."""
        self.sessions.kick(stale=True)
        self.routes.kick(stale=True)


def meant_empty(drain: Drain, health: Health) -> bool:
    """Whether nothing is to be announced, whatever the node is like: that needs no source."""
    return drain is Drain.WITHDRAWN or bool(health.failing)


def undecided(synced: bool, drain: Drain, health: Health) -> str:
    """Why it is not known yet what may be withdrawn; empty when it is."""
    if meant_empty(drain, health):
        return ""
    if not health.known:
        return "a health check has no result yet"
    return "" if synced else "the source is not complete yet"


def is_route(key: AnnouncementKey) -> bool:
    """Routes, as opposed to the End-of-RIB markers among them."""
    return not isinstance(key, EndOfRibKey)
