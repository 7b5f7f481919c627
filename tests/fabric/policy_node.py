"""A node that enforces NetworkPolicy, two pods on its bridge, two on cables of their own, and an outside.

This decides how the pieces are wired (`PolicyPlace`), and how rules are written into the maps by hand (`PolicyNode`).
What should become of packets is for the tests to say. The tables are those of `bgpd.policy.table`, the programs the
shipped ones in a bpffs that goes with the lab. Or the whole daemon does it all (`policy_site`).

    pod-a, pod-b --- cni0 |      |
                          | node | eth0 --- outside
    pod-c, pod-d --- veths|      |
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar

from bgpd.datapath import layout, loader
from bgpd.model.outcome import Outcome
from bgpd.netlink.nftables import Connection
from bgpd.netlink.owntables import TableActuator, can_own
from bgpd.policy.table import TABLES, Source, Table, bridge_table, inet_table
from bgpd.runtime.diff import Change
from tests.fabric.masq_node import NETLINK_NETFILTER, alone
from tests.fabric.netns import Lab, Namespace
from tests.fabric.rules_by_hand import RulesByHand

BRIDGE_NF = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
PORT, SERVICE_PORT = 8080, 80
POD_CLASS = {"a": 101, "b": 102, "c": 103, "d": 104, "outside": 105}


@dataclass(frozen=True)
class Plan:
    """The addresses of one family. `outside` has a node's address and a pod of its own."""

    version: int
    a: str
    b: str
    c: str
    d: str
    bridge: str
    gateways: Mapping[str, str]
    node: str
    outside: str
    remote_pod: str
    service: str

    def of(self, name: str) -> str:
        return str(getattr(self, name))


IPV4 = Plan(
    4, "10.244.1.10", "10.244.1.11", "10.244.2.10", "10.244.3.10", "10.244.1.1/24",
    {"a": "10.244.1.1", "b": "10.244.1.1", "c": "10.244.2.1", "d": "10.244.3.1"},
    "192.0.2.1/24", "192.0.2.2", "10.244.9.10", "10.96.0.10",
)  # fmt: skip
IPV6 = Plan(
    6, "fd44:1::10", "fd44:1::11", "fd44:2::10", "fd44:3::10", "fd44:1::1/64",
    {"a": "fd44:1::1", "b": "fd44:1::1", "c": "fd44:2::1", "d": "fd44:3::1"},
    "fd99::1/64", "fd99::2", "fd44:9::10", "fd96::10",
)  # fmt: skip
PLANS = (IPV4, IPV6)
BRIDGED, ROUTED = ("a", "b"), ("c", "d")


class PolicyPlace:
    """Namespaces, cables, addresses and routes. Nothing is enforced.

    `br_netfilter`: the bridge hands its frames to the inet table.
    """

    def __init__(self, lab: Lab, *, br_netfilter: bool = True) -> None:
        self.lab, self.br_netfilter = lab, br_netfilter
        self.node = lab.namespace("node", forwarding=True)
        self.outside = lab.namespace("outside")
        self.pods = {name: lab.namespace(f"pod-{name}") for name in (*BRIDGED, *ROUTED)}
        self._wire()

    def _wire(self) -> None:
        lab, node = self.lab, self.node
        lab.bridge(node, "cni0")
        for name in BRIDGED:
            lab.plug(self.pods[name], "eth0", node, f"port-{name}", "cni0")
        for name in ROUTED:
            lab.link(self.pods[name], "eth0", node, f"port-{name}")
        lab.link(node, "eth0", self.outside, "eth0")
        node.sysctl(dict.fromkeys(BRIDGE_NF, "1" if self.br_netfilter else "0"))
        for plan in PLANS:
            node.add_address("cni0", plan.bridge)
            node.add_address("eth0", plan.node)
            self.outside.add_address("eth0", f"{plan.outside}/{plan.node.partition('/')[2]}")
            self.outside.add_address("lo", alone(plan.remote_pod))
            node.add_route(alone(plan.remote_pod), via=plan.outside)
            for name, pod in self.pods.items():
                gateway, address = plan.gateways[name], plan.of(name)
                self.outside.add_route(f"{alone(address)} src {plan.remote_pod}", via=plan.node.partition("/")[0])
                if name in BRIDGED:
                    pod.add_address("eth0", f"{address}/{plan.bridge.partition('/')[2]}")
                else:
                    pod.add_address("eth0", alone(address))
                    pod.add_route(alone(gateway), dev="eth0")
                    node.add_address(f"port-{name}", alone(gateway))
                    node.add_route(alone(address), dev=f"port-{name}")
                pod.add_route("default", via=gateway)

    def namespace(self, name: str) -> Namespace:
        return self.outside if name == "outside" else self.pods[name]

    def connect(self) -> Connection:
        return Connection(self.node.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))


class PolicyNode(PolicyPlace, RulesByHand):
    """Everything open until `isolate`."""

    classes: ClassVar[Mapping[str, int]] = POD_CLASS

    def __init__(self, lab: Lab, bpffs: Path, *, br_netfilter: bool = True) -> None:
        super().__init__(lab, br_netfilter=br_netfilter)
        self.directory = bpffs / "bgpd"
        self.judged: tuple[int, ...] = () if br_netfilter else (4, 6)  # at the bridge
        self.installed = loader.install(loader.shipped("policy"), self.directory)
        self.connection = self.connect()
        self.owned = can_own(self.connection)
        self.policy = self.installed
        self.open()
        self._write_links()

    def close(self) -> None:
        self.connection.close()

    # --- the tables -----------------------------------------------------------------------------------------------

    def source(self, name: str) -> Source:
        """What the pod may send as."""
        ifindex, mac = link(self.node, f"port-{name}")[0], link(self.namespace(name), "eth0")[1]
        return Source(ifindex, mac, tuple(ip_address(plan.of(name)) for plan in PLANS))

    def wanted(self, bridged: Iterable[str] = BRIDGED, routed: Iterable[str] = ROUTED) -> dict[str, Table]:
        """With these pods' ends at the node told of."""
        programs = {name: each.id for name, each in self.installed.programs.items()}
        place = str(self.directory)
        inet = inet_table(place, programs["policy"], programs["policy_reply"], map(self.source, routed))
        bridge = bridge_table(
            place, programs["policy_astray"], programs["policy_bridge"], map(self.source, bridged), self.judged
        )
        return dict(zip(TABLES, (inet, bridge), strict=True))

    def tables(self) -> TableActuator[Table]:
        return TableActuator(self.connection, TABLES, owned=self.owned)

    def apply(self, want: Mapping[str, Table] | None = None) -> list[Outcome]:
        changes = [Change(name, table, None) for name, table in (want or self.wanted()).items()]
        return list(asyncio.run(self.tables().apply(changes)))

    def observe(self) -> dict[str, Table]:
        return dict(asyncio.run(self.tables().observe()))

    def remove(self) -> None:
        changes: list[Change[str, Table]] = [Change(name, None, None) for name in TABLES]
        asyncio.run(self.tables().apply(changes))

    def enforcing(self) -> PolicyNode:
        self.apply()
        return self

    # --- the maps -------------------------------------------------------------------------------------------------

    def addresses(self, name: str) -> list[str]:
        return [plan.remote_pod if name == "outside" else plan.of(name) for plan in PLANS]

    def _write_links(self) -> None:
        links = {name: link(self.node, f"port-{name}")[0] for name in BRIDGED}
        self.installed.maps["policy_links"].update(
            {
                struct.pack("=I", number): b"".join(
                    layout.policy_address(ip_address(plan.of(name))) for plan in PLANS
                )
                for name, number in links.items()
            }
        )


def link(namespace: Namespace, name: str) -> tuple[int, bytes]:
    """Number and hardware address of an interface."""
    (shown,) = json.loads(namespace.run(["ip", "-json", "link", "show", "dev", name]).stdout)
    return shown["ifindex"], bytes.fromhex(shown["address"].replace(":", ""))


def serve(node: PolicyPlace, plan: Plan, endpoint: str) -> None:
    """As kube-proxy does: to the endpoint in PREROUTING, and a pod that reaches itself is masqueraded."""
    ip = "ip" if plan.version == 4 else "ip6"
    to = f"[{plan.of(endpoint)}]" if plan.version == 6 else plan.of(endpoint)
    script = f"""
        table {ip} services {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                {ip} daddr {plan.service} tcp dport {SERVICE_PORT} dnat to {to}:{PORT}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                {ip} saddr {plan.of(endpoint)} {ip} daddr {plan.of(endpoint)} masquerade
            }}
        }}
    """
    assert node.node.run(["nft", "-f", "-"], stdin=script).returncode == 0
