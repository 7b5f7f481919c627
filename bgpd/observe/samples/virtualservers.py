"""The metrics of virtual servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class Server:
    """`members` are the local pods by state: up, down, unknown."""

    members: Mapping[str, int]
    served: bool
    last_resort: bool


@dataclass(frozen=True, slots=True)
class VirtualServers:
    """`servers` by the name of the ConfigMap; `refused` are ConfigMaps that are no virtual server."""

    servers: Mapping[str, Server]
    refused: int
    in_force: bool


def samples(now: VirtualServers | None) -> Iterator[Family]:
    members = gauge(
        "bgpd_virtual_server_members",
        "Observed: pods of this node behind a virtual server, by what its monitors say (up, down, unknown).",
        ["virtual_server", "state"],
    )
    served = gauge(
        "bgpd_virtual_server_served",
        "Observed: 1 while this node leads the virtual server's traffic to pods, else 0; `bgpd virtualservers list` "
        "says why.",
        ["virtual_server"],
    )
    last_resort = gauge(
        "bgpd_virtual_server_last_resort",
        "Observed: 1 while all pods have failed and are served all the same, as `virtualServers.whenDown` has it.",
        ["virtual_server"],
    )
    refused = gauge(
        "bgpd_virtual_servers_refused",
        "Observed: ConfigMaps with a virtual server's label that cannot be served; `bgpd status` names the faults.",
    )
    in_force = gauge(
        "bgpd_virtual_servers_in_force",
        "Observed: 1 while the kernel has the table that is wanted, else 0; `bgpd status` says why.",
    )
    if now is not None:
        for name, server in now.servers.items():
            for state, count in server.members.items():
                members.add_metric((name, state), count)
            served.add_metric((name,), server.served)
            last_resort.add_metric((name,), server.last_resort)
        refused.add_metric((), now.refused)
        in_force.add_metric((), now.in_force)
    yield from (members, served, last_resort, refused, in_force)
