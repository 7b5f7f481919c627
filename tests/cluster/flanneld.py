"""A real flannel on a node of the fabric: host-gw, and what its CNI plugin makes of it.

Decides its configuration. Who masquerades besides, and what becomes of packets, is for the tests to say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fabric.process import Process, poll
from tests.fabric.topology import CABLE, POD_SUPERNETS, NodePlace

from .node import NODES, Cluster
from .pods import BRIDGE, host_local

READY_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Mode:
    """Who masquerades besides: flannel (with nf_tables or iptables), or its bridge plugin."""

    name: str
    ip_masq: bool
    nf_tables: bool


MODES: Final = (
    Mode("flannel-iptables", ip_masq=True, nf_tables=False),
    Mode("flannel-nftables", ip_masq=True, nf_tables=True),
    Mode("bridge-plugin", ip_masq=False, nf_tables=False),
)


class Flannel:
    """flanneld on one node, with the kube subnet manager; `environment` is what its CNI plugin reads."""

    def __init__(self, cluster: Cluster, place: NodePlace, binaries: Path, mode: Mode) -> None:
        self.place, self._cluster = place, cluster
        directory = cluster.fabric.lab.directory / f"{place.namespace.name}-flannel-{mode.name}"
        directory.mkdir()
        network = {
            "Network": POD_SUPERNETS[0],
            "EnableIPv6": True,
            "IPv6Network": POD_SUPERNETS[1],
            "EnableNFTables": mode.nf_tables,
            "Backend": {"Type": "host-gw"},
        }
        (directory / "net-conf.json").write_text(json.dumps(network))
        self.environment = directory / "subnet.env"
        self._argv = [
            str(binaries / "flanneld"),
            "--kube-subnet-mgr",
            f"--kubeconfig-file={cluster.control_plane.kubeconfig('flannel', 'system:masters')}",
            f"--net-config-path={directory / 'net-conf.json'}",
            f"--subnet-file={self.environment}",
            f"--iface={CABLE}",
            f"--ip-masq={str(mode.ip_masq).lower()}",
            "--iptables-resync=1",
        ]
        self.process: Process | None = None

    def start(self) -> None:
        """Starts it anew, if it is running, and waits until it has read its Node and made its rules."""
        self.stop()
        # as every Node has some; flannel panics on one without
        annotations = {"metadata": {"annotations": {"node.alpha.kubernetes.io/ttl": "0"}}}
        self._cluster.control_plane.admin.patch(f"{NODES}/{self.place.name}", annotations)
        self.environment.unlink(missing_ok=True)
        environment = {"NODE_NAME": self.place.name, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self.process = self.place.namespace.popen(self._argv, name="flanneld", env=environment)
        poll(self.environment.exists, READY_S, self.process.log_tail)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()

    def log(self) -> str:
        return "(never started)" if self.process is None else self.process.log_tail()

    def plugin(self, leases: Path) -> dict[str, object]:
        """What the flannel CNI plugin makes of its environment for its delegate."""
        settings = dict(line.split("=") for line in self.environment.read_text().splitlines())
        masquerades = settings["FLANNEL_IPMASQ"] == "false"
        return {
            **BRIDGE,
            "ipMasq": masquerades,
            "mtu": int(settings["FLANNEL_MTU"]),
            "ipam": host_local(self.place, leases),
        }
