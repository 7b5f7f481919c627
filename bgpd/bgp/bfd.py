"""The BFD subsystem put together: the sessions that peers want, how they stand, and what follows when one falls.

    plan ─► diff ─► BIRD, through its control socket          BFD went down ─► Cease, BFD Down (RFC 9384) ─► ExaBGP
                     └── its log wakes us ─► sessions ─► view

When a session that was up expires, BGP's session with that peer is ended: its hold timer would take far longer to
find out. Not when the peer itself says that the session is down. Either it does not hear us, then it ends BGP's
session too; or BFD was shut down there, which must not end it (RFC 5882 section 4.2, AdminDown). BIRD does not tell
which. Then ExaBGP tries again as ever, so BGP may come back before BFD does (RFC 5882 section 4.2 leaves that
open; BIRD and FRR do the same): a peer that has no BFD configured, or has it no longer, keeps its routes. Only a fall
that was seen counts. What falls while this daemon is away is left to the hold timer, and to the peer's own BFD.

Without BIRD there is no BFD, and BGP runs on: it is told in `bgpd status`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from bgpd.bgp.bird import Bird, BirdFiles
from bgpd.bgp.reconcile import is_up
from bgpd.bgp.routing import Routing
from bgpd.model.bfd import BFD_DOWN, BfdState, Down, Session, State, Wanted
from bgpd.model.prefix import Address
from bgpd.observe import log
from bgpd.runtime.inotify import WriteWatch
from bgpd.runtime.reconcile import Desired, Reconciler, Round, TargetError
from bgpd.runtime.store import Store

LOOK_S = 1.0  # without a hint
RECONNECT_S = 0.2
AGAIN_S = 0.5  # one that went down is not up again sooner: packets are a second apart then (RFC 5880 6.8.3)


class Bfd:
    """Keeps BIRD's sessions as planned and `state` as they are."""

    def __init__(
        self, files: BirdFiles, routing: Routing, report: Callable[[Round], None]
    ) -> None:
        self._files, self._bird, self._routing = files, Bird(files), routing
        self.state: Store[BfdState] = Store(BfdState(reason=""))
        self.loop: Reconciler[str, Wanted] = Reconciler("bfd", self._want, self._bird, str, report)
        self._wanted_some = asyncio.Event()
        self._before: Mapping[str, Wanted] = {}
        self._log = log.get("bfd")
        routing.on_plan(self._inputs_changed)

    @property
    def wanted(self) -> dict[str, Wanted]:
        """By peer name; empty: this node has no BFD."""
        neighbors = self._routing.plan.neighbors
        return {name: neighbor.bfd for name, neighbor in neighbors.items() if neighbor.bfd is not None}

    @property
    def problem(self) -> str:
        """Why there is no BFD although it is wanted; empty when there is."""
        if not self.wanted:
            return ""
        return self.loop.error or self.state.newest.value.reason

    async def run(self) -> None:
        """For ever. The sessions stay when it is cancelled."""
        self._files.prepare()
        self._inputs_changed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.loop.run(), name="reconcile bfd")
            group.create_task(self._watch(group), name="bfd sessions")

    def _want(self) -> Desired[str, Wanted]:
        return Desired(self.wanted, complete=self._routing.neighbors_known)

    def _inputs_changed(self) -> None:
        self.loop.kick()
        before, self._before = self._before, self.wanted
        self._tell_taken_away(before)
        if self.wanted:
            self._wanted_some.set()
        else:
            self._wanted_some.clear()
            self.state.publish(BfdState(reason=""))

    def _tell_taken_away(self, before: Mapping[str, Wanted]) -> None:
        """BIRD leaves without AdminDown.

        Saying it in BIRD's place was tried, with the session's discriminators: BIRD 2.0 and FRR 8.4, as peers,
        understand it and end BGP's session as well.
        """
        sessions = self.state.newest.value.sessions
        for name in (before.keys() - self.wanted.keys()) & self._routing.plan.neighbors.keys():
            if _up(sessions.get(before[name].peer_address)):
                what = "BFD is taken away here while it is up: a peer that still has it resets its session once"
                self._log.warning(what, peer=name)

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        watch = WriteWatch(self._files.directory)
        try:
            while True:
                await self._wanted_some.wait()
                try:
                    sessions = await self._bird.sessions()
                except TargetError as error:
                    self.state.publish(BfdState(reason=str(error)))
                    await asyncio.sleep(RECONNECT_S)
                    continue
                self._take(sessions, group)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await watch.written()
        finally:
            watch.close()

    def _take(self, sessions: Mapping[Address, Session], group: asyncio.TaskGroup) -> None:
        """Makes `sessions` the state, and ends BGP's sessions where one of these fell."""
        before = self.state.newest.value
        if not before.connected:
            self.loop.kick(stale=True)  # another BIRD, or the first one: it may have loaded something else
        fell = fallen(before.sessions, sessions)
        lost = {it: down for it, down in before.lost.items() if it in sessions and not _up(sessions[it])}
        said = self._bird.said_down() if fell else set()
        lost |= {address: Down(before.sessions[address].timeout_ms, address in said) for address in fell}
        self.state.publish(BfdState(True, "", sessions, lost))
        for address in fell:
            if address in said:
                self._log.warning("BFD down, says the peer, and the BGP session is left to it", address=str(address))
                continue
            group.create_task(self._end(address), name=f"bfd down {address}")

    async def _end(self, address: Address) -> None:
        """Ends the BGP session with the peer at this address, if it has one, as soon as the speaker can be told."""
        speaker = self._routing.speaker.state
        while address in self.state.newest.value.lost:
            now = speaker.newest.value
            if now.connected and (not is_up(now, address) or await self._ended(address)):
                return
            await asyncio.sleep(RECONNECT_S)

    async def _ended(self, address: Address) -> bool:
        try:
            await self._routing.speaker.command(f"neighbor {address} teardown {BFD_DOWN}")
        except TargetError as error:
            self._log.warning("the BGP session cannot be ended", address=str(address), error=str(error))
            return False
        self._log.warning("BFD down, the BGP session is ended", address=str(address))
        return True


def fallen(before: Mapping[Address, Session], after: Mapping[Address, Session]) -> list[Address]:
    """The sessions that went down in between, those that are up again already included.

    One that is not there any more was taken out: that is no fall.
    """
    return [
        address
        for address, session in after.items()
        if _up(before.get(address)) and (not _up(session) or session.since > before[address].since + AGAIN_S)
    ]


def _up(session: Session | None) -> bool:
    return session is not None and session.state is State.UP
