"""Nodes whose pods reach each other by node routes: some on one switch, others behind a router, a pod on each.

This decides what the network looks like, how the Nodes are written and how a pod is asked whether it reaches another.
It does not decide what routes there should be. Each node has a daemon of its own and all Nodes in its manifests, as
the API server would show them; no node has a BGP session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bgpd.model.noderoute import DEVICE
from tests.fabric.netns import Lab, Namespace
from tests.fabric.node import BgpdNode, node_manifest
from tests.fabric.process import poll
from tests.files import rewrite

CABLE = "eth0"


@dataclass
class Member:
    """A node: its number in its subnet, its pod CIDRs. `pods` are the pod's addresses, one of each CIDR."""

    name: str
    subnet: int
    number: int
    namespace: Namespace
    pod: Namespace
    cidrs: list[str]
    bgpd: BgpdNode

    @property
    def address(self) -> str:
        return f"192.168.{self.subnet}.{self.number}"

    @property
    def address6(self) -> str:
        return f"fd00:{self.subnet}::{self.number}"

    @property
    def addresses(self) -> tuple[str, str]:
        return self.address, self.address6

    @property
    def pods(self) -> list[str]:
        return [first_pod(cidr) for cidr in self.cidrs]

    def routes(self, version: int = 4) -> list[str]:
        """Those of ours, as `ip route` shows them, without what is in all of them."""
        shown = self.namespace.run(["ip", f"-{version}", "route", "show", "proto", "179"]).stdout
        return sorted(re.sub(r" (pref medium|metric 1024)| +$", "", line).strip() for line in shown.splitlines())

    def wait_routes(self, *wanted: str, version: int = 4, timeout_s: float = 15.0) -> None:
        poll(
            lambda: self.routes(version) == sorted(wanted),
            timeout_s,
            lambda: f"{self.routes(version)}, not {sorted(wanted)}; {self.bgpd.bgpd('status', check=False)}",
        )

    def reaches(self, address: str, *, size: int = 56) -> bool:
        """Whether a ping from the pod comes back, whole and unfragmented."""
        argv = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", str(size), address]
        return self.pod.run(argv, check=False).returncode == 0

    def wait_reaches(self, address: str) -> None:
        poll(
            lambda: self.reaches(address),
            20,
            lambda: f"{self.name} does not reach {address}: {self.bgpd.bgpd('noderoutes', 'list', check=False)}",
        )


def first_pod(cidr: str) -> str:
    """The second address of a CIDR; the first that is not the network's is the gateway."""
    network = cidr.partition("/")[0]
    return f"{network}2" if ":" in network else f"{network.rpartition('.')[0]}.2"


class NodeRoutesSite:
    """`members` by name. `only6`: Nodes show no IPv4 address, so that VXLAN goes over IPv6.

    Subnet 1 is the switch's; every other subnet is a cable to the router on the same switch.
    """

    def __init__(self, lab: Lab, mode: str = "auto", *, only6: bool = False, **sections: Any) -> None:
        self.lab, self.mode, self.sections = lab, mode, sections
        self._shown = slice(1, None) if only6 else slice(None)
        self.members: dict[str, Member] = {}
        self.switch = lab.namespace("switch")
        lab.bridge(self.switch)
        self.router = lab.namespace("router", forwarding=True)
        lab.plug(self.router, "lan", self.switch, "router")
        self.router.add_address("lan", "192.168.1.254/24", "fd00:1::254/64")

    def add(self, name: str, subnet: int, number: int, *cidrs: str) -> Member:
        """A node with a pod, its cables, its daemon not started; nobody knows of it yet."""
        namespace = self.lab.namespace(name, forwarding=True)
        if subnet == 1:
            self.lab.plug(namespace, CABLE, self.switch, f"port-{number}")
        else:
            self.lab.link(namespace, CABLE, self.router, f"lan{subnet}")
            self.router.add_address(f"lan{subnet}", f"192.168.{subnet}.254/24", f"fd00:{subnet}::254/64")
        pod = self.lab.namespace(f"{name}-pod")
        self.lab.link(namespace, "veth0", pod, CABLE)
        nobody = {"name": "nobody", "peerAddress": "192.0.2.254", "peerASN": 64512}
        bgp = {"localASN": 64512, "peers": [nobody], "export": {"allow": ["10.0.0.0/8"]}}
        bgpd = BgpdNode(namespace, name, bgp, nodeRoutes=self.mode, **self.sections)
        bgpd.config["paths"] |= {name: str(bgpd.directory / name) for name in ("flannel", "cniConf")}
        bgpd.write_config()
        member = self.members[name] = Member(name, subnet, number, namespace, pod, list(cidrs), bgpd)
        self.connect(member)
        for cidr in cidrs:
            self._give(member, cidr)
        return member

    def connect(self, member: Member) -> None:
        """The node's addresses and its way out."""
        member.namespace.add_address(CABLE, f"{member.address}/24", f"{member.address6}/64")
        member.namespace.add_route("default", via=f"192.168.{member.subnet}.254")
        member.namespace.add_route("default", via=f"fd00:{member.subnet}::254")

    def publish(self, *, to: Iterable[str] | None = None, without: Sequence[str] = ()) -> None:
        """Every Node into the manifests of these nodes (default: of all)."""
        shown = [member for member in self.members.values() if member.name not in without]
        text = "---\n".join(node_manifest(it.name, it.cidrs, *it.addresses[self._shown]) for it in shown)
        for name in self.members if to is None else to:
            bgpd = self.members[name].bgpd
            rewrite(bgpd.manifests / "nodes.yaml", text)

    def start(self, *names: str) -> NodeRoutesSite:
        """Publishes, and starts the daemons of these nodes (default: of all)."""
        self.publish()
        for name in names or self.members:
            self.members[name].bgpd.start_daemon()
        return self

    def device(self, member: Member) -> str:
        """The VXLAN device as `ip` shows it, "" if there is none."""
        shown = member.namespace.run(["ip", "-d", "link", "show", DEVICE], check=False)
        return shown.stdout if shown.returncode == 0 else ""

    def _give(self, member: Member, cidr: str) -> None:
        """An address of the CIDR to the pod, the first one to the node's end of its cable."""
        pod, length = first_pod(cidr), cidr.partition("/")[2]
        gateway = f"{pod[:-1]}1"
        member.namespace.add_address("veth0", f"{gateway}/{length}")
        member.pod.add_address(CABLE, f"{pod}/{length}")
        if not any((":" in other) == (":" in cidr) for other in member.cidrs[: member.cidrs.index(cidr)]):
            member.pod.add_route("default", via=gateway)
