"""A node that masquerades, two pods on its bridge, one on a cable of its own, and an outside behind the uplink.

This decides how the pieces are wired and how packets are sent and looked at. What should become of them is for
the tests to say. What masquerades is either the table as `bgpd.netlink.owntables` puts it there (`MasqNode`), with
the shipped program in a bpffs that goes with the lab, or the whole daemon (`masq_site`).

    pod-a, pod-b --- cni0 |      |
                          | node | eth0 --- outside
    pod-c ---------- veth |      |
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from bgpd.datapath import layout, loader
from bgpd.masq.table import KEY, TABLES, Side, Table, side
from bgpd.model.lpm import LpmKey
from bgpd.model.outcome import Outcome
from bgpd.model.prefix import Prefix
from bgpd.netlink.nftables import Connection
from bgpd.netlink.owntables import TableActuator, can_own
from bgpd.runtime.diff import Change
from tests.fabric.netns import Lab, Namespace
from tests.fabric.reach import ping

NETLINK_NETFILTER = 12
ECHO_PORT = 7007


@dataclass(frozen=True)
class Plan:
    """The addresses of one family. `listed` and `unlisted` are both the outside's."""

    version: int
    pods: str
    bridge: str
    pod_a: str
    pod_b: str
    pod_c: str
    cable: str
    node: str
    loopback: str
    uplink: str
    outside: str
    listed: str
    unlisted: str
    remote_pod: str
    cluster: str

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.version == 4 else socket.AF_INET6


IPV4 = Plan(
    4, "10.244.1.0/24", "10.244.1.1/24", "10.244.1.10", "10.244.1.11", "10.244.1.130", "10.244.1.129/30",
    "192.0.2.1", "192.0.100.1", "192.0.2.1/24", "192.0.2.2", "198.51.100.1", "203.0.113.1",
    "10.244.2.10", "10.244.0.0/16",
)  # fmt: skip
IPV6 = Plan(
    6, "fd44:1::/64", "fd44:1::1/112", "fd44:1::10", "fd44:1::11", "fd44:1::a:2", "fd44:1::a:1/126",
    "fd99::1", "fd98::1", "fd99::1/64", "fd99::2", "fd30::1", "fd20::1", "fd44:2::10", "fd44::/16",
)  # fmt: skip
PLANS = (IPV4, IPV6)


class MasqPlace:
    """Namespaces, cables, addresses and routes. Nothing masquerades."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node = lab.namespace("node", forwarding=True)
        self.outside = lab.namespace("outside")
        self.pod_a, self.pod_b, self.pod_c = (lab.namespace(f"pod-{name}") for name in "abc")
        self._wire()

    def _wire(self) -> None:
        lab, node = self.lab, self.node
        lab.bridge(node, "cni0")
        lab.plug(self.pod_a, "eth0", node, "port-a", "cni0")
        lab.plug(self.pod_b, "eth0", node, "port-b", "cni0")
        lab.link(self.pod_c, "eth0", node, "port-c")
        lab.link(node, "eth0", self.outside, "eth0")
        for plan in PLANS:
            length = plan.bridge.partition("/")[2]
            node.add_address("cni0", plan.bridge)
            node.add_address("port-c", plan.cable)
            node.add_address("eth0", plan.uplink)
            node.add_address("lo", alone(plan.loopback))
            self.outside.add_address("eth0", plan.uplink.replace(plan.node, plan.outside))
            self.outside.add_address("lo", *map(alone, self._far(plan)))
            for name, pod in (("pod_a", self.pod_a), ("pod_b", self.pod_b)):
                pod.add_address("eth0", f"{getattr(plan, name)}/{length}")
                pod.add_route("default", via=plan.bridge.partition("/")[0])
            self.pod_c.add_address("eth0", f"{plan.pod_c}/{plan.cable.partition('/')[2]}")
            self.pod_c.add_route("default", via=plan.cable.partition("/")[0])
            for far in self._far(plan):
                node.add_route(alone(far), via=plan.outside)
            for behind in (plan.pods, alone(plan.loopback)):
                self.outside.add_route(behind, via=plan.node)

    @staticmethod
    def _far(plan: Plan) -> tuple[str, str, str]:
        return plan.listed, plan.unlisted, plan.remote_pod

    def connect(self) -> Connection:
        return Connection(self.node.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))

    def shown(self) -> Table | None:
        """The table as the kernel has it, whoever owns it."""
        with contextlib.closing(self.connect()) as onlooker:
            return asyncio.run(TableActuator(onlooker, TABLES, owned=False).observe()).get(KEY)

    def nft(self, script: str) -> subprocess.CompletedProcess[str]:
        """What another administrator does; a failure is for the test to look at."""
        return self.node.run(["nft", "-f", "-"], stdin=script, check=False)


class MasqNode(MasqPlace):
    """With the table; `owned` where the kernel knows such tables. False: as on one before 6.9."""

    def __init__(self, lab: Lab, bpffs: Path) -> None:
        super().__init__(lab)
        self.installed = loader.install(loader.shipped("masq"), bpffs / "bgpd")
        self.connection = self.connect()
        self.owned = can_own(self.connection)
        self.list(*(alone(plan.listed) for plan in PLANS))

    def close(self) -> None:
        self.connection.close()

    def wanted(self, **changes: object) -> Table:
        """For the whole plan; `changes` as for `dataclasses.replace`."""
        program = self.installed.programs["masquerade"]
        sides: list[Side] = [side([ip_network(it.pods)], [ip_network(it.cluster)], None) for it in PLANS]
        return replace(Table(str(program.pin), 1, sides[0], sides[1]), **changes)  # type: ignore[arg-type]

    def table(self) -> TableActuator[Table]:
        return TableActuator(self.connection, TABLES, owned=self.owned)

    def apply(self, want: Table | None = None) -> Outcome:
        (outcome,) = asyncio.run(self.table().apply([Change(KEY, want or self.wanted(), None)]))
        return outcome

    def observe(self) -> Table | None:
        return asyncio.run(self.table().observe()).get(KEY)

    def remove(self) -> None:
        asyncio.run(self.table().apply([Change(KEY, None, None)]))

    def list(self, *prefixes: str) -> None:
        """Makes these the whole list."""
        wanted: Sequence[Prefix] = [ip_network(each) for each in prefixes]
        for version in (4, 6):
            entries = self.installed.maps[f"ipmasq_v{version}"]
            keys = {LpmKey.of(each): layout.PRESENT for each in wanted if each.version == version}
            entries.update(keys)
            entries.delete([key for key in entries.entries() if key not in keys])


def alone(address: str) -> str:
    """The prefix that holds this address only."""
    return f"{address}/{ip_address(address).max_prefixlen}"


@contextlib.contextmanager
def udp_echo(server: Namespace, address: str, port: int = ECHO_PORT) -> Iterator[list[tuple[str, int]]]:
    """Sends every datagram back; the list has who sent them, in order."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    seen: list[tuple[str, int]] = []
    with contextlib.closing(server.socket(family, socket.SOCK_DGRAM)) as listener:
        listener.bind((address, port))
        listener.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    data, sender = listener.recvfrom(65536)
                    seen.append(sender[:2])
                    listener.sendto(data, sender)

        thread = threading.Thread(target=serve, name="udp-echo")
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()


@contextlib.contextmanager
def udp_client(client: Namespace, address: str, port: int = ECHO_PORT) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(client.socket(family, socket.SOCK_DGRAM)) as dialer:
        dialer.settimeout(2.0)
        dialer.connect((address, port))
        yield dialer


def echoed(dialer: socket.socket, data: bytes = b"x") -> bytes:
    dialer.send(data)
    return dialer.recv(65536)


def echo_request_seen(client: Namespace, server: Namespace, address: str) -> str:
    """Ping `address`, which `server` owns, from `client`; the source address the server saw."""
    is_v6 = ":" in address
    family, protocol, kind = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128) if is_v6 else (socket.AF_INET, socket.IPPROTO_ICMP, 8)
    )
    with contextlib.closing(server.socket(family, socket.SOCK_RAW, protocol)) as raw:
        raw.bind((address, 0))
        raw.settimeout(2.0)
        assert ping(client, address)
        while True:
            packet, sender = raw.recvfrom(2048)
            if packet[0 if is_v6 else 20] == kind:  # not neighbor discovery
                return str(sender[0])


def datagram_seen(client: Namespace, server: Namespace, address: str) -> str:
    """Send a datagram to `address`, which `server` owns, and get it back; the source address the server saw."""
    with udp_echo(server, address) as seen, udp_client(client, address) as dialer:
        assert echoed(dialer) == b"x"
    return seen[0][0]


@contextlib.contextmanager
def tcp_stream(
    client: Namespace, server: Namespace, address: str, port: int = 0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection, the client's first."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        contextlib.closing(server.socket(family, socket.SOCK_STREAM)) as listener,
        contextlib.closing(client.socket(family, socket.SOCK_STREAM)) as dialer,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1)
        for each in (listener, dialer):
            each.settimeout(2.0)
        dialer.connect(listener.getsockname()[:2])
        accepted, _ = listener.accept()
        with contextlib.closing(accepted):
            accepted.settimeout(2.0)
            yield dialer, accepted


def speaks(one: socket.socket, other: socket.socket) -> bool:
    """Whether a byte goes over, and one back."""
    try:
        one.send(b"?")
        asked = other.recv(1)
        other.send(b"!")
        return (asked, one.recv(1)) == (b"?", b"!")
    except OSError:
        return False
