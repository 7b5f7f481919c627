"""`tests/bench policy`: the numbers of NetworkPolicy, all in one run. This names and orders them; others measure."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from tests.benchmarks import (
    hostroutes_memory,
    http,
    policy_cni,
    policy_contenders,
    policy_first,
    policy_latency,
    policy_packet,
    policy_sync,
    policy_traffic,
    serial,
)
from tests.benchmarks.masq_stage import Wire, bpffs
from tests.benchmarks.policy_contenders import WHO, tenant, wires
from tests.benchmarks.policy_stage import BareBridgedWire, BridgedWire, stage, whole_cluster
from tests.benchmarks.policy_traffic import (
    FEW,
    MANY,
    MOVING_ROUNDS,
    ROUTED,
    STREAM_ROUNDS,
    http_measured,
    http_results,
    listen,
    moving_results,
    serial_measured,
    serial_results,
    stream_results,
    streams_measured,
)
from tests.benchmarks.report import Result
from tests.fabric.netns import Lab
from tests.fabric.screen import Screen

PROGRAMS = (*policy_contenders.PROGRAMS, *policy_traffic.PROGRAMS, *policy_cni.PROGRAMS)
NODE = "worker1"
CONNECTION_WAYS = ("nothing", "conntrack", *(f"{who}-{count}" for count in (FEW, MANY) for who in WHO))
_OURS = f"bgpd-{MANY}"
STREAM_WAYS: Mapping[str, tuple[type[Wire], Sequence[str]]] = {
    ROUTED: (Wire, ("nothing", "conntrack", _OURS)),
    "bridged": (BridgedWire, ("nothing", "conntrack", _OURS)),
    "bridge_alone": (BareBridgedWire, ("nothing", _OURS)),
}


def run(screen: Screen) -> list[Result]:
    """Under ten minutes on two cores."""
    return [*_cluster(screen), *_traffic(screen)]


def _cluster(screen: Screen) -> list[Result]:
    """What one daemon does among 10,000 pods."""
    found: list[Result] = []
    with Lab() as lab, bpffs(lab) as place, contextlib.ExitStack() as stack:
        with screen.step("API server with 10,000 pods"):
            ready = stack.enter_context(stage(lab, place, whole_cluster(NODE)))
            wire = Wire(lab, "node")
            cluster = ready.join(NODE, wire.node)
        with screen.step("first synchronisation"):
            found += policy_sync.results(ready, cluster)
        with screen.step("the same pods followed for their addresses alone"):
            found += hostroutes_memory.results(lab, ready)
        with screen.step("policies and labels changed again and again"):
            found += policy_latency.results(ready, wire)
        with screen.step(f"{policy_cni.ADDS} pods attached one by one, {policy_cni.AT_ONCE} at once"):
            found += policy_cni.results(ready)
    with Lab() as lab, bpffs(lab) as place, screen.step("the programs alone"):
        found += policy_packet.results(place)
    return found


def _traffic(screen: Screen) -> list[Result]:
    """Who enforces, on wires of their own."""
    tenants = {count: tenant(count) for count in (FEW, MANY)}
    objects = [each for of in tenants.values() for each in of.objects()]
    with Lab() as lab, bpffs(lab) as place, stage(lab, place, objects) as ready:
        with screen.step(f"set up {', '.join(CONNECTION_WAYS)}"):
            contenders = wires(ready, tenants.values(), Wire, CONNECTION_WAYS)
        with screen.step(f"{serial.ROUNDS} rounds of connections one after the other"):
            found = [*serial_results(serial_measured(contenders, tenants))]
        with screen.step(f"{http.ROUNDS} rounds of HTTP connections"):
            found += http_results(http_measured(contenders, tenants))
        made: dict[str, Mapping[str, Wire]] = {}
        for where, (make, names) in STREAM_WAYS.items():
            with screen.step(f"{STREAM_ROUNDS} rounds of one stream, {where}"):
                few = made[where] = wires(ready, tenants.values(), make, names, where)
                listen(few)
                found += stream_results(where, streams_measured(few, tenants[MANY]))
                if where == ROUTED:
                    moving = streams_measured(few, tenants[MANY], pinned=False, rounds=MOVING_ROUNDS)
                    found += moving_results(where, moving)
        with screen.step(f"{policy_first.ROUNDS} rounds of {policy_first.FLOWS} first packets, bridged"):
            found += policy_first.results(made["bridge_alone"], made["bridged"], tenants[MANY])
    return found
