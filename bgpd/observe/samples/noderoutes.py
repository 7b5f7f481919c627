"""The metrics of routes to other nodes' pod CIDRs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class NodeRoutes:
    """`wanted` by family and way (host-gw, vxlan), `held` and `unreachable` are prefixes that get none."""

    wanted: Mapping[tuple[str, str], int]
    held: int
    unreachable: int
    in_force: bool


def samples(now: NodeRoutes | None) -> Iterator[Family]:
    wanted = gauge(
        "bgpd_node_routes_wanted", "Desired: routes to other nodes' pod CIDRs, by their way.", ["family", "way"]
    )
    without = gauge(
        "bgpd_node_routes_without",
        "Observed: other nodes' pod CIDRs that get no route or keep an old one (held: somebody else has one, or they "
        "overlap; unreachable: no way there); `bgpd status` names them.",
        ["why"],
    )
    in_force = gauge(
        "bgpd_node_routes_in_force",
        "Observed: 1 while the kernel has the routes that are wanted, else 0; `bgpd status` says why.",
    )
    if now is not None:
        for labels, count in now.wanted.items():
            wanted.add_metric(labels, count)
        without.add_metric(("held",), now.held)
        without.add_metric(("unreachable",), now.unreachable)
        in_force.add_metric((), now.in_force)
    yield from (wanted, without, in_force)
