"""A node of the cluster that masquerades, by the document of a ConfigMap at the API server.

Decides how the daemon is configured for that, where its pins are, and how the document is written and taken away.
What becomes of packets is for the tests to say.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any, Final

from tests.fabric.node import BgpdNode
from tests.fabric.topology import POD_SUPERNETS, NodePlace

from .apply import apply
from .node import Cluster, bgpd_node
from .rest import ApiError

CONFIG_MAPS: Final = "/api/v1/namespaces/kube-system/configmaps"
CONFIG_MAP: Final = "ip-masq-agent"


@contextlib.contextmanager
def masquerading_node(cluster: Cluster, place: NodePlace, **masquerade: Any) -> Iterator[BgpdNode]:
    """The product on this node, not started; `masquerade` is added to its section. Nothing of it is left behind."""
    section = {
        "enabled": True,
        "config": {"configMap": f"kube-system/{CONFIG_MAP}"},
        "clusterCIDRs": list(POD_SUPERNETS),
        **masquerade,
    }
    bpffs = cluster.fabric.lab.directory / f"{place.namespace.name}-bpf"
    bpffs.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], check=True)
    try:
        with bgpd_node(cluster, place, masquerade=section) as node:
            node.config["paths"]["bpf"] = str(bpffs / "bgpd")
            node.write_config()
            try:
                yield node
            finally:
                if node.daemon is not None:
                    node.daemon.stop()
                    for part in ("policy", "masq"):
                        node.bgpd(part, "clear")
    finally:
        subprocess.run(["umount", "--lazy", bpffs], check=True)
        bpffs.rmdir()


def write_document(cluster: Cluster, text: str) -> None:
    """Makes `text` the document, as `kubectl edit configmap` does."""
    metadata = {"name": CONFIG_MAP, "namespace": "kube-system"}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config": text}}
    apply(cluster.control_plane.admin, manifest)


def delete_document(cluster: Cluster) -> None:
    """Takes the ConfigMap away, if there is one."""
    with contextlib.suppress(ApiError):
        cluster.control_plane.admin.delete(f"{CONFIG_MAPS}/{CONFIG_MAP}")
