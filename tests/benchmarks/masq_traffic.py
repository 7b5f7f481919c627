"""What masquerading costs the traffic: new connections per second, throughput of one that is open.

The contenders take turns, in another order each time, so that what the machine does meanwhile hits them all; a ratio
is the median over the rounds of ours divided by theirs of the same round. The destination of all traffic is in no
list: it is looked for in the whole list and masqueraded.

`none` is the same forwarding with nothing in the way, not even conntrack, which every way to masquerade needs and a
node with kube-proxy has anyway; so ours is divided by `conntrack` too, and by `masquerade` without a list.

What a connection costs its two ends is in the rate, and the more they do, the better everybody looks beside
`nothing`. These are a client and a server in Python that say a byte each. So the processor time is told too: on these
cables all that the kernel does for a packet is done in the time of the process that sends it.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import connections
from tests.benchmarks.footprint import cpu_s
from tests.benchmarks.masq_stage import FAR, Wire
from tests.benchmarks.report import Result
from tests.fabric.process import Process, poll

CONNECTION_WAYS = ("nothing", "conntrack", "masquerade", "iptables-1k", "iptables-16k", "ipset-16k", "bgpd")
STREAM_WAYS = ("nothing", "conntrack", "masquerade", "bgpd")
ROUNDS = 20
CONNECTIONS_S, STREAM_S = 0.5, 1
PORT, STREAM_PORT = 7000, 5201
DESTINATIONS = 4000  # each with ports of its own: no connection meets what is left of another
PROGRAMS = ("iperf3",)
_PROGRAM = str(Path(connections.__file__))


@dataclass(frozen=True, slots=True)
class Sample:
    """`rate` in connections or gigabits per second, `cpu_us` of both ends per connection or megabyte."""

    rate: float
    cpu_us: float


Samples = Mapping[str, Sequence[Sample]]


def connections_measured(wires: Mapping[str, Wire], rounds: int = ROUNDS) -> Samples:
    servers = {name: _server(wire) for name, wire in wires.items()}
    return _in_turns(wires, lambda name, wire: _connect(wire, servers[name]), rounds)


def streams_measured(wires: Mapping[str, Wire], rounds: int = ROUNDS) -> Samples:
    for wire in wires.values():
        server = wire.outside.popen(["iperf3", "--server", "--port", str(STREAM_PORT), "--forceflush"])
        server.wait_log("Server listening")
    return _in_turns(wires, lambda _, wire: _stream(wire), rounds)


def _in_turns(wires: Mapping[str, Wire], measure: Callable[[str, Wire], Sample], rounds: int) -> Samples:
    taken: dict[str, list[Sample]] = {name: [] for name in wires}
    rand = random.Random(1)
    for _ in range(rounds):
        for name in rand.sample(list(wires), len(wires)):
            taken[name].append(measure(name, wires[name]))
            wires[name].forget_flows()
    return taken


def _server(wire: Wire) -> Process:
    server = wire.outside.popen([sys.executable, "-I", _PROGRAM, "serve", str(PORT)], name="serve")
    probe = [sys.executable, "-I", _PROGRAM, "dial", str(FAR[1]), "1", str(PORT), "0.001"]
    poll(lambda: json.loads(wire.pod.run(probe).stdout)["opened"], 10.0, server.log_tail)
    return server


def _connect(wire: Wire, server: Process) -> Sample:
    before = cpu_s([server.pid])
    words = ["dial", str(FAR[1]), str(DESTINATIONS), str(PORT), str(CONNECTIONS_S)]
    said = json.loads(wire.pod.run([sys.executable, "-I", _PROGRAM, *words]).stdout)
    if said["failed"]:
        raise RuntimeError(f"{said['failed']:.0f} connections failed on the wire of {wire.name}")
    used_s = said["cpu_s"] + cpu_s([server.pid]) - before
    return Sample(said["opened"] / said["seconds"], 1e6 * used_s / said["opened"])


def _stream(wire: Wire) -> Sample:
    words = ["--client", str(FAR[1]), "--port", str(STREAM_PORT), "--time", str(STREAM_S), "--json"]
    end = json.loads(wire.pod.run(["iperf3", *words]).stdout)["end"]
    share = end["cpu_utilization_percent"]
    used_s = (share["host_total"] + share["remote_total"]) / 100 * end["sum_received"]["seconds"]
    return Sample(end["sum_received"]["bits_per_second"] / 1e9, 1e6 * used_s / (end["sum_received"]["bytes"] / 1e6))


# --- results --------------------------------------------------------------------------------------------------------


def connection_results(taken: Samples) -> list[Result]:
    rates = {name: statistics.median(it.rate for it in samples) for name, samples in taken.items()}
    costs = {name: statistics.median(it.cpu_us for it in samples) for name, samples in taken.items()}
    found = [
        _more("cps", rates.pop("bgpd"), "/s", rates),
        _share("cps_vs_none", taken, "nothing", 0.9),
        _share("cps_vs_conntrack", taken, "conntrack"),
        _share("cps_vs_masquerade", taken, "masquerade"),
        _share("cps_vs_ipset_16k", taken, "ipset-16k"),
        _share("cps_vs_iptables_1k", taken, "iptables-1k"),
        _share("cps_vs_iptables_16k", taken, "iptables-16k", 4.0),
    ]
    found.append(Result(name="connection_cpu_us", value=costs.pop("bgpd"), unit="us", beside=costs))
    return found


def stream_results(taken: Samples) -> list[Result]:
    rates = {name: statistics.median(it.rate for it in samples) for name, samples in taken.items()}
    costs = {name: statistics.median(it.cpu_us for it in samples) for name, samples in taken.items()}
    return [
        _more("throughput", rates.pop("bgpd"), "Gbit/s", rates),
        _share("throughput_vs_none", taken, "nothing", 0.95),
        _share("throughput_vs_conntrack", taken, "conntrack"),
        _share("throughput_vs_masquerade", taken, "masquerade"),
        Result(name="throughput_cpu_ms_per_gb", value=costs.pop("bgpd"), unit="ms", beside=costs),
    ]


def _more(name: str, value: float, unit: str, beside: Mapping[str, float]) -> Result:
    return Result(name=name, value=value, unit=unit, beside=beside, more_is_better=True)


def _share(name: str, taken: Samples, other: str, goal: float | None = None) -> Result:
    """Ours divided by the other's, the median of the rounds."""
    pairs = zip(taken["bgpd"], taken[other], strict=True)
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
    return Result(name=name, value=ratio, unit="x", goal=goal, more_is_better=True)
