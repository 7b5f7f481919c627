"""The metrics of NetworkPolicy: pods, policies, maps and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class Policy:
    """`endpoints` by state, `in_force` by subsystem, `capacity` and `entries` by map; `policies` isolate pods here.

    `blocked` counts those of them that do not fit, by the map that is too small.

    `events_lost` counts since the daemon started, `packets` those that the kernel has judged, by verdict. What can be
    called is called by each scrape, in its thread.
    """

    endpoints: Mapping[str, int]
    policies: int
    blocked: Mapping[str, int]
    in_force: Mapping[str, bool]
    events_lost: Callable[[], int]
    capacity: Mapping[str, int]
    entries: Callable[[], Mapping[str, int]]
    packets: Callable[[], Mapping[str, int]]


def samples(now: Policy | None) -> Iterator[Family]:
    endpoints = gauge(
        "bgpd_policy_endpoints",
        "Observed: interfaces of this node's pods by how policy stands with them; `bgpd endpoints` names them.",
        ["state"],
    )
    policies = gauge("bgpd_policy_policies", "Desired: NetworkPolicies that isolate a pod of this node.")
    blocked = gauge(
        "bgpd_policy_blocked",
        "Observed: NetworkPolicies that do not fit into a map, their pods held back; `bgpd policy list` names them.",
        ["map"],
    )
    in_force = gauge(
        "bgpd_policy_in_force",
        "Observed: 1 while the kernel has what is wanted (maps, links, tables), else 0; `bgpd status` says why.",
        ["subsystem"],
    )
    entries = gauge("bgpd_policy_map_entries", "Observed: entries of a map that policy is made of.", ["map"])
    capacity = gauge("bgpd_policy_map_capacity", "Observed: entries that such a map has room for.", ["map"])
    packets = CounterMetricFamily(
        "bgpd_policy_packets",
        "Observed: packets of this node's pods that were judged, by verdict; audited ones pass and count twice.",
        labels=["verdict"],
    )
    lost = CounterMetricFamily(
        "bgpd_policy_events_lost",
        "Observed: dropped packets that `bgpd flows` does not show: over the rate of a pod, or for want of room.",
    )
    if now is not None:
        for state, count in now.endpoints.items():
            endpoints.add_metric((state,), count)
        policies.add_metric((), now.policies)
        for name, count in now.blocked.items():
            blocked.add_metric((name,), count)
        for subsystem, is_in_force in now.in_force.items():
            in_force.add_metric((subsystem,), is_in_force)
        for name, count in now.entries().items():
            entries.add_metric((name,), count)
        for name, count in now.capacity.items():
            capacity.add_metric((name,), count)
        for verdict, count in now.packets().items():
            packets.add_metric((verdict,), count)
        lost.add_metric((), now.events_lost())
    yield from (endpoints, policies, blocked, in_force, entries, capacity, packets, lost)
