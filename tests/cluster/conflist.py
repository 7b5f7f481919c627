"""The whole conflist in a ConfigMap, as an operator writes it, and a node that has its conflist from there.

Decides how the daemon is configured for that and how the ConfigMap is written and taken away. What is in it is for
the tests to say.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from bgpd.cni.conflist import CONFIG_MAP_KEY
from bgpd.cni.protocol import PLUGIN_TYPE
from tests.fabric.node import BgpdNode

from .apply import apply
from .masq import CONFIG_MAPS
from .node import Cluster
from .rest import ApiError

CONFIG_MAP: Final = "cni-configuration"


def configure(node: BgpdNode) -> None:
    """Policy and the plugin, by directories of a container runtime that nothing else is in."""
    for name, directory in (("cniConf", "net.d"), ("cniBin", "bin"), ("cniCache", "results")):
        node.config["paths"][name] = str(node.directory / directory)
    node.config["policy"] = {"enabled": True}
    node.config["cni"] = {"chainingMode": "generic-veth", "configMap": f"kube-system/{CONFIG_MAP}"}
    node.write_config()


def chain(node: BgpdNode, main: str = "bridge", **more: Any) -> dict[str, Any]:
    """A conflist with our plugin at its end, which reaches this node's daemon; `more` is added to it."""
    paths = {"socket": f"{node.directory}/run/cni.sock", "queue": f"{node.directory}/state/cni-queue"}
    plugins = [{"type": main}, {"type": PLUGIN_TYPE, **paths}]
    return {"name": "generic-veth", "cniVersion": "0.3.1", "plugins": plugins, **more}


def write_config_map(cluster: Cluster, text: str, key: str = CONFIG_MAP_KEY) -> None:
    """As `kubectl apply` does it."""
    metadata = {"name": CONFIG_MAP, "namespace": "kube-system"}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {key: text}}
    apply(cluster.control_plane.admin, manifest)


def delete_config_map(cluster: Cluster) -> None:
    """Takes it away, if there is one."""
    with contextlib.suppress(ApiError):
        cluster.control_plane.admin.delete(f"{CONFIG_MAPS}/{CONFIG_MAP}")
