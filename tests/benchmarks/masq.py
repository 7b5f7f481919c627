"""`tests/bench masq`: the numbers of masquerade, all in one run. This names and orders them; others measure."""

from __future__ import annotations

from tests.benchmarks import (
    http,
    masq_apply,
    masq_contenders,
    masq_flow,
    masq_latency,
    masq_memory,
    masq_packet,
    masq_traffic,
    serial,
)
from tests.benchmarks.masq_stage import MasqDaemon, Wire, bpffs
from tests.benchmarks.report import Result
from tests.fabric.netns import Lab
from tests.fabric.screen import Screen

PROGRAMS = (*masq_contenders.PROGRAMS, *masq_traffic.PROGRAMS)


def run(screen: Screen) -> list[Result]:
    """Under six minutes on two cores."""
    with Lab() as lab, bpffs(lab) as place:
        with screen.step("API server, a ConfigMap changed again and again"):
            found = masq_latency.results(lab, place)
        with screen.step("a long list from nothing, edits of it"):
            daemon = MasqDaemon(Wire(lab, "apply"), place).start()
            found += masq_apply.results(lab, place, daemon)
        with screen.step("memory"):
            found += masq_memory.results(lab, place, daemon)
    with Lab() as lab, bpffs(lab) as place:
        with screen.step("the program alone"):
            found += masq_packet.results(place)
        with screen.step("first and later packets of a flow"):
            found += masq_flow.results(lab, place)
        with screen.step(f"set up {', '.join(masq_traffic.CONNECTION_WAYS)}"):
            wires = masq_contenders.wires(lab, place, masq_traffic.CONNECTION_WAYS)
        with screen.step(f"{serial.ROUNDS} rounds of connections one after the other"):
            found += masq_traffic.serial_results(masq_traffic.serial_measured(wires))
        with screen.step(f"{http.ROUNDS} rounds of HTTP connections"):
            found += masq_traffic.http_results(masq_traffic.http_measured(wires))
        with screen.step(f"{masq_traffic.STREAM_ROUNDS} rounds of one stream"):
            found += masq_traffic.stream_results(masq_traffic.streams_measured(wires))
    return found
