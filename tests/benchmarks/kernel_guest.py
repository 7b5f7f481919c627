"""What policy costs on the kernel that this runs on: `python -m tests.benchmarks.kernel_guest FILE`, as root.

A datagram there and back between two sockets of one process, so that nothing but the kernel's work is in it, with
policy and without, in turns: pod to pod on veths and on ipvlans, and from a macvlan to the wire. Both ends of the
pods' flow have a rule for its port. Memory is what less is available once every object has been loaded; what a
cluster adds to that does not depend on the kernel. Where a pod on an ipvlan can remove its filter, it does, and has
it back from the daemon's parts. Writes {name: number} to FILE; `tests.benchmarks.kernel` says what they mean.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import socket
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bgpd.datapath import links, loader
from bgpd.model.endpoint import IpvlanMode
from bgpd.netlink.clsact import Filters, Side
from bgpd.netlink.rtsocket import RtSocket
from bgpd.policy import parents, podhooks
from bgpd.policy.ondemand import PAUSE_S
from tests.benchmarks.masq_stage import bpffs
from tests.fabric import parent_node, policy_node
from tests.fabric.ipvlan_node import IpvlanNode
from tests.fabric.ipvlan_site import Site
from tests.fabric.macvlan_node import MacvlanNode
from tests.fabric.netns import Lab, Namespace
from tests.fabric.policy_node import PolicyNode
from tests.fabric.process import poll

ROUNDS, TRIPS = 7, 300
REMOVALS = 9
REST_S = 2.3 * PAUSE_S  # then what it has put back is no news any more, and it does not look by itself just yet
PORT, ALLOWED = 8080, 7
WAIT_S = 10.0


def main(file: Path) -> None:
    found: dict[str, float] = {}
    with Lab() as lab, bpffs(lab) as place:
        found["memory_mb"] = _memory_mb(place)
    with Lab() as lab, bpffs(lab) as place:
        found |= {f"veth_{way}_us": value for way, value in _veth(lab, place).items()}
    with Lab() as lab, bpffs(lab) as place:
        found |= {f"macvlan_{way}_us": value for way, value in _macvlan(lab, place).items()}
    with Lab() as lab, bpffs(lab) as place:
        found |= {f"ipvlan_{way}_us": value for way, value in _ipvlan(lab, place).items()}
    if not links.has_tcx():
        with Lab() as lab, bpffs(lab) as place:
            found |= _removed_filter(lab, place)
    file.write_text(json.dumps(found))


def _memory_mb(place: Path) -> float:
    before = _available_mb()
    directory = place / "bgpd"
    kept = [loader.install(loader.shipped(name), directory) for name in ("masq", "policy")]
    kept.append(parents.install(directory))
    return before - _available_mb()


def _available_mb() -> float:
    gc.collect()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    (found,) = re.findall(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found) / 1024


def _veth(lab: Lab, place: Path) -> dict[str, float]:
    with contextlib.closing(PolicyNode(lab, place)) as node:
        node.allow(ALLOWED, "c", "d", ports=[(socket.IPPROTO_UDP, PORT)])
        node.isolate("c", egress=ALLOWED)
        node.isolate("d", ingress=ALLOWED)
        ways = {"nothing": node.remove, "bgpd": node.enforcing}
        return _in_turns(ways, node.namespace("c"), node.namespace("d"), policy_node.IPV4.d)


def _macvlan(lab: Lab, place: Path) -> dict[str, float]:
    node = MacvlanNode(lab, place)
    node.allow(ALLOWED, "outside", ports=[(socket.IPPROTO_UDP, PORT)])
    node.isolate("a", egress=ALLOWED)
    ways = {"nothing": lambda: node.apply(None), "bgpd": node.enforcing}
    return _in_turns(ways, node.namespace("a"), node.outside, parent_node.IPV4.outside)


def _ipvlan(lab: Lab, place: Path) -> dict[str, float]:
    node = IpvlanNode(lab, place, IpvlanMode.L2)
    node.allow(ALLOWED, "a", "b", ports=[(socket.IPPROTO_UDP, PORT)])
    node.isolate("a", egress=ALLOWED)
    node.isolate("b", ingress=ALLOWED)
    ways = {"nothing": node.unhook, "bgpd": node.hook}
    return _in_turns(ways, node.namespace("a"), node.namespace("b"), parent_node.IPV4.b)


def _removed_filter(lab: Lab, place: Path) -> dict[str, float]:
    """Medians: of removals that come alone, and of those that follow at once.

    The pod is one of the runtime's chain, and all that the daemon does about policy is at work.
    """
    site = Site(lab, place)
    pod = site.pods["test-1"]

    def median(pause_s: float) -> float:
        return pod.call(lambda: statistics.median(_back_ms(pause_s) for _ in range(REMOVALS)))

    with site.workers[0].running() as worker:
        worker.runtime().add("test-1", pod.path, "test-1")
        return {"removed_filter_back_ms": median(REST_S), "filter_removed_again_back_ms": median(0)}


def _back_ms(pause_s: float) -> float:
    """In the pod, by itself: another `tc` takes half a second to start there."""
    time.sleep(pause_s)
    index, what = socket.if_nametoindex("eth0"), (Side.INGRESS, podhooks.FILTER)
    with RtSocket() as rtnetlink:
        filters = Filters(rtnetlink)
        filters.remove(index, *what)
        removed = time.perf_counter()
        poll(lambda: filters.first(index, *what) is not None, WAIT_S, lambda: "it does not come back", 0.005)
        return (time.perf_counter() - removed) * 1e3


def _in_turns(
    ways: Mapping[str, Callable[[], object]], client: Namespace, server: Namespace, to: str
) -> dict[str, float]:
    """The best turn of each way: whatever else the machine does only adds."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with (
        contextlib.closing(client.socket(socket.AF_INET, socket.SOCK_DGRAM)) as one,
        contextlib.closing(server.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other,
    ):
        other.bind((to, PORT))
        one.connect((to, PORT))
        for each in (one, other):
            each.settimeout(WAIT_S)
        for _ in range(ROUNDS):
            for name, prepare in ways.items():
                prepare()
                taken[name].append(statistics.median(_trip_us(one, other) for _ in range(TRIPS)))
    return {name: min(times) for name, times in taken.items()}


def _trip_us(one: socket.socket, other: socket.socket) -> float:
    started = time.perf_counter()
    one.send(b"x")
    other.sendto(*other.recvfrom(16))
    one.recv(16)
    return (time.perf_counter() - started) * 1e6


if __name__ == "__main__":
    main(Path(sys.argv[1]))
