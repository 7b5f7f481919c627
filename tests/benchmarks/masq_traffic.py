"""What masquerading costs the traffic: new connections per second, throughput of one that is open.

The contenders take turns, in another order each time, so that what the machine does meanwhile hits them all; a ratio
is the median over the rounds of ours divided by theirs of the same round. The destination of all traffic is in no
list: it is looked for in the whole list and masqueraded.

`nothing` is the same forwarding with nothing in the way, not even conntrack, which every way to masquerade needs and
a node with kube-proxy has anyway. So ours is also divided by `masquerade`, a rule without a list: what is between
those two is conntrack's and NAT's, and what is left is ours.

What a connection costs its two ends is in the rate, and the more they do, the better everybody looks beside
`nothing`. So the processor time is told too: on these cables all that the kernel does for a packet is done in the
time of the process that sends it, but for one part in a hundred.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import TypeAlias

from tests.benchmarks import connections
from tests.benchmarks.connections import Sample
from tests.benchmarks.masq_stage import FAR, Wire
from tests.benchmarks.report import Result

CONNECTION_WAYS = ("nothing", "conntrack", "masquerade", "iptables-1k", "iptables-16k", "ipset-16k", "bgpd")
STREAM_WAYS = ("nothing", "conntrack", "masquerade", "bgpd")
ROUNDS = 20
STREAM_S = 1
STREAM_PORT = 5201
PROGRAMS = ("iperf3", *connections.PROGRAMS)

Samples: TypeAlias = Mapping[str, Sequence[Sample]]


def connections_measured(wires: Mapping[str, Wire], rounds: int = ROUNDS) -> Samples:
    """Each time to another address: no connection meets what is left of one before."""
    servers = {name: connections.serve(wire) for name, wire in wires.items()}
    addresses = FAR.hosts()
    return in_turns(wires, lambda name, wire: connections.measured(wire, servers[name], next(addresses)), rounds)


def streams_measured(wires: Mapping[str, Wire], rounds: int = ROUNDS) -> Samples:
    for wire in wires.values():
        take_streams(wire)
    return in_turns(wires, lambda _, wire: stream(wire), rounds)


def in_turns(wires: Mapping[str, Wire], measure: Callable[[str, Wire], Sample], rounds: int) -> Samples:
    taken: dict[str, list[Sample]] = {name: [] for name in wires}
    rand = random.Random(1)
    for _ in range(rounds):
        for name in rand.sample(list(wires), len(wires)):
            taken[name].append(measure(name, wires[name]))
            wires[name].forget_flows()
    return taken


def take_streams(wire: Wire, port: int = STREAM_PORT) -> None:
    server = wire.outside.popen(["iperf3", "--server", "--port", str(port), "--forceflush"])
    server.wait_log("Server listening")


def stream(wire: Wire, destination: IPv4Address = FAR[1], port: int = STREAM_PORT) -> Sample:
    words = ["--client", str(destination), "--port", str(port), "--time", str(STREAM_S), "--json"]
    end = json.loads(wire.pod.run(["iperf3", *words]).stdout)["end"]
    share = end["cpu_utilization_percent"]
    used_s = (share["host_total"] + share["remote_total"]) / 100 * end["sum_received"]["seconds"]
    return Sample(end["sum_received"]["bits_per_second"] / 1e9, 1e6 * used_s / (end["sum_received"]["bytes"] / 1e6))


# --- results --------------------------------------------------------------------------------------------------------


def connection_results(taken: Samples) -> list[Result]:
    rates = {name: statistics.median(it.rate for it in samples) for name, samples in taken.items()}
    costs = {name: statistics.median(it.cpu_us for it in samples) for name, samples in taken.items()}
    return [
        _more("cps", rates.pop("bgpd"), "/s", rates),
        _share("cps_vs_none", taken, "nothing", 0.9),
        _share("cps_vs_masquerade", taken, "masquerade"),
        _share("cps_vs_iptables_16k", taken, "iptables-16k", 4.0),
        Result(name="connection_cpu_us", value=costs.pop("bgpd"), unit="us", beside=costs),
    ]


def stream_results(taken: Samples) -> list[Result]:
    rates = {name: statistics.median(it.rate for it in samples) for name, samples in taken.items()}
    costs = {name: statistics.median(it.cpu_us for it in samples) for name, samples in taken.items()}
    return [
        _more("throughput", rates.pop("bgpd"), "Gbit/s", rates),
        _share("throughput_vs_none", taken, "nothing", 0.95),
        Result(name="throughput_cpu_ms_per_gb", value=costs.pop("bgpd"), unit="ms", beside=costs),
    ]


def _more(name: str, value: float, unit: str, beside: Mapping[str, float]) -> Result:
    return Result(name=name, value=value, unit=unit, beside=beside, more_is_better=True)


def _share(name: str, taken: Samples, other: str, goal: float | None = None) -> Result:
    """Ours divided by the other's, the median of the rounds."""
    pairs = zip(taken["bgpd"], taken[other], strict=True)
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
    return Result(name=name, value=ratio, unit="x", goal=goal, more_is_better=True)
