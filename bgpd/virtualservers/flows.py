"""Counts the connections that members have open, and ends flows of datagrams that lead to pods out of service.

nf_tables cannot choose by the number of open connections, and IPVS, which can, is a module that many nodes lack.
So those are counted here every second, and slots are dealt so that whoever has fewer gets more of the next ones
(`deal`). Between two looks connections go by slots: least connections to within a second.

A flow of datagrams has no end that its client would notice: as long as it sends, conntrack leads it to the pod that
it began with. When that pod is out of service the entry is deleted, and the next datagram begins anew. A TCP
connection stays with its pod, which may finish it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from bgpd.model.policy import Protocol
from bgpd.model.virtualserver import Frontend, Member
from bgpd.netlink.conntrack import Conntrack

EVERY_S = 1.0
SHARE = 1 / 50  # counting takes at most this share of the time
REMEDY = "is the module nf_conntrack_netlink there, and CAP_NET_ADMIN?"


class Flows:
    """`problem` is why connection tracking cannot be asked; empty when it can."""

    def __init__(self) -> None:
        self.problem = ""
        self._open: Mapping[Frontend, Mapping[Member, int]] = {}
        self._led: Mapping[Frontend, frozenset[Member]] = {}
        self._strayed: dict[Frontend, frozenset[Member]] = {}
        self._wake = asyncio.Event()

    def open_to(self, frontend: Frontend) -> Mapping[Member, int]:
        """By member; one that is not named has none."""
        return self._open.get(frontend, {})

    def settle(self, led: Mapping[Frontend, frozenset[Member]]) -> None:
        """Where the kernel leads traffic from now on. Flows of datagrams that lead elsewhere are forgotten."""
        for frontend in led.keys() | self._led.keys():
            members = led.get(frontend, frozenset())
            if frontend.protocol is Protocol.UDP and members != self._led.get(frontend):
                self._strayed[frontend] = members
                self._wake.set()
        self._led = led

    async def run(self, counted: Callable[[], Collection[Frontend]], changed: Callable[[], object]) -> None:
        """Until cancelled. `counted` says whose connections count, `changed` is called with new counts."""
        wait_s = EVERY_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()
            strayed, self._strayed = self._strayed, {}
            wanted = list(counted())
            if not strayed and not wanted:
                self.problem, self._open = "", {}  # of connections that nobody asks about any more
                continue
            began = time.monotonic()
            try:
                found = await asyncio.to_thread(_look, wanted, strayed)
            except OSError as error:
                self.problem = f"connections cannot be looked at: {error.strerror or error}; {REMEDY}"
                self._strayed = strayed | self._strayed
                continue
            self.problem = ""
            wait_s = max(EVERY_S, (time.monotonic() - began) / SHARE)
            if found != self._open:
                self._open = found
                changed()


def _look(
    counted: Collection[Frontend], strayed: Mapping[Frontend, frozenset[Member]]
) -> dict[Frontend, dict[Member, int]]:
    with contextlib.closing(Conntrack()) as conntrack:
        for frontend, members in strayed.items():
            for flow in conntrack.flows(frontend.address, frontend.protocol, frontend.port):
                if Member(*flow.answered_by) not in members:
                    conntrack.forget(frontend.address.version, flow)
        return {
            frontend: dict(
                Counter(
                    Member(*flow.answered_by)
                    for flow in conntrack.flows(frontend.address, frontend.protocol, frontend.port)
                    if not flow.ends
                )
            )
            for frontend in counted
        }
