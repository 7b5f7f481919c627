"""What enforcing policies costs the traffic: new connections per second, throughput of one that is open.

Connections are made one after the other (`serial`) and as a web client makes them (`http`). All that enforce have the
same policies: 10, or 1,000, that each select all 110 pods of the node and let them connect to ten pods elsewhere.
Every turn is to one of these, by another policy each time.

`conntrack` is what a node has that runs kube-proxy and enforces nothing, and what ours is measured against; `nothing`
has not even that. Of the bridge that hands its frames to nobody, no connection is tracked by anybody, and ours is
measured against that.

Each end of a stream has a processor of its own. `moving` is the ratio where the scheduler moves them about: then
segments come out of order behind a veth in some runs, also where nothing is enforced, and are sent again (`resent`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address

from tests.benchmarks import http, serial
from tests.benchmarks.masq_stage import POD, Wire
from tests.benchmarks.masq_traffic import stream, take_streams
from tests.benchmarks.policy_cluster import PORT, Tenant
from tests.benchmarks.report import Result
from tests.benchmarks.turns import Samples, costs, in_turns, medians, rates, share, value

STREAM_ROUNDS = 100  # in one round equal wires differ by some 7 %
MOVING_ROUNDS = 40
PROGRAMS = ("iperf3", *http.PROGRAMS)
FEW, MANY = 10, 1_000
ROUTED = "routed"
GOALS = {FEW: 1.0, MANY: 2.0}


def serial_measured(wires: Mapping[str, Wire], tenants: Mapping[int, Tenant]) -> Samples:
    """RuntimeError: a connection was translated."""
    destinations = {name: _allowed(name, tenants) for name in wires}
    return serial.taken(wires, lambda name: next(destinations[name]), lambda _: POD, PORT)


def http_measured(wires: Mapping[str, Wire], tenants: Mapping[int, Tenant]) -> Samples:
    """RuntimeError: not every connection was answered."""
    destinations = {name: _allowed(name, tenants) for name in wires}
    return http.taken(wires, lambda name: next(destinations[name]))


def streams_measured(
    wires: Mapping[str, Wire], of: Tenant, *, pinned: bool = True, rounds: int = STREAM_ROUNDS
) -> Samples:
    """Each to a peer of the last policy; see `listen`."""
    destination = next(of.allowed())
    return in_turns(wires, lambda _, wire: stream(wire, destination, PORT, pinned=pinned), rounds)


def listen(wires: Mapping[str, Wire]) -> None:
    """For streams."""
    for wire in wires.values():
        take_streams(wire, PORT)


def _allowed(name: str, tenants: Mapping[int, Tenant]) -> Iterator[IPv4Address]:
    """Where the pod of this contender may connect to; of who enforces nothing, anywhere."""
    count = name.rpartition("-")[2]
    return tenants[int(count) if count.isdigit() else MANY].allowed()


# --- results --------------------------------------------------------------------------------------------------------


def serial_results(taken: Samples) -> Iterator[Result]:
    yield from _connection_results("", taken, GOALS)


def http_results(taken: Samples) -> Iterator[Result]:
    yield from _connection_results("http_", taken, {})
    for count in GOALS:
        ours, others = _contenders(count, taken)
        waits = medians(taken, lambda it: it.latency_us)
        yield value(f"http_latency_{_label(count)}_policies_us", waits, ours, others, "us")


def _connection_results(prefix: str, taken: Samples, goals: Mapping[int, float]) -> Iterator[Result]:
    """The others are divided by as the best of their kind has it."""
    for count in GOALS:
        ours, others = _contenders(count, taken)
        label = f"{_label(count)}_policies"
        yield value(f"{prefix}cps_{label}", rates(taken), ours, others, "/s")
        for kind, goal in (("ipset", goals.get(count)), ("nftables", None)):
            best = max((name for name in others if name.startswith(kind)), key=rates(taken).__getitem__)
            yield share(f"{prefix}cps_vs_{kind}_{label}", taken, ours, best, goal)
        yield share(f"{prefix}cps_vs_conntrack_{label}", taken, ours, "conntrack")
        yield value(f"{prefix}connection_cpu_{label}_us", costs(taken), ours, others, "us")


def _contenders(count: int, taken: Samples) -> tuple[str, list[str]]:
    """Ours with so many policies; the others with as many, and those that enforce none."""
    ours = f"bgpd-{count}"
    same = [name for name in taken if name.endswith(f"-{count}") and name != ours]
    return ours, [*same, "conntrack", "nothing"]


def _label(count: int) -> str:
    return "1k" if count == MANY else str(count)


def stream_results(where: str, taken: Samples) -> Iterator[Result]:
    """The goal is for what is beside `conntrack`, where that is one of them."""
    (ours,) = (name for name in taken if name.startswith("bgpd"))
    others = [name for name in taken if name != ours]
    name = f"throughput_{where}"
    yield value(name, rates(taken), ours, others, "Gbit/s")
    yield share("throughput_vs_none" if where == ROUTED else f"{name}_vs_none", taken, ours, others[-1], 0.95)
    if others[-1] != "nothing":
        yield share(f"{name}_vs_nothing", taken, ours, "nothing")
    yield value(f"{name}_cpu_ms_per_gb", costs(taken), ours, others, "ms")


def moving_results(where: str, taken: Samples) -> Iterator[Result]:
    """Of streams whose ends are not pinned, and what was sent again."""
    (ours,) = (name for name in taken if name.startswith("bgpd"))
    others = [name for name in taken if name != ours]
    name = f"throughput_{where}_moving"
    yield share(f"{name}_vs_none", taken, ours, others[-1])
    yield value(f"{name}_resent", medians(taken, lambda it: it.resent), ours, others, "/GB")
