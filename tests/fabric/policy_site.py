"""The whole daemon that enforces NetworkPolicy: the manifests it reads, the probes that its pods send.

This decides how objects are written, how a test knows that what it wrote is in the kernel, and how the kernel is
looked at behind the daemon's back. It does not decide what should get through. `PolicySite` has the pods of
`policy_node`; `Cluster` needs but a namespace in which a node is.

All objects are in one file, so that a change of several is one change. A *fence* tells when the daemon has got there:
a pod that nobody has, isolated by a policy of its own, whose address changes with every file.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from bgpd.datapath import layout, pins
from bgpd.datapath.layout import PolicyVerdict
from bgpd.datapath.loader import Program
from bgpd.datapath.maps import Map
from bgpd.netlink.nftables import Connection
from bgpd.netlink.owntables import TableActuator
from bgpd.policy.table import TABLES, Table
from tests.fabric import plugin
from tests.fabric.masq_node import NETLINK_NETFILTER
from tests.fabric.netns import Lab, Namespace
from tests.fabric.node import BgpdNode
from tests.fabric.policy_node import PLANS, PORT, PolicyPlace
from tests.fabric.probes import End, How, Probe, Prober
from tests.fabric.process import poll
from tests.fabric.rules_by_hand import verdicts
from tests.files import rewrite

Object: TypeAlias = dict[str, Any]

NODE = "worker1"
OTHER_PORT = PORT + 1
FENCE, FENCES = "fence", ip_network("100.64.0.0/10")
IN_FORCE_S = 20.0


class Cluster:
    """A node of the product that reads `objects`, by kind and key. Where it pins is `pins`."""

    def __init__(self, node: Namespace, bpffs: Path, name: str = NODE, **sections: Any) -> None:
        nobody = {"name": "nobody", "peerAddress": "192.0.2.254", "peerASN": 64512}
        bgp = {"localASN": 64512, "peers": [nobody], "export": {"allow": ["10.0.0.0/8"]}}
        self.pins = bpffs / "own"
        self.node = BgpdNode(node, name, bgp, policy={"enabled": True}, **sections)
        self.node.config["paths"]["bpf"] = str(self.pins)
        self.node.write_config()
        self.file = self.node.manifests / "cluster.yaml"
        self.objects: dict[tuple[str, str], Object] = {}
        self._written: set[tuple[str, str]] = set()
        self._turn = self._fence = 0  # of the pod's address, and of its name

    # --- objects --------------------------------------------------------------------------------------------------

    def put(self, *objects: Object) -> None:
        self.objects |= {key_of(each): each for each in objects}

    def drop(self, *objects: Object) -> None:
        for each in objects:
            del self.objects[key_of(each)]

    def write(self, *, removed: bool = False) -> None:
        """The file, in one step. `removed`: another file no longer has something.

        It moves the fence that `wait_in_force` looks for.
        """
        self._turn += 1
        if removed or self._written - self.objects.keys():
            self._fence = self._turn
        fence = [
            namespace(FENCE),
            pod(FENCE, f"{FENCE}-{self._fence}", [str(FENCES[self._turn])]),
            policy(FENCE, FENCE, types=["Ingress"]),
        ]
        self._written = set(self.objects)
        rewrite(self.file, yaml.dump_all([*self.objects.values(), *fence], Dumper=yaml.CSafeDumper))

    def wait_in_force(self) -> None:
        """Until the last file is in the kernel, all of it: what it no longer names is let go after a while."""
        now, before = (layout.policy_address(FENCES[turn]) for turn in (self._turn, self._turn - 1))
        peers = self.map("policy_peers")
        poll(
            lambda: peers.lookup(now) is not None and peers.lookup(before) is None,
            IN_FORCE_S,
            lambda: self.node.bgpd("status", check=False),
        )

    def apply(self, *objects: Object) -> None:
        """Puts them, and returns when all objects are in force."""
        self.put(*objects)
        self.write()
        self.wait_in_force()

    def settle(self) -> None:
        """Returns when what another file has or no longer has is in force."""
        self.write(removed=True)
        self.wait_in_force()

    def remove(self, *objects: Object) -> None:
        self.drop(*objects)
        self.apply()

    # --- the daemon -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """With all objects in force, and the tables that ask."""
        self.write()
        self.node.start_daemon()
        poll((self.pins / "policy_peers").exists, IN_FORCE_S, lambda: self.node.bgpd("status", check=False))
        self.wait_in_force()
        poll(self.has_tables, IN_FORCE_S, lambda: self.node.bgpd("status", check=False))

    def chain(self) -> None:
        """Before it starts: the plugin too, behind the node's only network."""
        self.node.config |= plugin.sections(self.node.directory)
        self.node.config["paths"]["bpf"] = str(self.pins)
        self.node.write_config()

    def drift(self, loop: str) -> float:
        """How many differences nobody asked for this loop has found so far."""
        return self.node.metric(f'bgpd_reconcile_drift_total{{subsystem="{loop}"}}')

    def problems(self) -> list[str]:
        return [each for each in self.node.status()["problems"] if not each.startswith("speaker")]

    # --- the kernel -----------------------------------------------------------------------------------------------

    def map(self, name: str) -> Map:
        """A map that is pinned by the daemon."""
        found = pins.open_map(self.pins / name, layout.MAPS[name])
        assert found is not None, f"{name} is not pinned"
        return found

    def verdicts(self) -> Counter[PolicyVerdict]:
        """How many packets each verdict has met."""
        return Counter(verdicts(self.map("policy_verdicts")))

    def pinned(self) -> dict[str, int]:
        """The kernel's numbers of the maps and programs that are pinned, by name."""
        found = {}
        for path in self.pins.iterdir() if self.pins.is_dir() else ():
            if path.name in layout.MAPS and (fd := pins.get(path, "map")) is not None:
                found[path.name] = Map(fd).id
            elif path.name not in layout.MAPS and (fd := pins.get(path, "prog")) is not None:
                found[path.name] = Program(fd, path, replaced=False).id
        return found

    def tables(self) -> dict[str, Table]:
        """As the kernel has them, whoever owns them."""
        channel = self.node.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        with contextlib.closing(Connection(channel)) as onlooker:
            return dict(asyncio.run(TableActuator(onlooker, TABLES, owned=False).observe()))

    def has_tables(self) -> bool:
        found = self.tables().values()
        return len(found) == 2 and not any(table.damage for table in found)


class PolicySite(Cluster):
    """Pods a and b on a bridge, c and d routed, all in the namespace x and labelled with their names.

    `far` is a pod of another node, in the namespace y; `world` is an address that no pod has, `near` the node's own.
    `service` is what `policy_node.serve` translates.
    """

    def __init__(self, lab: Lab, bpffs: Path, *, br_netfilter: bool = True) -> None:
        self.place = PolicyPlace(lab, br_netfilter=br_netfilter)
        super().__init__(self.place.node, bpffs)
        near = {plan.version: plan.node.partition("/")[0] for plan in PLANS}
        self.put(node_object(NODE, near.values()))
        for name in ("x", "y"):
            self.put(namespace(name))
        for name in self.place.pods:
            self.put(pod("x", name, addresses(name).values()))
        self.put(pod("y", "far", addresses("remote_pod").values(), node="worker2"))
        ends = {name: End(each, addresses(name)) for name, each in self.place.pods.items()}
        ends |= {
            "far": End(self.place.outside, addresses("remote_pod")),
            "world": End(self.place.outside, addresses("outside")),
            "near": End(self.place.node, near),
            "service": End(None, addresses("service")),
        }
        self.prober = Prober(ends, (PORT, OTHER_PORT))

    def close(self) -> None:
        self.prober.close()

    def reached(self, server: str, *clients: str, how: How = How.TCP, port: int = PORT) -> set[str]:
        """Who of these reaches the server; both families must agree."""
        return {client for client, _, _ in self.passing(clients, [server], [how], port)}

    def reaches(self, client: str, *servers: str, how: How = How.TCP, port: int = PORT) -> set[str]:
        """Whom of these the client reaches; both families must agree."""
        return {server for _, server, _ in self.passing([client], servers, [how], port)}

    def passing(
        self, clients: Iterable[str], servers: Iterable[str], hows: Iterable[How] = tuple(How), port: int = PORT
    ) -> set[tuple[str, str, How]]:
        """Client, server and how, of what is answered; both families must agree."""
        asked = list(product(clients, servers, hows))
        found = self.prober.passing(
            Probe(client, server, how, 0 if how is How.PING else port, plan.version)
            for client, server, how in asked
            for plan in PLANS
        )
        by_version = [
            {(it.client, it.server, it.how) for it in found if it.version == plan.version} for plan in PLANS
        ]
        assert by_version[0] == by_version[1], f"the families differ: {by_version}"
        return by_version[0]


# --- objects as Kubernetes has them, without what nobody reads ------------------------------------------------------


def key_of(each: Object) -> tuple[str, str]:
    """Kind, and namespace/name."""
    metadata = each["metadata"]
    return each["kind"], f"{metadata.get('namespace', '')}/{metadata['name']}"


def node_object(name: str, addresses: Iterable[str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": ["10.244.0.0/16"]},
        "status": {"addresses": [{"type": "InternalIP", "address": each} for each in addresses]},
    }


def namespace(name: str, labels: Mapping[str, str] | None = None, *, audited: bool = False) -> Object:
    annotations = {"bgpd.io/policy-audit": "true"} if audited else {}
    metadata = {"name": name, "labels": dict(labels or {}), "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def pod(
    namespace: str,
    name: str,
    ips: Iterable[str],
    labels: Mapping[str, str] | None = None,
    *,
    node: str = NODE,
    ports: Iterable[tuple[str, str, int]] = (),
    host_network: bool = False,
) -> Object:
    """By default its label `pod` is its name. `ports`: name, protocol and number of each."""
    named = [{"name": name, "protocol": protocol, "containerPort": number} for name, protocol, number in ports]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": dict(labels or {"pod": name})},
        "spec": {"nodeName": node, "hostNetwork": host_network, "containers": [{"name": "main", "ports": named}]},
        "status": {"podIPs": [{"ip": ip} for ip in ips]},
    }


def policy(
    namespace: str,
    name: str,
    pods: Object | None = None,
    *,
    types: Iterable[str] | None = None,
    ingress: Iterable[Object] | None = None,
    egress: Iterable[Object] | None = None,
) -> Object:
    """What is None is not in the object, but for `pods`: all of the namespace then."""
    given = {"policyTypes": types, "ingress": ingress, "egress": egress}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"podSelector": pods or {}, **{key: list(it) for key, it in given.items() if it is not None}},
    }


def labelled(**labels: str) -> Object:
    return {"matchLabels": labels}


def peers(*names: str, **more: Any) -> Object:
    """A peer: the pods of the policy's own namespace that have one of these names, and what else is to be in it."""
    values = {"matchExpressions": [{"key": "pod", "operator": "In", "values": list(names)}]}
    return {"podSelector": values, **more}


def too_big(name: str) -> Object:
    """For the pod of that name. A range of ports takes 30 entries, and another 30 for each block it is open to."""
    ports = [{"port": 1, "endPort": 65534}]
    blocks = [{"ipBlock": {"cidr": f"60.{number >> 8}.{number & 255}.0/24"}} for number in range(2_200)]
    return policy("x", "big", labelled(pod=name), ingress=[{"from": [it], "ports": ports} for it in blocks])


def addresses(name: str) -> dict[int, str]:
    """Of what `policy_node` calls so."""
    return {plan.version: plan.of(name) for plan in PLANS}
