"""What enforcing policies costs the traffic: new connections per second, throughput of one that is open.

The contenders take turns, in another order each time, so that what the machine does meanwhile hits them all; a ratio
is the median over the rounds of ours divided by theirs of the same round. All that enforce have the same policies:
10, or 1,000, that each select all 110 pods of the node and let them connect to ten pods elsewhere. Every connection
is to one of these, by another policy each time.

`conntrack` is what a node has that runs kube-proxy and enforces nothing, and what ours is measured against; `nothing`
has not even that. Of the bridge that hands its frames to nobody, no connection is tracked by anybody, and ours is
measured against that.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from ipaddress import IPv4Address

from tests.benchmarks import http
from tests.benchmarks.masq_stage import Wire
from tests.benchmarks.masq_traffic import stream, take_streams
from tests.benchmarks.policy_cluster import PORT, Tenant
from tests.benchmarks.report import Result
from tests.benchmarks.turns import Sample, Samples, in_turns

ROUNDS = 10
PROGRAMS = ("iperf3", *http.PROGRAMS)
FEW, MANY = 10, 1_000
ROUTED = "routed"
GOALS = {FEW: 1.0, MANY: 2.0}


def connections_measured(wires: Mapping[str, Wire], tenants: Mapping[int, Tenant], rounds: int = ROUNDS) -> Samples:
    """RuntimeError: not every connection was answered."""
    servers = {name: http.serve(wire) for name, wire in wires.items()}
    destinations = {name: _allowed(name, tenants) for name in wires}

    def measure(name: str, wire: Wire) -> Sample:
        return http.measured(wire, servers[name], next(destinations[name]))

    taken = in_turns(wires, measure, rounds)
    for server in servers.values():
        server.stop()
    return taken


def streams_measured(wires: Mapping[str, Wire], of: Tenant, rounds: int = ROUNDS) -> Samples:
    """Each to a peer of the last policy."""
    for wire in wires.values():
        take_streams(wire, PORT)
    destination = next(of.allowed())
    return in_turns(wires, lambda _, wire: stream(wire, destination, PORT), rounds)


def _allowed(name: str, tenants: Mapping[int, Tenant]) -> Iterator[IPv4Address]:
    """Where the pod of this contender may connect to; of who enforces nothing, anywhere."""
    count = name.rpartition("-")[2]
    return tenants[int(count) if count.isdigit() else MANY].allowed()


# --- results --------------------------------------------------------------------------------------------------------


def connection_results(taken: Samples) -> Iterator[Result]:
    rates = {name: statistics.median(it.rate for it in samples) for name, samples in taken.items()}
    costs = {name: statistics.median(it.cpu_us for it in samples) for name, samples in taken.items()}
    waits = {name: statistics.median(it.latency_us for it in samples) for name, samples in taken.items()}
    for count, goal in GOALS.items():
        ours, label = f"bgpd-{count}", "1k" if count == MANY else str(count)
        others = [name for name in taken if name.endswith(f"-{count}") and name != ours]
        beside = partial(_beside, [*others, "conntrack", "nothing"])
        yield Result(
            name=f"cps_{label}_policies", value=rates[ours], unit="/s", beside=beside(rates), more_is_better=True
        )
        for kind in ("ipset", "nftables"):
            best = max((name for name in others if name.startswith(kind)), key=rates.__getitem__)
            name = f"cps_vs_{kind}_{label}_policies"
            yield _share(name, taken, ours, best, goal if kind == "ipset" else None)
        yield Result(name=f"latency_{label}_policies_us", value=waits[ours], unit="us", beside=beside(waits))
        yield Result(name=f"connection_cpu_{label}_policies_us", value=costs[ours], unit="us", beside=beside(costs))


def stream_results(where: str, taken: Samples) -> Iterator[Result]:
    """The goal is for what is beside `conntrack`, where that is one of them."""
    (ours,) = (name for name in taken if name.startswith("bgpd"))
    others = [name for name in taken if name != ours]
    rates = {name: statistics.median(it.rate for it in samples) for name, samples in taken.items()}
    costs = {name: statistics.median(it.cpu_us for it in samples) for name, samples in taken.items()}
    share = "throughput_vs_none" if where == ROUTED else f"throughput_{where}_vs_none"
    yield Result(
        name=f"throughput_{where}",
        value=rates[ours],
        unit="Gbit/s",
        beside=_beside(others, rates),
        more_is_better=True,
    )
    yield _share(share, taken, ours, others[-1], 0.95)
    if others[-1] != "nothing":
        yield _share(f"throughput_{where}_vs_nothing", taken, ours, "nothing")
    yield Result(
        name=f"throughput_{where}_cpu_ms_per_gb", value=costs[ours], unit="ms", beside=_beside(others, costs)
    )


def _beside(names: list[str], values: Mapping[str, float]) -> dict[str, float]:
    return {name: values[name] for name in names}


def _share(name: str, taken: Samples, ours: str, other: str, goal: float | None = None) -> Result:
    """Ours divided by the other's, the median of the rounds."""
    pairs = zip(taken[ours], taken[other], strict=True)
    ratio = statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)
    return Result(name=name, value=ratio, unit="x", goal=goal, more_is_better=True)
