"""What node routes would come to on this node as it is now, for `bgpd check`: looks, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bgpd.config.schema import Config
from bgpd.model.node import Node
from bgpd.model.noderoute import Route, RouteKey
from bgpd.noderoutes import flannel
from bgpd.noderoutes.plan import plan
from bgpd.noderoutes.target import look, opened


def preview(config: Config, own: Node | None, nodes: Mapping[str, Node]) -> list[dict[str, Any]]:
    """A row for each pod CIDR of another node; one row without, when nothing at all would be done."""
    prefixes = frozenset(prefix for node in nodes.values() if node is not own for prefix in node.pod_cidrs)
    with opened() as routes:
        seen = look(routes, prefixes, flannel.signs(config.paths.flannel, config.paths.cni_conf))
    found = plan(config.node_routes, config.vxlan, own, nodes, seen.host)
    if found.blocked:
        return [{"prefix": None, "node": None, "via": None, "interface": None, "why": found.blocked}]
    rows = []
    for node in nodes.values():
        for prefix in node.pod_cidrs if node is not own else ():
            route = found.want.get(RouteKey.of(prefix))
            via, interface = (str(route.via), route.interface) if isinstance(route, Route) else (None, None)
            why = found.held.get(prefix) or found.unreachable.get((node.name, prefix))
            row = {"prefix": str(prefix), "node": node.name, "via": via, "interface": interface, "why": why}
            rows.append(row)
    return rows
