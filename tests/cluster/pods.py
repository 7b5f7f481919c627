"""Pods on a node of the fabric, attached by real CNI plugins as a container runtime calls them.

Decides how a plugin is called (CNI specification, section 3) and where a pod's namespace comes from. Which plugin,
and with which configuration, is for the tests to say. Nothing is detached: the lab takes the namespaces away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Final

from tests.fabric.netns import Namespace
from tests.fabric.topology import CABLE, NodePlace

PLUGINS: Final = Path("/usr/lib/cni")
NETWORK: Final = {"cniVersion": "0.4.0", "name": "pods"}
BRIDGE: Final = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True}
PTP: Final = {"type": "ptp"}


@dataclass(frozen=True, slots=True)
class Pod:
    """A namespace with an interface, and its addresses by IP version."""

    namespace: Namespace
    addresses: Mapping[int, str]


def host_local(place: NodePlace, directory: Path) -> dict[str, Any]:
    """The IPAM part for the pod CIDRs of this node; leases lie in `directory`."""
    return {
        "type": "host-local",
        "ranges": [[{"subnet": cidr}] for cidr in place.pod_cidrs],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dataDir": str(directory),
    }


def add_pod(place: NodePlace, name: str, plugin: Mapping[str, Any]) -> Pod:
    """ADD of a new pod on this node; `plugin` is the network configuration without version and name."""
    lab = place.namespace.lab
    namespace = lab.namespace(name)
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": name,
        "CNI_NETNS": str(namespace.path),
        "CNI_IFNAME": CABLE,
        "CNI_PATH": str(PLUGINS),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    configuration = json.dumps({**NETWORK, **plugin})
    done = place.namespace.run([str(PLUGINS / plugin["type"])], stdin=configuration, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    given = [ip_interface(each["address"]) for each in json.loads(done.stdout)["ips"]]
    return Pod(namespace, {each.version: str(each.ip) for each in given})
