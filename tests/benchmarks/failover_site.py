"""Where the failure matrix is measured: the two-ToR fabric, its gateway speaking BGP, two holders of an address.

This decides who speaks BGP with whom, and which flows a probe takes. It does not decide what fails
(`failover_matrix`) nor what announces the first node (`failover_nodes`).

    probe (outside) ── gateway ══ BGP, ECMP ══ tor-a, tor-b ══ BGP ══ node 1, which is measured
                                                            ══ BGP ══ node 2, a BIRD that stands by

The gateway has no static route to pods here: what a ToR withdraws goes by the other. All sessions are of one mode.
Node 2 has a pod with the same address, at a lower local preference, and only while `standby` says so: then the
address is lost for as long as packets go on being sent to node 1.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum

from tests.benchmarks.failover_probe import PORT, Flow, Receiver
from tests.fabric.bird import Bird
from tests.fabric.netns import Lab, Namespace
from tests.fabric.peer import FAMILIES, Neighbor, Options
from tests.fabric.process import poll
from tests.fabric.topology import ASN, CABLE, GATEWAY, HEALTH_CHECKER, POD_SUPERNETS, NodePlace, TwoTorFabric

POD, POD6 = "188.188.0.10", "fd00:188:188::10"
PROBE6 = "fd00:11:11:250::12"
GATEWAY_ASN = 64513
POD_PORT = 80
BFD_MS = 100
HOLD_TIME_S = 9
_READY_S = 40.0
_UPLINK = """\
protocol bgp upstream {{
  local {address} as {asn};
  neighbor {gateway} as {gateway_asn};
  hold time {hold_time}; connect delay time 1; connect retry time 2; error wait time 1, 2;
  graceful restart {restart}; bfd {bfd};
  ipv4 {{ import none; export where source = RTS_BGP; next hop self; }};
  ipv6 {{ import none; export where source = RTS_BGP; next hop self; }};
}}
"""


class Mode(Enum):
    """What all sessions of the fabric have; the value is the end of a result's name."""

    PLAIN = ""
    GR = "_gr"
    BFD = "_bfd"
    GR_BFD = "_gr_bfd"

    @property
    def graceful_restart(self) -> bool:
        return self in (Mode.GR, Mode.GR_BFD)

    @property
    def bfd(self) -> bool:
        return self in (Mode.BFD, Mode.GR_BFD)


class Pod:
    """A namespace with both addresses of the probe's destination: it takes its packets, and TCP connections."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self.receiver = Receiver(namespace, (POD, POD6))
        self.serve()

    def serve(self) -> None:
        self.receiver.open()
        self._listener = self._namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((POD, POD_PORT))
        self._listener.listen(4096)  # nobody accepts: a health check is content with the kernel

    def fail(self) -> None:
        """Its program ends."""
        self.receiver.close()
        self._listener.close()


class FailoverSite:
    """Everything but what is measured; `place` is where that goes."""

    def __init__(self, lab: Lab, mode: Mode) -> None:
        self.lab, self.mode = lab, mode
        self.fabric = TwoTorFabric(lab, neighbor=self._neighbor("", ASN))
        self.place, self._second, _ = self.fabric.nodes
        self.tor = self.fabric.tors[0]
        self.gateway = self.fabric.fabric
        self.gateway.sysctl({"net/ipv6/fib_multipath_hash_policy": "1"})
        for supernet in POD_SUPERNETS:
            self.gateway.remove_route(supernet)
        self.pod, self._other = self._pod(self.place, "pod"), self._pod(self._second, "other")
        self._speakers()

    def start(self) -> None:
        self.fabric.start()
        self._standby.start()
        self._gateway_speaker.start()

    def standby(self, wanted: bool) -> list[Receiver]:
        """Whether the second node has the address too; who then may get a packet."""
        prefixes = self.place.pod_cidrs if wanted else ()
        self._standby.reconfigure(originate=prefixes)
        for tor in self.fabric.tors:
            tor.speaker.wait_route_count(self._second.address, len(prefixes))
        return [self.pod.receiver, self._other.receiver] if wanted else [self.pod.receiver]

    def wait_flows(self) -> list[Flow]:
        """A flow through each ToR in each family, once both have the first node's routes and the gateway theirs."""
        for tor in self.fabric.tors:
            for cidr in self.place.pod_cidrs:
                tor.speaker.wait_route(
                    cidr, _READY_S, peer=self.place.address, where=lambda it: it.best and not it.stale
                )
        ends = ((HEALTH_CHECKER, POD), (PROBE6, POD6))
        found: list[Flow] = []

        def probe() -> bool:
            found[:] = [flow for source, to in ends for flow in self._through_each(source, to)]
            return len(found) == len(ends) * len(self.fabric.tors)

        poll(probe, _READY_S, lambda: f"not both ToRs are ways: {self.gateway.routes()} {self.gateway.routes(6)}")
        return found

    def silence(self) -> None:
        """The link between the first node and the first ToR is dead, and no carrier goes with it."""
        addresses = (("ip", self.place.address), ("ip6", self.place.address6))
        rules = ["add table inet dead"]
        for hook, match in (
            ("input", "{0} saddr {1}"),
            ("output", "{0} daddr {1}"),
            ("postrouting", "rt {0} nexthop {1}"),
        ):
            rules.append(f"add chain inet dead {hook} {{ type filter hook {hook} priority 0; }}")
            rules += [f"add rule inet dead {hook} {match.format(*it)} drop" for it in addresses]
        self.tor.namespace.run(["nft", "; ".join(rules)])

    def mend(self) -> None:
        self.tor.namespace.run(["nft", "delete table inet dead"])

    def _through_each(self, source: str, to: str) -> Iterator[Flow]:
        """At most one flow through each ToR, found by asking the kernel that will choose."""
        seen: set[str] = set()
        first = 40_000 if ":" in to else 30_000
        for port in range(first, first + 32):
            way = f"{to} from {source} iif outside ipproto udp sport {port} dport {PORT}".split()
            shown = self.gateway.run(["ip", "-j", "route", "get", *way], check=False)
            if shown.returncode != 0:
                return
            gateway = json.loads(shown.stdout)[0].get("gateway", "")
            if gateway not in seen:
                seen.add(gateway)
                yield Flow(source, port, to)
            if len(seen) == len(self.fabric.tors):
                return

    def _pod(self, place: NodePlace, name: str) -> Pod:
        namespace = self.fabric.add_pod(place, POD, name)
        port = f"v{name}"
        namespace.add_address(CABLE, f"{POD6}/128")
        place.namespace.add_address(port, "fe80::1/64")
        place.namespace.add_route(f"{POD6}/128", dev=port)
        return Pod(namespace)

    def _neighbor(self, address: str, asn: int) -> Neighbor:
        return Neighbor(
            address=address,
            asn=asn,
            families=FAMILIES,
            hold_time_s=HOLD_TIME_S,
            graceful_restart=self.mode.graceful_restart,
            bfd_ms=BFD_MS if self.mode.bfd else None,
        )

    def _speakers(self) -> None:
        """The gateway's and the second node's, and what the ToRs tell the gateway."""
        towards = []
        for last, tor in enumerate(self.fabric.tors, start=252):
            address = f"11.8.37.{last}"
            said = {
                "hold_time": HOLD_TIME_S,
                "restart": "on" if self.mode.graceful_restart else "off",
                "bfd": "on" if self.mode.bfd else "off",
            }
            uplink = _UPLINK.format(address=address, asn=ASN, gateway=GATEWAY, gateway_asn=GATEWAY_ASN, **said)
            # nobody who never comes: a BIRD that restarts gracefully would wait for it
            known = tuple(
                it for it in tor.speaker.options.neighbors if it.address in (self.place.address, self._second.address)
            )
            tor.speaker.reconfigure(neighbors=known, extra=uplink)
            towards.append(replace(self._neighbor(address, ASN), local_address=GATEWAY))
        learned = Options(asn=GATEWAY_ASN, router_id=GATEWAY, neighbors=tuple(towards), install_routes=True)
        self._gateway_speaker = Bird(self.gateway, learned)
        ours = tuple(
            replace(self._neighbor(tor.loopback, ASN), local_address=self._second.address) for tor in self.fabric.tors
        )
        self._standby = Bird(self._second.namespace, Options(asn=ASN, router_id=self._second.address, neighbors=ours))
