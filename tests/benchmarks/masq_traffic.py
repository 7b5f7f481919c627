"""What masquerading costs the traffic: new connections per second, throughput of one that is open.

Connections are made in two ways: one after the other (`serial`), which is all of what the kernel does for one and
nothing else, and as a web client makes them (`http`), ten at a time with programs at both ends that do their part,
on all processors. Their destinations are in no list: they are looked for in the whole list and masqueraded. A stream
goes to what is listed, and so keeps its address, or to what is not.

Nobody who masquerades is `none`, a node as kube-proxy has it: connections are followed (`conntrack`). Ours is divided
by that, and by `masquerade` too, a rule without a list: what is between the two is NAT's, what is left is ours.
`nothing` is beside them: forwarding with nothing in the way, not even conntrack, without which nobody translates.

What a connection costs its two ends is in the rate, and the more they do, the better everybody looks beside
`nothing`. So the processor time is told too: on these cables all that the kernel does for a packet is done in the
time of the process that sends it, but for one part in a hundred.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from ipaddress import IPv4Address

from tests.benchmarks import http, serial
from tests.benchmarks.masq_contenders import source
from tests.benchmarks.masq_stage import FAR, LISTED, Wire
from tests.benchmarks.report import Result
from tests.benchmarks.turns import Sample, Samples, costs, in_turns, rates, share, value

NONE = "conntrack"
CONNECTION_WAYS = ("nothing", "conntrack", "masquerade", "iptables-1k", "iptables-16k", "ipset-16k", "bgpd")
KEPT, TRANSLATED = "kept", "translated"  # our two in place of one
STREAM_WAYS = ("nothing", "conntrack", "masquerade")
STREAM_ROUNDS = 40
STREAM_BYTES = 500_000_000
STREAM_PORT, SERIAL_PORT = 5201, 8080
PROGRAMS = ("iperf3", *http.PROGRAMS)


def serial_measured(wires: Mapping[str, Wire]) -> Samples:
    """RuntimeError: a connection was not translated, or was and should not be."""
    addresses = FAR.hosts()
    return serial.taken(wires, lambda _: next(addresses), source, SERIAL_PORT)


def http_measured(wires: Mapping[str, Wire]) -> Samples:
    """Each time to another address: no connection meets what is left of one before."""
    addresses = FAR.hosts()
    return http.taken(wires, lambda _: next(addresses))


def streams_measured(wires: Mapping[str, Wire], rounds: int = STREAM_ROUNDS) -> Samples:
    for wire in wires.values():
        take_streams(wire)
    contenders = {name: wires[name] for name in STREAM_WAYS}
    contenders |= dict.fromkeys((KEPT, TRANSLATED), wires["bgpd"])
    return in_turns(contenders, lambda name, wire: stream(wire, LISTED[1] if name == KEPT else FAR[1]), rounds)


def take_streams(wire: Wire, port: int = STREAM_PORT) -> None:
    server = wire.outside.popen(["iperf3", "--server", "--port", str(port), "--forceflush"])
    server.wait_log("Server listening")


def stream(wire: Wire, destination: IPv4Address, port: int = STREAM_PORT, *, pinned: bool = True) -> Sample:
    """A fraction of a second of it: of a busy machine's many short moments some are quiet.

    `pinned`: each end has a processor, so that where the scheduler happens to move them is not what is measured.
    """
    words = ["--client", str(destination), "--port", str(port), "--bytes", str(STREAM_BYTES), "--json"]
    processors = sorted(os.sched_getaffinity(0))
    words += ["--affinity", f"{processors[0]},{processors[-1]}"] if pinned else []
    return read_stream(wire.pod.run(["iperf3", *words]).stdout)


def read_stream(said: str) -> Sample:
    """What iperf3 tells of one."""
    end = json.loads(said)["end"]
    share_percent = end["cpu_utilization_percent"]
    used_s = (share_percent["host_total"] + share_percent["remote_total"]) / 100 * end["sum_received"]["seconds"]
    received_gb = end["sum_received"]["bytes"] / 1e9
    return Sample(
        rate=end["sum_received"]["bits_per_second"] / 1e9,
        cpu_us=1e3 * used_s / received_gb,
        resent=end["sum_sent"]["retransmits"] / received_gb,
    )


# --- results --------------------------------------------------------------------------------------------------------


def serial_results(taken: Samples) -> list[Result]:
    return [
        value("cps", rates(taken), "bgpd", _others(taken), "/s"),
        share("cps_vs_none", taken, "bgpd", NONE, 0.9),
        share("cps_vs_nothing", taken, "bgpd", "nothing"),
        share("cps_vs_masquerade", taken, "bgpd", "masquerade"),
        share("cps_vs_iptables_16k", taken, "bgpd", "iptables-16k", 4.0),
        value("connection_cpu_us", costs(taken), "bgpd", _others(taken), "us"),
    ]


def http_results(taken: Samples) -> list[Result]:
    return [
        value("http_cps", rates(taken), "bgpd", _others(taken), "/s"),
        share("http_cps_vs_none", taken, "bgpd", NONE),
        share("http_cps_vs_nothing", taken, "bgpd", "nothing"),
        share("http_cps_vs_masquerade", taken, "bgpd", "masquerade"),
        share("http_cps_vs_iptables_16k", taken, "bgpd", "iptables-16k"),
        value("http_connection_cpu_us", costs(taken), "bgpd", _others(taken), "us"),
    ]


def stream_results(taken: Samples) -> list[Result]:
    """The goal is for what is listed: that is what the list is for."""
    without = ("nothing", "conntrack")
    return [
        value("throughput", rates(taken), KEPT, without, "Gbit/s"),
        share("throughput_vs_none", taken, KEPT, NONE, 0.95),
        share("throughput_vs_nothing", taken, KEPT, "nothing"),
        value("throughput_cpu_ms_per_gb", costs(taken), KEPT, without, "ms"),
        value("throughput_translated", rates(taken), TRANSLATED, STREAM_WAYS, "Gbit/s"),
        share("throughput_translated_vs_none", taken, TRANSLATED, NONE),
        share("throughput_translated_vs_masquerade", taken, TRANSLATED, "masquerade"),
        value("throughput_translated_cpu_ms_per_gb", costs(taken), TRANSLATED, STREAM_WAYS, "ms"),
    ]


def _others(taken: Samples) -> list[str]:
    return [name for name in taken if name != "bgpd"]
