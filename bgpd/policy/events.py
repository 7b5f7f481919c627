"""Follows what the programs tell of packets that a rule set denies, and keeps the last of it, with names.

The kernel tells each pod's drops up to a rate and counts the rest; we take so much at a time, so that a storm costs
the daemon little: what finds no room in the ring is counted there too. Names are those of the moment when an event is
read. Nothing is written down: this is for looking while something is wrong, not an audit trail.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bgpd.datapath import layout
from bgpd.datapath.layout import EventFlag, PolicyVerdict
from bgpd.datapath.ringbuf import RingBuffer
from bgpd.model.policy import Direction
from bgpd.model.prefix import Address
from bgpd.policy import wording
from bgpd.policy.policing import Policing

MAP = "policy_events"
KEPT = 2048  # about a megabyte
PORTION = 512  # records at once; with the pause, 10,000 a second at most
PAUSE_S = 0.05
LOOK_S = 1.0

_BY_RULES = (PolicyVerdict.DENIED_EGRESS, PolicyVerdict.DENIED_INGRESS)
_WHY = {
    PolicyVerdict.LATE_FRAGMENT: "the port decides, and the fragment that has it was not seen",
    PolicyVerdict.NO_TRANSPORT: "where its ports should be cannot be found or read",
}


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow. `pod` empty: none that is known. `port` None: the protocol has none, or nobody saw it."""

    address: Address
    port: int | None
    pod: str

    def shown(self) -> dict[str, Any]:
        return {"address": str(self.address), "port": self.port, "pod": self.pod or None}


@dataclass(frozen=True, slots=True)
class Event:
    """A packet that was dropped, or would have been (`audited`), as the client began its flow.

    `at` is Unix seconds. `reply`: it went from server to client. `policies` isolate the pod that decided; None: not
    known. `near` is the rule that speaks of the other end, though not of this port. `lost` are the events of this
    pod that were not told since the one before.
    """

    at: float
    direction: Direction
    client: End
    server: End
    protocol: int
    verdict: PolicyVerdict
    audited: bool
    reply: bool
    policies: tuple[str, ...] | None
    near: str
    lost: int

    @property
    def fate(self) -> str:
        return "audited" if self.audited else "dropped"

    @property
    def why(self) -> str:
        if self.verdict not in _BY_RULES:
            return _WHY.get(self.verdict, self.verdict.name.lower())
        if self.policies is None:
            return f"no {self.direction} rule allows it"
        if not self.policies:
            return "Kubernetes has not shown the pod yet"
        near = f"; {self.near} speaks of other ports" if self.near else ""
        return f"no {self.direction} rule of {', '.join(self.policies)} allows it{near}"

    def shown(self) -> dict[str, Any]:
        """As `bgpd flows -o json` prints it."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        return {
            "at": at.replace("+00:00", "Z"),
            "verdict": self.fate,
            "reason": self.verdict.name.lower(),
            "direction": self.direction.value,
            "client": self.client.shown(),
            "server": self.server.shown(),
            "protocol": wording.protocol_name(self.protocol),
            "reply": self.reply,
            "policies": None if self.policies is None else list(self.policies),
            "why": self.why,
            "lost": self.lost,
        }


class Events:
    """`kept` are the newest, `told` and `lost` count from the start of the daemon. `listeners` hear all."""

    def __init__(
        self, policing: Policing, wall_clock_offset_s: float, listeners: Iterable[Callable[[Event], object]] = ()
    ) -> None:
        self._policing, self._offset_s = policing, wall_clock_offset_s
        self.kept: deque[Event] = deque(maxlen=KEPT)
        self.told = self.lost = 0
        self.problem = ""
        self._listeners = [*listeners]

    async def run(self) -> None:
        """Until cancelled; or until it is known that there is nothing to read, which is then a problem."""
        maps = self._policing.maps
        while not maps.have:  # they are in the kernel once they have been looked at
            await maps.wait_until(maps.kick(), LOOK_S)
        try:
            ring = RingBuffer(self._policing.datapath.installed().maps[MAP])
        except OSError as error:
            self.problem = f"the map {MAP} cannot be read: {error.strerror}; what is dropped is counted only"
            return
        with closing(ring):
            while True:
                await _readable(ring)
                for record in ring.take(PORTION):
                    self._add(record)
                await asyncio.sleep(PAUSE_S)

    @contextlib.contextmanager
    def heard_by(self, listener: Callable[[Event], object]) -> Iterator[None]:
        """Calls `listener`, which must not block, with each event while this lasts."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _add(self, record: bytes) -> None:
        event = self._read(record)
        self.kept.append(event)
        self.told += 1
        self.lost += event.lost
        for listener in self._listeners:
            listener(event)

    def _read(self, record: bytes) -> Event:
        (at_ns, client, server, _, cookie, lost, client_port, server_port, protocol, verdict, ingress, flags, _) = (
            layout.EVENT.unpack(record)
        )
        contents = self._policing.contents
        peer = contents.peers.get(server if ingress else client)
        number = 0 if peer is None else peer.ingress_set if ingress else peer.egress_set
        rules = contents.sets.get(number)
        near = contents.cookies.get(cookie)
        return Event(
            at=at_ns / 1e9 + self._offset_s,
            direction=Direction.INGRESS if ingress else Direction.EGRESS,
            client=self._end(client, client_port),
            server=self._end(server, server_port),
            protocol=protocol,
            verdict=PolicyVerdict(verdict),
            audited=bool(flags & EventFlag.EVENT_AUDITED),
            reply=bool(flags & EventFlag.EVENT_REPLY),
            policies=rules.policies if rules is not None else None,
            near=str(near) if near is not None else "",
            lost=lost,
        )

    def _end(self, address: bytes, port: bytes) -> End:
        pod = self._policing.owner(address) or ""
        return End(layout.read_address(address), int.from_bytes(port, "big") or None, pod)


async def _readable(ring: RingBuffer) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(ring.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(ring.fileno())
