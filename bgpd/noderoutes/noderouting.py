"""Node routes put together: Nodes and configuration in, one plan, one reconciler, and the kernel's news to wake it.

Nothing is taken back when the daemon ends: routes and device do their work without it, and the next daemon finds them
by their mark. `clear` takes them out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from bgpd.config.load import Loaded
from bgpd.config.schema import Config, NodeRoutes
from bgpd.model.brief import brief
from bgpd.model.node import Node
from bgpd.model.noderoute import MARK, Key, Route, RouteKey, Value
from bgpd.model.prefix import Prefix
from bgpd.netlink import rtsocket
from bgpd.netlink.route import prefix_key
from bgpd.netlink.rtsocket import RtWatch
from bgpd.noderoutes import flannel
from bgpd.noderoutes.observed import Concern, concerns
from bgpd.noderoutes.plan import NodeRoutesPlan, Planner, standing
from bgpd.noderoutes.target import Target
from bgpd.runtime.reconcile import Desired, Reconciler, Round
from bgpd.runtime.store import Store

NAME = "node_routes"
LULL_S = 0.05  # a routing daemon may change 1,000 routes a second: to wake up for each costs more than to look at it
NEWS = (
    rtsocket.GROUP_LINK, rtsocket.GROUP_NEIGH, rtsocket.GROUP_IPV4_ADDRESS, rtsocket.GROUP_IPV4_ROUTE,
    rtsocket.GROUP_IPV6_ADDRESS, rtsocket.GROUP_IPV6_ROUTE,
)  # fmt: skip


class NodeRouting:
    """Keeps the routes as planned. `plan` is the newest, `mode` as last configured while it is on."""

    def __init__(
        self,
        node_name: str,
        config: Store[Loaded],
        nodes: Store[Mapping[str, Node]],
        report: Callable[[Round], None],
    ) -> None:
        self.node_name, self._config, self._nodes = node_name, config, nodes
        self.mode = config.newest.value.config.node_routes
        paths = config.newest.value.config.paths
        (paths.state / MARK).touch()
        self._prefixes: frozenset[Prefix] = frozenset()
        self._prefix_keys: frozenset[tuple[int, int, bytes]] = frozenset()  # the same for `concerns`
        self._target = Target(lambda: self._prefixes, partial(flannel.signs, paths.flannel, paths.cni_conf))
        self._planner = Planner()
        self._want: Mapping[Key, Value] = {}
        self.plan = NodeRoutesPlan()
        self.loop: Reconciler[Key, Value] = Reconciler(
            NAME, self._desired, self._target, lambda key: key.order, report
        )
        self._note_nodes()
        config.on_change(self._note_mode)
        nodes.on_change(self._note_nodes)
        for store in (config, nodes):
            store.on_change(self.loop.kick)

    @property
    def loops(self) -> Sequence[Reconciler[Key, Value]]:
        return (self.loop,)

    @property
    def routes(self) -> Iterator[tuple[RouteKey, Route]]:
        """Those of ours that the kernel has."""
        for key, value in self.loop.have.items():
            if isinstance(key, RouteKey) and isinstance(value, Route):
                yield key, value

    @property
    def held(self) -> Mapping[Prefix, str]:
        """The prefixes that are neither made nor changed, in words."""
        foreign = self._target.seen.host.foreign or {}
        return {
            prefix: f"{prefix} has a route that is not ours ({why}): it stays, and ours is not made; take it out"
            if prefix in foreign
            else why
            for prefix, why in self.plan.held.items()
        }

    def problems(self) -> Iterator[str]:
        """Everything about node routes that an operator should know; nothing on a healthy node."""
        if self.plan.blocked and self.loop.ever_settled:
            yield f"node routes: nothing is changed: {self.plan.blocked}"
        yield from (f"node routes: {why}" for why in brief(list(dict.fromkeys(self.held.values()))))
        yield from (f"node routes: {why}" for why in brief(list(self.plan.unreachable.values())))
        reasons = dict.fromkeys(outcome.reason for outcome in self.loop.trouble.values())
        yield from (f"node routes: {why}" for why in (*brief(list(reasons)), *filter(None, [self.loop.error])))

    async def run(self) -> None:
        """Until cancelled."""
        with contextlib.closing(self._target):
            await self._run()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="rtnetlink watch")
            group.create_task(self.loop.run(), name=f"reconcile {NAME}")

    # --- what the reconciler asks -------------------------------------------------------------------------

    @property
    def _settings(self) -> Config:
        return self._config.newest.value.config

    def _desired(self) -> Desired[Key, Value]:
        nodes = self._nodes.newest
        own = nodes.value.get(self.node_name)
        self.plan = self._planner.plan(self.mode, self._settings.vxlan, own, nodes.value, self._target.seen.host)
        self._want = standing(self.plan, self.loop.have)
        complete = nodes.synced and not self.plan.blocked
        emptied = complete and not self.plan.others and bool(self.loop.have)
        return Desired(self._want, complete, emptied, nodes.at)

    # --- what the stores say ------------------------------------------------------------------------------

    def _note_mode(self) -> None:
        """As last configured; turning it on or off waits for a restart."""
        newest = self._settings.node_routes
        if newest is not NodeRoutes.NONE:
            self.mode = newest

    def _note_nodes(self) -> None:
        """All pod CIDRs of other nodes. They change seldom, Nodes do often."""
        others = (node for node in self._nodes.newest.value.values() if node.name != self.node_name)
        prefixes = frozenset(prefix for node in others for prefix in node.pod_cidrs)
        if prefixes != self._prefixes:
            self._prefixes, self._prefix_keys = prefixes, frozenset(map(prefix_key, prefixes))

    # --- news ---------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        with contextlib.closing(RtWatch(NEWS)) as watch:
            while True:
                news = await watch.news()
                if news is None:
                    self.loop.suspect()
                    continue
                port, seen = self._target.port, self._target.seen
                found = {concerns(message, port, seen, self._want, self._prefix_keys) for message in news}
                if Concern.CHANGED in found:
                    self.loop.kick(stale=True)
                elif Concern.TOUCHED in found:
                    self.loop.suspect()
                else:
                    await asyncio.sleep(LULL_S)
