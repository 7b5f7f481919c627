"""Every case of `tests.cyclonus` with real packets between the pods of one node, which the whole daemon polices.

The pods have the addresses of the data, for its ipBlocks name them. On veth and on macvlan every step is walked.
Where all are behind one bridge that hands its frames to nobody, it is every fourth unless BGPD_CONFORMANCE is `all`:
the same rules are read by the same program there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests import cyclonus
from tests.cyclonus import ALLOWED, Row
from tests.fabric import plugin
from tests.fabric.macvlan_node import macvlan
from tests.fabric.masq_node import alone
from tests.fabric.netns import Lab, Namespace
from tests.fabric.policy_node import BRIDGE_NF, link
from tests.fabric.policy_site import NODE, Cluster, namespace, node_object, pod
from tests.fabric.probes import End, How, Probe, Prober

pytestmark = [pytest.mark.needs("nft", "mount"), cyclonus.needed]

GATEWAY = "192.168.100.1"
HOST_ADDRESS = "192.0.2.1"
PORTS = (80, 81)
PARENTS = ("eth0", "eth1")
_KIND = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}  # not all of the data say so
HOWS = (How.TCP, How.UDP, How.SCTP)
SHARE = 1 if os.environ.get("BGPD_CONFORMANCE") == "all" else 4


class Pods(Protocol):
    """A namespace of the node `node` for each address."""

    node: Namespace
    by_address: dict[str, Namespace]

    def start(self, cluster: Cluster) -> None:
        """The daemon, which knows them from then on."""


class VethPods:
    """Behind the node's bridge, or on cables of their own. They ran before the daemon, and it has no plugin."""

    def __init__(self, lab: Lab, bridged: Iterable[str], routed: Iterable[str], *, br_netfilter: bool) -> None:
        self.bridged = list(bridged)
        self.node = node = lab.namespace("node", forwarding=True)
        node.sysctl(dict.fromkeys(BRIDGE_NF, "1" if br_netfilter else "0"))
        lab.bridge(node, "cni0")
        node.add_address("cni0", alone(GATEWAY))
        self.by_address = {address: self._bridged(lab, address) for address in self.bridged}
        self.by_address |= {address: self._routed(lab, address) for address in routed}

    def start(self, cluster: Cluster) -> None:
        cluster.start()

    def _bridged(self, lab: Lab, address: str) -> Namespace:
        made = lab.namespace(f"pod-{address}")
        lab.plug(made, "eth0", self.node, _port(address), "cni0")
        made.add_address("eth0", alone(address))
        for other in {GATEWAY, *self.bridged} - {address}:
            made.add_route(alone(other), dev="eth0")
        made.add_route("default", via=GATEWAY)
        self.node.add_route(alone(address), dev="cni0")
        return made

    def _routed(self, lab: Lab, address: str) -> Namespace:
        made = lab.namespace(f"pod-{address}")
        lab.link(made, "eth0", self.node, _port(address))
        made.add_address("eth0", alone(address))
        made.add_route(alone(GATEWAY), dev="eth0")
        made.add_route("default", via=GATEWAY)
        self.node.add_address(_port(address), alone(GATEWAY))
        self.node.add_route(alone(address), dev=_port(address))
        return made


class MacvlanPods:
    """In turn at each of the node's two uplinks, which a switch joins. Each is attached through the plugin, and has
    the mode that our conflist gives it."""

    def __init__(self, lab: Lab, addresses: Iterable[str]) -> None:
        self.node, switch = lab.namespace("node"), lab.namespace("switch")
        lab.bridge(switch)
        for parent in PARENTS:
            lab.plug(self.node, parent, switch, parent)
        self.by_address = {address: lab.namespace(f"pod-{address}") for address in addresses}
        for (address, made), parent in zip(self.by_address.items(), itertools.cycle(PARENTS), strict=False):
            macvlan(self.node, parent, made, "vepa")
            made.add_address("eth0", f"{address}/24")

    def start(self, cluster: Cluster) -> None:
        cluster.chain()
        cluster.start()
        for address, made in self.by_address.items():
            assert plugin.add(cluster.node, made, link(made, "eth0")[1], [f"{address}/24"]) == 0, address


def _port(address: str) -> str:
    return f"port-{address.rpartition('.')[2]}"


class Walk:
    """Takes the daemon from step to step and asks every row of each."""

    def __init__(self, pods: Pods, bpffs: Path) -> None:
        self._pods, self.cluster = pods, Cluster(pods.node, bpffs)
        ends = {address: End(each, {4: address}) for address, each in pods.by_address.items()}
        self.prober = Prober(ends, PORTS, HOWS)
        self.steps = self.rows = 0

    def step(self, step: dict[str, Any], where: str) -> None:
        cluster, addresses = self.cluster, {f"{it['Namespace']}/{it['Name']}": it["IP"] for it in step["pods"]}
        cluster.objects.clear()
        cluster.put(node_object(NODE, [HOST_ADDRESS]))
        cluster.put(*(namespace(name, labels) for name, labels in step["namespaces"].items()))
        cluster.put(
            *(
                pod(it["Namespace"], it["Name"], [it["IP"]], it["Labels"], ports=cyclonus.CONTAINER_PORTS)
                for it in step["pods"]
            )
        )
        cluster.put(*(_KIND | content for content in step["policies"]))
        if self.steps:
            cluster.apply()
        else:
            self._pods.start(cluster)
        asked = {probe(row, addresses): row.combined == ALLOWED for row in cyclonus.rows(step)}
        passed = self.prober.passing(asked)
        wrong = [it for it, wanted in asked.items() if wanted != (it in passed)]
        assert not wrong, f"{where}: {len(wrong)} of {len(asked)} rows are wrong: {wrong[:5]}"
        assert not cluster.problems()
        self.steps, self.rows = self.steps + 1, self.rows + len(asked)


def probe(row: Row, addresses: dict[str, str]) -> Probe:
    return Probe(addresses[row.client], addresses[row.server], How[row.protocol], row.port)


@contextlib.contextmanager
def walking(pods: Pods, bpffs: Path) -> Iterator[Walk]:
    """Says how far it got and how long that took."""
    walk, started = Walk(pods, bpffs), time.monotonic()
    try:
        yield walk
    finally:
        walk.prober.close()
        print(f"\n{walk.steps} steps, {walk.rows:,} rows, in {time.monotonic() - started:.0f} s")


def all_steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for case in cyclonus.cases():
        for number, step in enumerate(case["steps"]):
            yield f"case {case['i']} ({case['desc']}), step {number}", step


def addresses_of(steps: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    return sorted({pod["IP"] for _, step in steps for pod in step["pods"]})


def test_every_row_between_bridged_and_routed_pods(lab: Lab, bpffs: Path) -> None:
    """Every other pod is behind the bridge, with br_netfilter."""
    steps = list(all_steps())
    addresses = addresses_of(steps)
    with walking(VethPods(lab, addresses[::2], addresses[1::2], br_netfilter=True), bpffs) as walk:
        for where, step in steps:
            walk.step(step, where)
    assert (walk.steps, walk.rows) == (cyclonus.STEPS, cyclonus.ROWS)


def test_every_row_between_pods_on_macvlans(lab: Lab, bpffs: Path) -> None:
    """Of one parent, and of one and the other over the wire."""
    steps = list(all_steps())
    with walking(MacvlanPods(lab, addresses_of(steps)), bpffs) as walk:
        for where, step in steps:
            walk.step(step, where)
    assert (walk.steps, walk.rows) == (cyclonus.STEPS, cyclonus.ROWS)


def test_rows_between_pods_of_a_bridge_alone(lab: Lab, bpffs: Path) -> None:
    """Where connection tracking sees nothing and the program tracks flows itself."""
    steps = list(all_steps())
    with walking(VethPods(lab, addresses_of(steps), (), br_netfilter=False), bpffs) as walk:
        for where, step in steps[::SHARE]:
            walk.step(step, where)
    assert walk.steps == cyclonus.STEPS // SHARE
