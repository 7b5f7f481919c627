"""The metrics of addresses of single pods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class HostRoutes:
    """`wanted` by family, `withheld` by the kind of reason."""

    wanted: Mapping[str, int]
    withheld: Mapping[str, int]


def samples(now: HostRoutes | None) -> Iterator[Family]:
    wanted = gauge(
        "bgpd_host_routes_wanted", "Desired: addresses of this node's pods that are announced one by one.", ["family"]
    )
    withheld = gauge(
        "bgpd_host_routes_withheld",
        "Observed: such addresses that are not announced (conflict: another pod has it too and goes first; moved: "
        "the pod is ending and another has it; hostNetwork: it is the node's own); `bgpd status` names them.",
        ["why"],
    )
    if now is not None:
        for family, count in now.wanted.items():
            wanted.add_metric((family,), count)
        for why, count in now.withheld.items():
            withheld.add_metric((why,), count)
    yield from (wanted, withheld)
