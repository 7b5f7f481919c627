"""Where policy is measured: one API server that has the whole cluster, and nodes that run the daemon beside it.

This decides how the cluster gets into the API server and how a node of it is wired and started. It does not decide
what is in it (`policy_cluster`). The objects are written straight into etcd, before anybody reads them: what is
measured is what comes after, and that goes through the API server.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

from bgpd.datapath.layout import PEER
from tests.benchmarks.masq_stage import FAR, POD, Wire
from tests.benchmarks.policy_cluster import NODE_PODS, namespaces, pods, policies, stored
from tests.benchmarks.stage import RBAC, Api
from tests.cluster.build import binaries
from tests.cluster.controlplane import ControlPlane
from tests.fabric.netns import Lab, Namespace
from tests.fabric.policy_site import Cluster, Object, node_object
from tests.fabric.process import poll

CNI_PATHS = ("cniConf", "cniBin", "cniCache")
READY_S = 60.0
MANAGEMENT = IPv4Network("172.31.0.0/24")
_API_END, _BITS = str(MANAGEMENT[1]), MANAGEMENT.prefixlen
_POD_NETWORK = IPv4Network("10.244.1.0/24")


def node_addresses(count: int = NODE_PODS) -> list[str]:
    """Of the pods of a node; the first is the pod's on a wire."""
    others = (str(each) for each in _POD_NETWORK.hosts() if str(each) != POD)
    return [POD, *itertools.islice(others, 1, count)]


class Stage:
    """The API server, and the nodes that have joined it."""

    def __init__(self, lab: Lab, place: Path, network: Namespace, control_plane: ControlPlane) -> None:
        self.lab, self._place, self._network, self.control_plane = lab, place, network, control_plane
        self._ends = MANAGEMENT.hosts()
        next(self._ends)
        control_plane.apply_file(RBAC)
        token = lab.directory / "token"
        token.write_text(control_plane.service_account_token("kube-system", "bgpd"))
        self.kubeconfig = control_plane.token_kubeconfig(token)

    def connect(self) -> Api:
        """As the cluster's administrator, on one open connection. The server closes one that nothing is asked on."""
        return Api(self.control_plane, self._network.netns_name)

    def store(self, objects: Iterable[Object]) -> None:
        """Into etcd, as the cluster itself."""
        self.control_plane.store(stored(objects))

    def join(self, name: str, node: Namespace) -> Cluster:
        """The daemon of a node of this name, configured and not started."""
        port = f"port{len(self._network.lab.namespaces)}"
        self.lab.plug(node, "management", self._network, port)
        node.add_address("management", f"{next(self._ends)}/{_BITS}")
        self.store([node_object(name, [])])
        source = {"kubernetes": {"kubeconfig": str(self.kubeconfig)}}
        pins = self._place / node.name
        pins.mkdir()
        cluster = Cluster(node, pins, name, source=source, cni={"chainingMode": "auto"})
        for path in CNI_PATHS:
            directory = cluster.node.directory / path
            directory.mkdir()
            cluster.node.config["paths"][path] = str(directory)
        cluster.node.write_config()
        return cluster


@contextlib.contextmanager
def stage(lab: Lab, place: Path, objects: Iterable[Object]) -> Iterator[Stage]:
    """With these in the API server, which ends with the block."""
    network = lab.namespace("api")
    lab.bridge(network)
    network.add_address("br0", f"{_API_END}/{_BITS}")
    directory = lab.directory / "control-plane"
    with ControlPlane(directory, binaries(), address=_API_END, network=network.netns_name) as control_plane:
        control_plane.store(stored(objects))
        yield Stage(lab, place, network, control_plane)


def whole_cluster(node: str) -> list[Object]:
    """All of it, with the pods of this node."""
    return [*namespaces(), *pods(node, node_addresses()), *policies()]


def start(cluster: Cluster, pods: int) -> None:
    """Returns when the maps were filled, as the daemon says, and the tables ask; nobody asks the daemon meanwhile.

    RuntimeError: not so many pods are isolated then.
    """

    def said() -> str:
        return cluster.node.bgpd("status", check=False)

    before = _fillings(cluster)
    cluster.node.start_daemon()
    poll(lambda: _fillings(cluster) > before, READY_S, said)
    poll(cluster.has_tables, READY_S, said)
    if (found := isolated(cluster)) != pods:
        raise RuntimeError(f"{found} pods are isolated, and {pods} should be: {said()}")


def _fillings(cluster: Cluster) -> int:
    """How often the daemons of this node have said so."""
    daemon = cluster.node.daemon
    return 0 if daemon is None else daemon.log().count('"subsystem": "policy_maps"')


def isolated(cluster: Cluster) -> int:
    """How many addresses have a set of rules in the kernel."""
    values = map(PEER.unpack, cluster.map("policy_peers").entries().values())
    return sum(1 for _, egress, ingress, _ in values if egress or ingress)


class BridgedWire(Wire):
    """Pod and outside are two ports of the node's bridge: what they send each other is not routed."""

    br_netfilter = True

    def _wire(self) -> None:
        lab, node = self.lab, self.node
        lab.bridge(node, "cni0")
        lab.plug(self.pod, "eth0", node, "pod0", "cni0")
        lab.plug(self.outside, "eth0", node, "pod1", "cni0")
        value = str(int(self.br_netfilter))
        node.sysctl({f"net/bridge/bridge-nf-call-{name}": value for name in ("iptables", "ip6tables")})
        self.pod.add_address("eth0", f"{POD}/{_POD_NETWORK.prefixlen}")
        self.outside.add_address("eth0", f"{_POD_NETWORK[-2]}/{_POD_NETWORK.prefixlen}")
        self.outside.ip(f"route add local {FAR} dev lo")
        self.pod.add_route(str(FAR), via=str(_POD_NETWORK[-2]))


class BareBridgedWire(BridgedWire):
    """And the bridge hands what it forwards to nobody."""

    br_netfilter = False
