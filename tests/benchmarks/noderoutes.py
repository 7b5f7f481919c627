"""Node routes of 1,000 nodes: programmed from nothing, then one of them moved; beside `ip -batch` doing the same.

Ours is a whole round of the daemon's own loop in this process: all is read back from the kernel (once, at the first),
planned, compared, written. Theirs is the program from its start to its end, given the finished text, which somebody
has to have written. A node has a pod CIDR of each family; a third of them is behind a router and takes VXLAN.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

from bgpd.config.schema import NodeRoutes, Vxlan
from bgpd.model.node import Node
from bgpd.model.noderoute import Key, RouteKey, Value
from bgpd.model.prefix import Prefix
from bgpd.netlink.route import PROTOCOL
from bgpd.noderoutes.plan import Planner, standing
from bgpd.noderoutes.target import Target, clear
from bgpd.runtime.reconcile import Desired, Reconciler, Round
from bgpd.runtime.store import Store
from tests.benchmarks.report import Result
from tests.fabric.netns import Lab
from tests.fabric.screen import Screen

PROGRAMS = ("ip",)
NODES, RUNS, CHANGES = 1000, 5, 30
OWN = Node("own", (ip_network("10.240.0.0/24"),), (ip_address("192.168.0.1"), ip_address("fd00::1")))


def run(screen: Screen) -> list[Result]:
    """Everything, in a namespace of its own."""
    screen.out.write(f"{NODES} nodes, {RUNS} times from nothing, {CHANGES} changes\n")
    with Lab() as lab:
        place, far = lab.namespace("routes"), lab.namespace("far")
        lab.link(place, "eth0", far, "eth0")
        place.add_address("eth0", "192.168.0.1/20", "fd00::1/64")
        found: list[Result] = []
        for mode, name in ((NodeRoutes.HOST_GW, ""), (NodeRoutes.AUTO, "_vxlan")):
            nodes = {node.name: node for node in (OWN, *(_node(number, mode) for number in range(1, NODES + 1)))}
            first, changed = place.call(partial(_measured, mode, nodes, lab.directory))
            theirs, their_change = place.call(partial(_batched, nodes)) if not name else ([], [])
            found += [
                Result(
                    name=f"routes{name}_1000_nodes_s",
                    value=statistics.median(first),
                    unit="s",
                    goal=1.0,
                    beside={"ip -batch": statistics.median(theirs)} if theirs else {},
                ),
                Result(
                    name=f"route{name}_change_1000_nodes_ms",
                    value=1e3 * statistics.median(changed),
                    unit="ms",
                    goal=20.0,
                    beside={"ip -batch": 1e3 * statistics.median(their_change)} if their_change else {},
                ),
            ]
        return found


class Ours:
    """The loop as the daemon has it, with Nodes from a store; `take` puts others there and does a round."""

    def __init__(self, mode: NodeRoutes) -> None:
        self._mode, self._planner = mode, Planner()
        self._nodes: Store[Mapping[str, Node]] = Store({})
        self._target = Target(self._prefixes, lambda: ())
        self.rounds: list[Round] = []
        self.loop: Reconciler[Key, Value] = Reconciler(
            "node_routes", self._desired, self._target, lambda key: key.order, self.rounds.append
        )

    async def take(self, nodes: Mapping[str, Node]) -> float:
        """Seconds from the new Nodes to the kernel having their routes."""
        began = time.perf_counter()
        self._nodes.publish(nodes)
        await self.loop.round()
        taken = time.perf_counter() - began
        assert self.loop.settled, (self.loop.error, dict(list(self.loop.trouble.items())[:3]))
        return taken

    def close(self) -> None:
        self._target.close()

    def _prefixes(self) -> set[Prefix]:
        return {prefix for node in self._nodes.newest.value.values() if node is not OWN for prefix in node.pod_cidrs}

    def _desired(self) -> Desired[Key, Value]:
        nodes = self._nodes.newest.value
        plan = self._planner.plan(self._mode, Vxlan(), OWN, nodes, self._target.seen.host)
        return Desired(standing(plan, self.loop.have), complete=not plan.blocked)


def _node(number: int, mode: NodeRoutes) -> Node:
    cidrs = (ip_network((int(ip_address("10.0.0.0")) + (number << 8), 24)), ip_network(f"fd10:0:{number:x}::/64"))
    subnet = "172.16" if mode is NodeRoutes.AUTO and number % 3 == 0 else "192.168"
    third, fourth = divmod(number + 1, 250)
    addresses = [ip_address(f"{subnet}.{third}.{fourth + 1}")]
    if subnet == "192.168":
        addresses.append(ip_address(f"fd00::{number + 1:x}"))
    return Node(f"node-{number}", cidrs, tuple(addresses))


def _moved(nodes: Mapping[str, Node], number: int) -> dict[str, Node]:
    """As `nodes`, one of them with an address of the same subnets that nobody else has."""
    name = f"node-{1 + 31 * number}"
    addresses = (ip_address(f"192.168.15.{number + 1}"), ip_address(f"fd00::f:{number + 1:x}"))
    return {**nodes, name: replace(nodes[name], internal_ips=addresses)}


def _measured(mode: NodeRoutes, nodes: Mapping[str, Node], directory: Path) -> tuple[list[float], list[float]]:
    """Seconds of each programming from nothing, and of each change."""

    async def measure(closing: contextlib.ExitStack) -> tuple[list[float], list[float]]:
        first: list[float] = []
        for _ in range(RUNS):
            clear(directory)
            ours = Ours(mode)
            first.append(await ours.take(nodes))
            closing.callback(ours.close)
        assert sum(isinstance(key, RouteKey) for key in ours.loop.have) == 2 * NODES
        current, changed = nodes, []
        for number in range(CHANGES):
            current = _moved(current, number)
            changed.append(await ours.take(current))
        before = dict(ours.loop.have)
        await ours.loop.round()
        ours.loop.kick(stale=True)
        await ours.loop.round()
        assert ours.loop.have == before, "the kernel has what was wanted"
        clear(directory)
        return first, changed

    with contextlib.ExitStack() as closing:
        return asyncio.run(measure(closing))


def _batched(nodes: Mapping[str, Node]) -> tuple[list[float], list[float]]:
    """As `_measured`, by the program; called in the namespace."""
    add = [_line("add", node, prefix) for node in nodes.values() if node is not OWN for prefix in node.pod_cidrs]
    first = []
    for _ in range(RUNS):
        for family in ("-4", "-6"):
            subprocess.run(["ip", family, "route", "flush", "proto", str(PROTOCOL)], check=True, capture_output=True)
        first.append(_ip(add))
    changed = []
    for number in range(CHANGES):
        node = _moved(nodes, number)[f"node-{1 + 31 * number}"]
        changed.append(_ip([_line("replace", node, prefix) for prefix in node.pod_cidrs]))
    for family in ("-4", "-6"):
        subprocess.run(["ip", family, "route", "flush", "proto", str(PROTOCOL)], check=True, capture_output=True)
    return first, changed


def _line(verb: str, node: Node, prefix: Prefix) -> str:
    via = next(address for address in node.internal_ips if address.version == prefix.version)
    return f"route {verb} {prefix} via {via} dev eth0 proto {PROTOCOL}"


def _ip(lines: list[str]) -> float:
    text = "\n".join(lines) + "\n"
    began = time.perf_counter()
    subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True, capture_output=True)
    return time.perf_counter() - began
