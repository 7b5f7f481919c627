"""A real kube-proxy on a node of the fabric, and the Services that it makes reachable.

Decides its configuration, and how a Service and its endpoints are written, which no controller does here. What its
rules do beside others is for the tests to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.fabric.process import Process
from tests.fabric.topology import POD_SUPERNETS, NodePlace

from .node import Cluster
from .rest import JsonObject

SERVICES: Final = "/api/v1/namespaces/default/services"
SLICES: Final = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
PORT: Final = 8080
_COUNTED: Final = re.compile(r"counter packets \d+ bytes \d+|\b\d+ packets \d+ bytes|# handle \d+")


@dataclass(frozen=True, slots=True)
class Service:
    """Where a Service is reached, by IP version, and at which port of every node; the first of them, if several.

    `targets` are the ports of its endpoints, with their protocols, by name.
    """

    name: str
    addresses: dict[int, str]
    node_port: int
    targets: dict[str, tuple[int, str]]


def make_service(cluster: Cluster, name: str, **spec: Any) -> Service:
    """A dual-stack Service, without endpoints; `spec` is added to it. By default it has one port."""
    body = {
        "type": "NodePort",
        "ipFamilyPolicy": "RequireDualStack",
        "ports": [{"port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        **spec,
    }
    made = cluster.control_plane.admin.create(SERVICES, {"metadata": {"name": name}, "spec": body})["spec"]
    addresses = {6 if ":" in each else 4: each for each in made["clusterIPs"]}
    targets = {each.get("name", ""): (each["targetPort"], each["protocol"]) for each in made["ports"]}
    service = Service(name, addresses, made["ports"][0]["nodePort"], targets)
    for family in ("IPv4", "IPv6"):
        cluster.control_plane.admin.create(SLICES, _slice(service, family, []))
    return service


def give_endpoints(cluster: Cluster, service: Service, node: str, addresses: Sequence[str]) -> None:
    """Makes these, all of that node, the endpoints of the Service; none of a family that has no address here."""
    for family in ("IPv4", "IPv6"):
        wanted = [each for each in addresses if (":" in each) == (family == "IPv6")]
        endpoints = [{"addresses": [each], "conditions": {"ready": True}, "nodeName": node} for each in wanted]
        body = _slice(service, family, endpoints)
        cluster.control_plane.admin.replace(f"{SLICES}/{body['metadata']['name']}", body)


def _slice(service: Service, family: str, endpoints: list[JsonObject]) -> JsonObject:
    labels = {"kubernetes.io/service-name": service.name}
    return {
        "metadata": {"name": f"{service.name}-{family.lower()}", "labels": labels},
        "addressType": family,
        "ports": [
            {"name": name, "port": port, "protocol": protocol} for name, (port, protocol) in service.targets.items()
        ],
        "endpoints": endpoints,
    }


class KubeProxy:
    """kube-proxy in the namespace of a node, in `mode` (iptables or nftables), with the rights of its own role."""

    def __init__(self, cluster: Cluster, place: NodePlace, binaries: Path, mode: str) -> None:
        self.mode = mode
        self._place, self._program = place, str(binaries / "kube-proxy")
        self._kubeconfig = cluster.control_plane.kubeconfig("system:kube-proxy")
        self._file = cluster.fabric.lab.directory / f"kube-proxy-{mode}.json"
        self.process: Process | None = None

    def start(self, *, masquerade_all: bool = False) -> None:
        """Starts it anew, if it is running."""
        self.stop()
        # 0 would be its default: nothing sooner than a second after the last change
        each_mode = {"masqueradeAll": masquerade_all, "syncPeriod": "1s", "minSyncPeriod": "10ms"}
        configuration = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self._kubeconfig)},
            "mode": self.mode,
            "hostnameOverride": self._place.name,
            "clusterCIDR": ",".join(POD_SUPERNETS),
            "detectLocalMode": "ClusterCIDR",
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            # sysctls of the whole machine
            "conntrack": dict.fromkeys(("maxPerCore", "min"), 0)
            | dict.fromkeys(("tcpEstablishedTimeout", "tcpCloseWaitTimeout"), "0s"),
            self.mode: each_mode,
        }
        self._file.write_text(json.dumps(configuration))
        argv = [self._program, f"--config={self._file}", "-v=2"]
        self.process = self._place.namespace.popen(argv, name=f"kube-proxy-{self.mode}")

    def stop(self) -> None:
        """Its rules stay, as they do on a node."""
        if self.process is not None:
            self.process.stop()
            self.process = None

    def clean_up(self) -> None:
        """Ends it, and takes its rules away."""
        self.stop()
        self._place.namespace.run([self._program, "--cleanup", f"--config={self._file}"], check=False)

    def log(self) -> str:
        return "(not running)" if self.process is None else self.process.log_tail()


def ruleset(place: NodePlace, *, ours: bool) -> str:
    """All nf_tables rules of the node, ours or everybody else's, without what counts and numbers them."""
    text = place.namespace.run(["nft", "list", "ruleset"]).stdout
    tables = re.split(r"^(?=table )", text, flags=re.MULTILINE)
    wanted = [each for each in tables if each.startswith("table inet bgpd ") is ours]
    return _COUNTED.sub("", "".join(wanted))
