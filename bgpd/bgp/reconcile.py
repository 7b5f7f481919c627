"""The two targets of the routes subsystem: ExaBGP's sessions and its adj-rib-out.

Both are actuators under `runtime.reconcile`; what is wanted comes from `bgp.plan`.

*Sessions* live in ExaBGP's configuration file. A change is a new file, checked by ExaBGP itself first (one
failed reload makes every later one fail), renamed into place, loaded, and read back by digest. An update resets
its session, so at most one is applied at a time, and the next waits until the first is Established again and
has its routes. Additions and removals touch nobody else and go together. A peer that is removed is emptied before
the reload, and not before the file is in place: until then nothing has been lost.

*Routes* are announced and withdrawn through the API, to sessions that are up only: a route queued for a peer
that is down makes ExaBGP drop every reload without a word. End-of-RIB is one more wanted object per peer and
family; it sorts last, so it follows the routes it closes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path as FilePath
from typing import TypeAlias

from bgpd.bgp import codec, render
from bgpd.bgp.launch import beside
from bgpd.bgp.leave import LOOK_S, QUESTION, Leave, updates_sent
from bgpd.bgp.speaker import CommandError, Speaker
from bgpd.model.bgp import (
    Announcement,
    AnnouncementKey,
    EndOfRib,
    EndOfRibKey,
    LocalEnd,
    Neighbor,
    Path,
    RouteKey,
    SpeakerState,
)
from bgpd.model.outcome import DONE, Outcome, Retry
from bgpd.model.prefix import Address, Prefix, sort_key
from bgpd.observe import log
from bgpd.runtime.diff import Change, Kind
from bgpd.runtime.reconcile import TargetError
from bgpd.runtime.store import Store

RouteChange: TypeAlias = Change[AnnouncementKey, Announcement]
SessionChange: TypeAlias = Change[str, str]

LOAD_TIMEOUT_S = 5.0
LEAVE_TIMEOUT_S = 5.0
WAIT_S = 0.25


def announcement_order(key: AnnouncementKey) -> tuple[int, tuple[int, int, int], str]:
    """Routes by prefix, the most specific first; End-of-RIB after all of them."""
    if isinstance(key, EndOfRibKey):
        return 1, (0, 0, 0), f"{key.peer} {key.family.value}"
    return 0, sort_key(key.prefix), key.peer


def announcements(
    routes: Mapping[RouteKey, Path], neighbors: Mapping[str, Neighbor], state: SpeakerState, *, complete: bool
) -> dict[AnnouncementKey, Announcement]:
    """What the sessions that are up should carry: their routes and, once those are `complete`, End-of-RIB."""
    up = {name for name, neighbor in neighbors.items() if is_up(state, neighbor.peer_address)}
    sessions = {name: state.sessions[neighbors[name].peer_address] for name in up}
    taken: dict[tuple[str, type[Prefix], int], bool] = {}  # thousands of prefixes share a few paths
    want: dict[AnnouncementKey, Announcement] = {}
    for key, path in routes.items():
        like = key.peer, type(key.prefix), id(path)
        takes = taken.get(like)
        if takes is None:
            takes = taken[like] = key.peer in sessions and sessions[key.peer].takes(key.prefix, path.next_hop)
        if takes:
            want[key] = path
    if complete:
        want |= {EndOfRibKey(name, family): EndOfRib() for name in up for family in sessions[name].families}
    return want


def is_up(state: SpeakerState, address: Address) -> bool:
    session = state.sessions.get(address)
    return state.connected and session is not None and session.up


class Sessions:
    """ExaBGP's neighbors, as name to the digest of their block.

    `neighbors` gives the wanted sessions by name, `settled` whether a peer's session carries its routes.
    """

    def __init__(
        self,
        speaker: Speaker,
        file: FilePath,
        header: str,
        exabgp: FilePath,
        neighbors: Callable[[], Mapping[str, Neighbor]],
        settled: Callable[[str], bool],
    ) -> None:
        self._speaker, self._file, self._header, self._exabgp = speaker, file, header, exabgp
        self._neighbors, self._settled = neighbors, settled
        self.local_ends: Store[Mapping[str, LocalEnd]] = Store({})  # of the sessions that ExaBGP has loaded
        self._reset_at: dict[str, float] = {}  # when this daemon last reset a peer's session, monotonic seconds

    async def observe(self) -> Mapping[str, str]:
        shown = await self._shown()
        self.local_ends.publish(render.local_ends(shown))
        return render.loaded(shown)

    async def apply(self, changes: Sequence[SessionChange]) -> Sequence[Outcome]:
        """Additions, removals and at most one update, in one reload."""
        wanted = {name: render.block(neighbor) for name, neighbor in self._neighbors().items()}
        blocks = render.blocks_of(self._read())
        held: dict[str, str] = {}
        update = ""
        for change in changes:
            if change.kind is not Kind.UPDATE:
                _place(blocks, change.key, wanted)
                continue
            reason = self._hold(change.key) if not update else f"waits for {update}: one session is reset at a time"
            if reason:
                held[change.key] = reason
            else:
                update = change.key
                _place(blocks, update, wanted)
        if len(held) < len(changes):
            text = render.document(self._header, blocks)
            await self._write(text)  # what can go wrong here does so before any peer is told anything
            await self._take_leave(render.addresses(await self._shown()) - render.addresses(text))
            if update:
                self._reset_at[update] = time.monotonic()  # ExaBGP may load it later than is waited for
            await self._reload(blocks)
        return [Retry(held[change.key], WAIT_S) if change.key in held else DONE for change in changes]

    async def _shown(self) -> str:
        """What ExaBGP has loaded, as it writes it."""
        return "\n".join(await self._speaker.command("show neighbor configuration"))

    async def _take_leave(self, addresses: Set[Address]) -> None:
        """Withdraws everything from the peers at these addresses, which are about to lose their sessions.

        ExaBGP closes a session that is taken out without a word, and under graceful restart the peer would keep
        its routes. A peer that does not take the withdrawals in time loses its session all the same.
        """
        state = self._speaker.state.newest.value
        up = {address for address in addresses if is_up(state, address)}
        if not up:
            return
        leave = Leave(up, updates_sent(await self._speaker.command(QUESTION)))
        for address in up:
            await self._speaker.command(f"neighbor {address} clear adj-rib out")
            for family in state.sessions[address].families:
                await self._speaker.command(codec.end_of_rib(EndOfRibKey(str(address), family), address).text)
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        while time.monotonic() < deadline:
            if leave.complete(updates_sent(await self._speaker.command(QUESTION))):
                return
            await asyncio.sleep(LOOK_S)
        log.get("sessions").warning(
            "peers are taken out that have not taken all withdrawals; they may keep routes until their "
            "graceful-restart timer ends",
            addresses=sorted(map(str, up)),
        )

    def _hold(self, name: str) -> str:
        """Why this session must not be reset now; empty when it may.

        Resetting a session that is up takes an uplink away. That is not done while another one is away that
        has been there before: one this daemon reset and that is not back, or one that fell by itself.
        """
        neighbors = self._neighbors()
        state = self._speaker.state.newest.value
        if name not in neighbors or not is_up(state, neighbors[name].peer_address):
            return ""
        for other in sorted(neighbors.keys() - {name}):
            session = state.sessions.get(neighbors[other].peer_address)
            if session is None or not session.ups:
                continue  # it has never been there
            if session.since <= self._reset_at.get(other, 0.0) or not self._settled(other):
                return f"waits for {other} to be Established with its routes; take {other} out to go ahead"
        return ""

    def _read(self) -> str:
        try:
            return self._file.read_text()
        except FileNotFoundError:
            return ""

    async def _write(self, text: str) -> None:
        """Puts a file that ExaBGP will take in its place. TargetError: it has not been touched."""
        if text == self._read():
            return
        try:
            with beside(self._file, text) as temporary:
                await self._validate(temporary)
                temporary.rename(self._file)
        except OSError as error:
            raise TargetError(f"{self._file} cannot be written: {error.strerror}") from None

    async def _reload(self, blocks: Mapping[str, str]) -> None:
        """Makes ExaBGP load the file. TargetError: it has not done so yet."""
        await self._speaker.command("reload")
        wanted = {name: render.digest_of(block) for name, block in blocks.items()}
        deadline = asyncio.get_running_loop().time() + LOAD_TIMEOUT_S
        while await self.observe() != wanted:
            if asyncio.get_running_loop().time() > deadline:
                raise TargetError("ExaBGP has not loaded its new configuration; see the log of bgpd-speaker")
            await asyncio.sleep(0.01)

    async def _validate(self, file: FilePath) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                str(self._exabgp),
                "validate",
                "-n",
                str(file),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "exabgp_api_cli": "false"},
            )
        except OSError as error:
            raise TargetError(f"{self._exabgp} cannot be run: {error.strerror}; is bgpd being installed?") from None
        output, _ = await process.communicate()
        if process.returncode:
            lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
            raise TargetError(f"exabgp validate refuses the rendered configuration: {' / '.join(lines[-4:])}")


class Routes:
    """ExaBGP's adj-rib-out towards the sessions that are up, End-of-RIB included.

    A peer that returns is first sent what it was sent before, by ExaBGP itself; what is no longer wanted is taken
    back some 50 ms later. Withdrawing it while the peer is down was tried: it is queued, and ExaBGP ignores reloads
    until its next attempt to connect has failed, which for a peer that drops packets took more than 150 s.
    """

    def __init__(self, speaker: Speaker, neighbors: Callable[[], Mapping[str, Neighbor]]) -> None:
        self._speaker, self._neighbors = speaker, neighbors

    async def observe(self) -> Mapping[AnnouncementKey, Announcement]:
        have: dict[AnnouncementKey, Announcement] = {}
        state = self._speaker.state.newest.value
        if not state.connected:
            raise TargetError(state.reason)
        names = {neighbor.peer_address: name for name, neighbor in self._neighbors().items()}
        up = {address: name for address, name in names.items() if is_up(state, address)}
        for address, prefix, path in codec.adj_rib_out(await self._speaker.command("show adj-rib out json")):
            if address in up:
                have[RouteKey(up[address], prefix)] = path
        for address, session in (await self._speaker.sessions()).items():
            if address in up:
                have |= {EndOfRibKey(up[address], family): EndOfRib() for family in session.end_of_rib}
        return have

    async def apply(self, changes: Sequence[RouteChange]) -> Sequence[Outcome]:
        """Announces, withdraws, then closes with End-of-RIB where every route before it went out."""
        neighbors = self._neighbors()
        outcomes: dict[AnnouncementKey, Outcome] = {}
        announce: dict[RouteKey, Path] = {}
        withdraw: list[RouteKey] = []
        markers: list[EndOfRibKey] = []
        for change in changes:
            if change.key.peer not in neighbors:
                outcomes[change.key] = DONE  # the session is gone, and its routes with it
            elif isinstance(change.key, EndOfRibKey):
                (markers.append(change.key) if change.want else outcomes.update({change.key: DONE}))
            elif isinstance(change.want, Path):
                announce[change.key] = change.want
            else:
                withdraw.append(change.key)
        addresses = {name: neighbor.peer_address for name, neighbor in neighbors.items()}
        for command in (*codec.announce(announce, addresses), *codec.withdraw(withdraw, addresses)):
            await self._say(command, outcomes)
        failed = {key.peer for key, outcome in outcomes.items() if outcome != DONE}
        for marker in markers:
            if marker.peer in failed:
                outcomes[marker] = Retry("waits for routes that could not be announced", WAIT_S)
            else:
                await self._say(codec.end_of_rib(marker, addresses[marker.peer]), outcomes)
        return [outcomes[change.key] for change in changes]

    async def _say(self, command: codec.Command, outcomes: dict[AnnouncementKey, Outcome]) -> None:
        try:
            await self._speaker.command(command.text)
        except CommandError as error:
            outcomes.update(dict.fromkeys(command.keys, Retry(str(error))))
        else:
            outcomes.update(dict.fromkeys(command.keys, DONE))


def _place(blocks: dict[str, str], name: str, wanted: Mapping[str, str]) -> None:
    if name in wanted:
        blocks[name] = wanted[name]
    else:
        blocks.pop(name, None)
