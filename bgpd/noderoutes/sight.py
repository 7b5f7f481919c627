"""What can be seen of node routes in a running daemon: the answers of its commands, the figures for /metrics.

Reads and changes nothing. How a metric is called is decided by `observe.samples`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bgpd.model.node import Node
from bgpd.model.noderoute import DEVICE, Device, DeviceKey, Route, RouteKey
from bgpd.model.prefix import family_of, sort_key
from bgpd.noderoutes.noderouting import NodeRouting
from bgpd.observe.control import Handler, Progress
from bgpd.observe.samples.noderoutes import NodeRoutes
from bgpd.runtime.store import Store

FAMILIES, WAYS = ("ipv4", "ipv6"), ("host-gw", "vxlan")


class Sight:
    """Of one `routing`."""

    def __init__(self, routing: NodeRouting, nodes: Store[Mapping[str, Node]]) -> None:
        self._routing, self._nodes = routing, nodes

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {"noderoutes list": self._list}

    def status(self) -> dict[str, Any]:
        """The mode, how many routes there are by way, and how many prefixes go without."""
        device = self._routing.loop.have.get(DeviceKey())
        return {
            "mode": self._routing.mode.value,
            "routes": dict(self._counted()),
            "held": len(self._routing.plan.held),
            "unreachable": len(self._routing.plan.unreachable),
            "device": {"name": DEVICE, "mtu": device.mtu} if isinstance(device, Device) else None,
        }

    def figures(self) -> NodeRoutes:
        """What /metrics shows."""
        plan, loop = self._routing.plan, self._routing.loop
        routes = {key: way(value) for key, value in plan.want.items() if isinstance(value, Route)}
        return NodeRoutes(
            wanted=dict.fromkeys(itertools.product(FAMILIES, WAYS), 0)
            | Counter((family_of(key.prefix), how) for key, how in routes.items() if isinstance(key, RouteKey)),
            held=len(plan.held),
            unreachable=len(plan.unreachable),
            in_force=loop.ever_settled and not (loop.error or loop.trouble or plan.blocked),
        )

    async def _list(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        plan, loop = self._routing.plan, self._routing.loop
        held = self._routing.held
        own, rows = self._routing.node_name, []
        for node in sorted(self._nodes.newest.value.values(), key=lambda node: node.name):
            for prefix in sorted(node.pod_cidrs, key=sort_key) if node.name != own else ():
                key = RouteKey.of(prefix)
                there, trouble = loop.have.get(key), loop.trouble.get(key)
                why = held.get(prefix) or plan.unreachable.get((node.name, prefix), "")
                why = why or (trouble.reason if trouble else "" if there else plan.blocked or "not made yet")
                via, interface = (there.via, there.interface) if isinstance(there, Route) else (None, None)
                rows.append(
                    {
                        "prefix": str(prefix),
                        "node": node.name,
                        "via": str(via) if via else None,
                        "interface": interface,
                        "why": why or None,
                    }
                )
        return {"routes": rows}

    def _counted(self) -> Counter[str]:
        return Counter(way(route) for _, route in self._routing.routes)


def way(route: Route) -> str:
    """One of `WAYS`."""
    return "vxlan" if route.interface == DEVICE else "host-gw"
