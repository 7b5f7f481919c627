"""Pods on macvlans, put together: the maps that tell who is behind their parents, then the programs there.

What the maps hold, and the programs, are `parents`'. On a node without such pods nothing is loaded for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from bgpd.config.load import Loaded
from bgpd.datapath.loader import Datapath
from bgpd.model.endpoint import Endpoint, Endpoints, MacvlanLink
from bgpd.netlink.links import Watch
from bgpd.policy import filters, parents
from bgpd.policy.behind import Behind, Entry
from bgpd.policy.ondemand import Needs, OnDemand, applied, heed, looked_at, then
from bgpd.policy.parents import Own, Programs, mac_address, parents_of
from bgpd.runtime.reconcile import Actuator, Desired, Reconciler, Round
from bgpd.runtime.store import Store


class Macvlans:
    """Keeps maps and programs as planned. `written`: whether all maps have been, so that programs of another release
    may go.
    """

    def __init__(
        self,
        config: Store[Loaded],
        endpoints: Store[Endpoints],
        datapath: Datapath,
        report: Callable[[Round], None],
        written: Callable[[], bool],
    ) -> None:
        self._config, self._endpoints, self._datapath, self._written = config, endpoints, datapath, written
        self._behind: Behind[Own] | None = None
        self._at_parents = OnDemand(self._open_parents, lambda: self._behind is not None)
        self.stations: Reconciler[Entry, bytes] = Reconciler(
            "policy_stations",
            self._want_stations,
            OnDemand(self._open_stations, self._has_macvlans),
            str,
            then(report, lambda: self.parents.kick(stale=True)),
        )
        self.parents: Reconciler[int, Programs] = Reconciler(
            "policy_parents",
            self._want_parents,
            self._at_parents,
            int,
            then(report, lambda: self.stations.kick()),
        )
        config.on_change(self.stations.kick)

    @property
    def loops(self) -> tuple[Reconciler[Any, Any], ...]:
        return (self.stations, self.parents)

    @property
    def knows_asked(self) -> bool:
        """Whether it is known which programs are asked at parents."""
        return self._at_parents.looked or not self._has_macvlans()

    @property
    def asks_others(self) -> bool:
        """Whether some of these, as far as known, are not ours."""
        return self._behind is not None and parents.asks_others(self._behind.installed, self.parents.have)

    def needs(self, endpoint: Endpoint, link: MacvlanLink) -> Needs:
        """What polices it, each after what it takes: of each loop the objects without which it is not."""
        return (self.stations, parents.entries_of(endpoint, link).keys()), (self.parents, (link.parent,))

    def inputs_changed(self) -> None:
        for loop in self.loops:
            loop.kick(stale=self._has_macvlans())

    async def follow(self) -> None:
        """Interfaces here, what the node has on a parent may send there; and filters at parents. Until cancelled."""

        def look() -> None:
            if self._has_macvlans():
                self.stations.kick(stale=True)

        async with asyncio.TaskGroup() as group:
            group.create_task(heed(Watch(), look, pause_s=0), name="interfaces on parents")
            group.create_task(
                filters.watch(lambda: self.parents.have, self.parents.suspect), name="filters at parents"
            )
            group.create_task(self._start_parents(), name="programs after stations")

    async def _start_parents(self) -> None:
        """Stations that are there already are not written, and nobody is told; nor of programs that are."""
        await applied(self.stations)
        await looked_at(self.parents)
        self.stations.kick()

    # --- what the reconcilers ask -------------------------------------------------------------------------

    def _has_macvlans(self) -> bool:
        pods = self._endpoints.newest.value.values()
        return bool(parents_of(pods)) or parents.is_installed(self._datapath.directory)

    def _want_stations(self) -> Desired[Entry, bytes]:
        """Those of a parent stay for as long as programs are asked there: to them the node would be a stranger."""
        pods = self._endpoints.newest.value.values()
        own = self._behind.own if self._behind else parents.NOTHING
        policy, at = self._config.newest.value.config.policy, parents_of(pods) | self.parents.have.keys()
        tunnels = policy.tunnel_ports if at else ()
        want = parents.entries(pods, own, at, map(mac_address, policy.foreign_mac_addresses), tunnels)
        return Desired(want, complete=self._endpoints.newest.synced and self._at_parents.looked)

    def _want_parents(self) -> Desired[int, Programs]:
        """Only where the stations have been written, or were. One that is gone loses its last pod by itself."""
        if self._behind is None or not (self.stations.ever_applied and self._endpoints.newest.synced):
            return Desired({}, complete=self._behind is None and not self._has_macvlans())
        told, there = parents.behind(self.stations.have) | self.parents.have.keys(), self._behind.own.macs.keys()
        at = parents_of(self._endpoints.newest.value.values()) & told & there
        return parents.desired(at, self._behind.installed, self.parents.have, written=self._written())

    def _open_stations(self) -> Behind[Own]:
        self._datapath.installed()  # the maps of both objects are the same, and it has made them
        self._behind = parents.stations(parents.install(self._datapath.directory), self._datapath.directory)
        return self._behind

    def _open_parents(self) -> Actuator[int, Programs]:
        assert self._behind is not None, "nothing is wanted at a parent before the stations are known"
        return filters.actuator(self._behind.installed, self._datapath.directory)
