"""The two-ToR fabric: three nodes, two ToR switches, a gateway between them, a world behind it.

This decides addresses, cables and kernel routes, and what the ToRs are told. It does not decide what speaks
BGP on the nodes (the daemon, or ExaBGP in this library's own tests) nor which kind of speaker a ToR is.

```
 node1 .63   node2 .67   node3 .68        11.8.37.0/24  fd00:11:8:37::/64   (and f5 .4, if asked for)
     |           |           |
     +-----------+-----------+---- br0 in `fabric` ----+-----------+
                                  | .254 ::fe          |           |
                                  |                  tor-a .252  tor-b .253
              outside 11.11.250.12                   lo 11.11.255.1  .2
              and 198.51.100.10, 2001:db8:100::10    lo fd00:11:11:255::1  ::2
```

The nodes reach the ToRs' loopbacks through the gateway, one hop away, so a session is a multihop session.
The ToRs are on the nodes' segment, so next hops resolve at once and packets to pods go ToR to node directly.
The gateway sends all pod traffic to the ToRs, spread over both: a ToR without the route drops what comes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.fabric.bird import Bird
from tests.fabric.netns import Lab, Namespace
from tests.fabric.peer import FAMILIES, Neighbor, Options, Speaker

ASN = 64512
POD_SUPERNETS = ("188.188.0.0/16", "fd00:188:188::/48")
GATEWAY, GATEWAY6 = "11.8.37.254", "fd00:11:8:37::fe"
F5_SNAT, F5_SNAT6 = "11.8.37.4", "fd00:11:8:37::4"  # listed in nonMasqueradeCIDRs
HEALTH_CHECKER = "11.11.250.12"  # inside 11.11.248.0/21, listed too
STRANGER, STRANGER6 = "198.51.100.10", "2001:db8:100::10"  # listed nowhere; two more addresses of `outside`
CABLE = "eth0"
BOTH_FAMILIES = Neighbor(address="", asn=ASN, families=FAMILIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlace:
    """Where a node is: its name in Kubernetes, its addresses and the pod CIDRs it is allocated."""

    name: str
    address: str
    address6: str
    pod_cidrs: tuple[str, ...]
    namespace: Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class TorPlace:
    """Where a ToR is: the loopbacks it speaks BGP from, and what speaks it."""

    name: str
    loopback: str
    loopback6: str
    namespace: Namespace
    speaker: Speaker


class TwoTorFabric:
    """The whole network in a lab. Cables stand at once; `start` starts the ToRs, the nodes are the test's.

    `tor_asn` other than `node_asn` makes the sessions external and multihop. `neighbor` is what the ToRs
    are told about each node, with address, ASN and local address replaced: timers, password, families are
    set there. `speakers` names a class for each ToR (`Frr` brings its zebra; `Gobgp` cannot
    `install_routes`). `prefix` tells several fabrics in one lab apart.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        node_asn: int = ASN,
        tor_asn: int = ASN,
        neighbor: Neighbor = BOTH_FAMILIES,
        speakers: Sequence[type[Speaker]] = (Bird, Bird),
        install_routes: bool = True,
        prefix: str = "",
    ) -> None:
        self.lab = lab
        self.node_asn, self.tor_asn = node_asn, tor_asn
        self._neighbor = neighbor
        self._prefix = prefix
        self.fabric = lab.namespace(f"{prefix}fabric", forwarding=True)
        lab.bridge(self.fabric)
        self.fabric.add_address("br0", f"{GATEWAY}/24", f"{GATEWAY6}/64")
        self.nodes = tuple(self._node(index, last) for index, last in enumerate((63, 67, 68), start=1))
        self.tors = tuple(
            self._tor(index, speaker, install_routes) for index, speaker in enumerate(speakers, start=1)
        )
        for pods in POD_SUPERNETS:
            version6 = ":" in pods
            hops = [f"fd00:11:8:37::{251 + it}" if version6 else f"11.8.37.{251 + it}" for it in (1, 2)]
            self.fabric.add_route(pods, via=hops[: len(self.tors)])
        self.outside = self._outside()

    def start(self) -> TwoTorFabric:
        """Start the ToRs; they wait for the nodes to call, and call them too."""
        for tor in self.tors:
            tor.speaker.start()
        return self

    def node(self, name_or_address: str) -> NodePlace:
        for node in self.nodes:
            if name_or_address in (node.name, node.address, node.address6):
                return node
        raise KeyError(name_or_address)

    def cut(self, place: NodePlace | TorPlace) -> None:
        """Pull the cable of a node or a ToR at the switch: its own end loses the carrier, its routes stay."""
        self.fabric.link_down(self._port(place))

    def mend(self, place: NodePlace | TorPlace) -> None:
        """Plug it in again."""
        self.fabric.link_up(self._port(place))

    def blackhole(self, node: NodePlace, tor: TorPlace) -> None:
        """Let nothing from a node reach a ToR's loopback although every cable stays up."""
        for address, length in ((tor.loopback, 32), (tor.loopback6, 128)):
            node.namespace.add_route(f"blackhole {address}/{length}")

    def heal(self, node: NodePlace, tor: TorPlace) -> None:
        """Undo `blackhole`."""
        for address, length in ((tor.loopback, 32), (tor.loopback6, 128)):
            node.namespace.remove_route(f"{address}/{length}")

    def add_f5(self) -> Namespace:
        """A load balancer on the nodes' segment with one address of its SNAT pool; it reaches pods by the ToRs."""
        f5 = self.lab.namespace(f"{self._prefix}f5")
        self.lab.plug(f5, CABLE, self.fabric, "f5")
        f5.add_address(CABLE, f"{F5_SNAT}/24", f"{F5_SNAT6}/64")
        f5.add_route("default", via=GATEWAY)
        f5.add_route("default", via=GATEWAY6)
        return f5

    def add_pod(self, node: NodePlace, address: str, name: str) -> Namespace:
        """A pod as the ptp plugin attaches one: a veth, a host route on the node, a link-local gateway.

        A pod of the other family is made by calling `Namespace.add_address` and a route on the node.
        """
        pod = self.lab.namespace(f"{self._prefix}{name}")
        port = f"v{name}"[:15]
        self.lab.link(pod, CABLE, node.namespace, port)
        length, gateway = (128, "fe80::1") if ":" in address else (32, "169.254.1.1")
        pod.add_address(CABLE, f"{address}/{length}")
        node.namespace.add_address(port, f"{gateway}/{64 if ':' in address else 32}")
        node.namespace.add_route(f"{address}/{length}", dev=port)
        if length == 32:
            pod.add_route(f"{gateway}/32", dev=CABLE)
        pod.add_route("default", via=gateway, dev=CABLE)
        return pod

    def add_bridged_pod(self, node: NodePlace, address: str, name: str) -> Namespace:
        """A pod as the bridge plugin attaches one: a port of a bridge that has the first address of its /24."""
        pod = self.lab.namespace(f"{self._prefix}{name}")
        bridge, port = f"cni-{name}"[:15], f"v{name}"[:15]
        gateway = address.rpartition(".")[0] + ".1"
        self.lab.bridge(node.namespace, bridge)
        node.namespace.add_address(bridge, f"{gateway}/24")
        self.lab.plug(pod, CABLE, node.namespace, port, bridge)
        pod.add_address(CABLE, f"{address}/24")
        pod.add_route("default", via=gateway)
        return pod

    def _node(self, index: int, last: int) -> NodePlace:
        namespace = self.lab.namespace(f"{self._prefix}node{index}", forwarding=True)
        address, address6 = f"11.8.37.{last}", f"fd00:11:8:37::{last}"
        self.lab.plug(namespace, CABLE, self.fabric, f"node{index}")
        namespace.add_address(CABLE, f"{address}/24", f"{address6}/64")
        namespace.add_route("default", via=GATEWAY)
        namespace.add_route("default", via=GATEWAY6)
        return NodePlace(
            name=f"ydt-net-cilium{index}-nomasquerade",
            address=address,
            address6=address6,
            pod_cidrs=(f"188.188.{index - 1}.0/24", f"fd00:188:188:{index - 1}::/64"),
            namespace=namespace,
        )

    def _tor(self, index: int, speaker: type[Speaker], install_routes: bool) -> TorPlace:
        name = f"tor-{'ab'[index - 1]}"
        namespace = self.lab.namespace(f"{self._prefix}{name}", forwarding=True)
        loopback, loopback6 = f"11.11.255.{index}", f"fd00:11:11:255::{index}"
        self.lab.plug(namespace, CABLE, self.fabric, name)
        namespace.add_address(CABLE, f"11.8.37.{251 + index}/24", f"fd00:11:8:37::{251 + index}/64")
        namespace.add_address("lo", f"{loopback}/32", f"{loopback6}/128")
        namespace.add_route("default", via=GATEWAY)
        namespace.add_route("default", via=GATEWAY6)
        self.fabric.add_route(f"{loopback}/32", via=f"11.8.37.{251 + index}")
        self.fabric.add_route(f"{loopback6}/128", via=f"fd00:11:8:37::{251 + index}")
        multihop = self._neighbor.multihop
        if multihop is None and self.tor_asn != self.node_asn:
            multihop = 4
        neighbors = tuple(
            replace(
                self._neighbor,
                address=it.address,
                asn=self.node_asn,
                local_address=loopback,
                multihop=multihop,
            )
            for it in self.nodes
        )
        options = Options(
            asn=self.tor_asn, router_id=loopback, neighbors=neighbors, install_routes=install_routes
        )
        return TorPlace(
            name=name,
            loopback=loopback,
            loopback6=loopback6,
            namespace=namespace,
            speaker=speaker(namespace, options),
        )

    def _outside(self) -> Namespace:
        outside = self.lab.namespace(f"{self._prefix}outside")
        self.lab.link(outside, CABLE, self.fabric, "outside")
        self.fabric.add_address("outside", "11.11.250.254/24", "fd00:11:11:250::fe/64")
        outside.add_address(CABLE, f"{HEALTH_CHECKER}/24", "fd00:11:11:250::12/64")
        outside.add_address("lo", f"{STRANGER}/32", f"{STRANGER6}/128")
        outside.add_route("default", via="11.11.250.254")
        outside.add_route("default", via="fd00:11:11:250::fe")
        self.fabric.add_route(f"{STRANGER}/32", via=HEALTH_CHECKER)
        self.fabric.add_route(f"{STRANGER6}/128", via="fd00:11:11:250::12")
        return outside

    def _port(self, place: NodePlace | TorPlace) -> str:
        return place.namespace.name.removeprefix(self._prefix)
