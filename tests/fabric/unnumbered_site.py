"""A node with a cable to each of its ToRs and no addresses on them but link-local ones; a pod, and a client behind.

```
 pod 188.188.0.10 ── node eth1 ── swp1 tor-a ── client 10.1.0.2, fd00:1::2
     fd00:188:188::10     eth2 ── swp1 tor-b
```

This decides addresses, cables and what the ToRs are told: FRR finds the node by its router advertisements and sends
its own, a BIRD is given the node's address and advertises by `radv`. It does not decide what the node is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.netns import Lab, Namespace
from tests.fabric.node import BgpdNode, node_manifest
from tests.fabric.peer import FAMILIES, Neighbor, Options, Speaker
from tests.fabric.process import poll, run

NODE_ASN, TOR_ASN = 64512, 65001
POD_CIDRS = ("188.188.0.0/24", "fd00:188:188::/64")
POD, POD6 = "188.188.0.10", "fd00:188:188::10"
CLIENT, CLIENT6 = "10.1.0.2", "fd00:1::2"
PORT = "swp1"


def link_local(namespace: Namespace, interface: str) -> str:
    """The address that the kernel gave the interface, once it can be used."""

    def probe() -> str | None:
        shown = run(["ip", "-6", "-o", "addr", "show", interface, "scope", "link"], netns=namespace.path).stdout
        return None if "tentative" in shown or not shown else shown.split()[3].partition("/")[0]

    return poll(probe, 10, lambda: f"{interface} of {namespace} has no link-local address")


class UnnumberedSite:
    """Nothing runs yet. `kinds` has a ToR each. `neighbor` is what they are told of the node, besides its place."""

    def __init__(
        self,
        lab: Lab,
        *kinds: type[Speaker],
        asn: int = TOR_ASN,
        peer: dict[str, Any] | None = None,
        **neighbor: Any,
    ) -> None:
        self.lab = lab
        self.place = lab.namespace("node", forwarding=True)
        self.pod = lab.namespace("pod")
        lab.link(self.pod, "eth0", self.place, "vpod")
        self.pod.add_address("eth0", f"{POD}/24", f"{POD6}/64")
        self.place.add_address("vpod", f"{POD[:-2]}1/24", f"{POD6[:-2]}1/64")
        self.pod.add_route("default", via=f"{POD[:-2]}1")
        self.pod.add_route("default", via=f"{POD6[:-2]}1")
        self.uplinks = [f"eth{index}" for index in range(1, len(kinds) + 1)]
        self.tors = [self._tor(index, kind, asn, neighbor) for index, kind in enumerate(kinds, start=1)]
        self.client = lab.namespace("client")
        lab.link(self.client, "eth0", self.tors[0].namespace, "vclient")
        self.client.add_address("eth0", f"{CLIENT}/24", f"{CLIENT6}/64")
        self.tors[0].namespace.add_address("vclient", f"{CLIENT[:-1]}1/24", f"{CLIENT6[:-1]}1/64")
        self.client.add_route("default", via=f"{CLIENT[:-1]}1")
        self.client.add_route("default", via=f"{CLIENT6[:-1]}1")
        names = [f"tor-{letter}" for letter in "ab"]
        peers = [
            {"name": name, "interface": uplink, "peerASN": asn, "timers": {"holdTimeSeconds": 9}, **(peer or {})}
            for name, uplink in zip(names, self.uplinks, strict=False)
        ]
        self.node = self.make_node(peers)

    def make_node(self, peers: Sequence[dict[str, Any]] | str) -> BgpdNode:
        bgp = {
            "localASN": NODE_ASN,
            "routerID": "10.0.0.9",
            "peers": peers,
            "advertisements": [{"advertisementType": "PodCIDR"}],
            "export": {"allow": ["188.188.0.0/16", "fd00:188:188::/48"]},
        }
        node = BgpdNode(self.place, "worker1", bgp)
        (node.manifests / "node.yaml").write_text(node_manifest("worker1", list(POD_CIDRS)))
        return node

    def start(self) -> UnnumberedSite:
        """The ToRs, the speaker and the daemon."""
        for tor in self.tors:
            tor.start()
        if any("bfd" in peer for peer in self.node.config["bgp"]["peers"]):
            self.node.start_bfd()
        self.node.start()
        return self

    def wait_routes(self, tor: Speaker) -> dict[str, str]:
        """The next hops of both pod CIDRs at a ToR, once it can use them. BIRD shows that there is no global one."""
        return {prefix: tor.wait_route(prefix).next_hops[-1] for prefix in POD_CIDRS}

    def open_the_way_back(self) -> None:
        """What the fabric would tell the node besides: that the client is behind the first ToR."""
        theirs = link_local(self.tors[0].namespace, PORT)
        self.place.run(["ip", "-4", "route", "replace", "default", "via", "inet6", theirs, "dev", self.uplinks[0]])
        self.place.add_route("default", via=theirs, dev=self.uplinks[0])

    def reaches(self) -> list[bool]:
        """Whether the client's packets reach the pod and come back, IPv4 and IPv6."""
        pings = [["ping", "-n", "-c1", "-W1", address] for address in (POD, POD6)]
        return [self.client.run(ping, check=False).returncode == 0 for ping in pings]

    def _tor(self, index: int, kind: type[Speaker], asn: int, neighbor: dict[str, Any]) -> Speaker:
        namespace = self.lab.namespace(f"tor-{'ab'[index - 1]}", forwarding=True)
        self.lab.link(self.place, self.uplinks[index - 1], namespace, PORT)
        theirs = link_local(self.place, self.uplinks[index - 1])
        extra = f'protocol radv {{ interface "{PORT}" {{ default lifetime 0; }}; }}' if kind is Bird else ""
        session = Neighbor(
            address=PORT if kind is Frr else theirs,
            interface=PORT,
            asn=NODE_ASN,
            families=FAMILIES,
            extended_next_hop=True,
            direct=kind is Bird,
            **neighbor,
        )
        options = Options(
            asn=asn, router_id=f"10.0.0.{index}", neighbors=(session,), install_routes=True, extra=extra
        )
        return kind(namespace, options)
