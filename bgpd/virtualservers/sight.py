"""What can be seen of virtual servers in a running daemon: the answers of its commands, the figures for /metrics.

Reads and changes nothing. How a metric is called is decided by `observe.samples`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from bgpd.model.virtualserver import Member, VirtualServer
from bgpd.observe.control import Handler, Progress
from bgpd.observe.samples.virtualservers import Server, VirtualServers
from bgpd.virtualservers.monitor import Check
from bgpd.virtualservers.plan import Served, state
from bgpd.virtualservers.serving import Serving

STATES = {True: "up", False: "down", None: "unknown"}


class Sight:
    """Of one `serving`."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {"virtualservers list": self._list}

    def status(self) -> dict[str, Any]:
        """How many there are, and how many of them are served."""
        readings = self._serving.readings
        return {
            "virtualServers": len(readings),
            "refused": sum(reading.server is None for reading in readings.values()),
            "served": sum(bool(each.in_service) for each in self._serving.served.values()),
            "warnings": [str(warning) for warning in self._serving.warnings],
        }

    def figures(self) -> VirtualServers:
        """What /metrics shows."""
        serving = self._serving
        servers = {}
        for name, each in serving.served.items():
            found = [STATES[self._state(each.pool.server, member)] for member in each.pool.members]
            counts = {word: found.count(word) for word in STATES.values()}
            servers[name] = Server(counts, served=self._served(each), last_resort=each.last_resort)
        return VirtualServers(
            servers=servers,
            refused=sum(reading.server is None for reading in serving.readings.values()),
            in_force=serving.loop.ever_settled and not (serving.loop.error or serving.loop.trouble),
        )

    async def _list(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        rows = []
        for name, reading in self._serving.readings.items():
            each = self._serving.served.get(name)
            rows.append(
                {
                    "name": name,
                    "address": str(reading.server.frontend.address) if reading.server else None,
                    "port": reading.server.frontend.port if reading.server else None,
                    "protocol": reading.server.frontend.protocol.name.lower() if reading.server else None,
                    "balance": reading.server.balance.value if reading.server else None,
                    "service": reading.server.service if reading.server else None,
                    "served": each is not None and self._served(each),
                    "lastResort": each is not None and each.last_resort,
                    "why": self._why(each) if each else "refused",
                    "members": [self._member(each, member) for member in each.pool.members] if each else [],
                    "faults": [str(fault) for fault in reading.faults],
                    "warnings": [str(warning) for warning in reading.warnings],
                }
            )
        return {"virtualServers": rows}

    def _served(self, each: Served) -> bool:
        return bool(each.in_service) and not self._serving.in_kernel(each.pool.server.frontend)

    def _why(self, each: Served) -> str | None:
        waits = self._serving.in_kernel(each.pool.server.frontend) if each.in_service else ""
        return "; ".join(filter(None, (each.why, waits))) or None

    def _state(self, server: VirtualServer, member: Member) -> bool | None:
        return state(self._serving.monitoring.of(server, member), server.monitors)

    def _rising(self, check: Check) -> str:
        """How far a new pod has come, of which too little is known yet."""
        rise = self._serving.rule().rise
        return "" if check.up is not None or check.failing else f"{check.streak} of {rise} successes so far"

    def _member(self, each: Served, member: Member) -> dict[str, Any]:
        server, now = each.pool.server, asyncio.get_running_loop().time()
        checks = self._serving.monitoring.of(server, member)
        return {
            "address": str(member.address),
            "port": member.port,
            "state": STATES[self._state(server, member)],
            "inService": member in each.in_service,
            "connections": self._serving.flows.open_to(server.frontend).get(member),
            "monitors": [
                {
                    "protocol": monitor.protocol.value,
                    "state": STATES[check.up],
                    "for_s": round(now - check.since, 1),
                    "lastFailure": check.reason or None,
                    "failing": check.failing,
                    "note": check.note or self._rising(check) or None,
                }
                for monitor, check in checks.items()
            ],
        }
