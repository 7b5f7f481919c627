"""What a node needs so that the CNI plugin is chained there, and the plugin's part in a request to the daemon.

Who starts pods, and what becomes of them, is for the tests to say.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bgpd.cni.frame import Frame
from tests.fabric.netns import Namespace
from tests.fabric.node import BgpdNode
from tests.unit.cni_requests import frame

ANSWER_S = 10.0


def sections(directory: Path) -> dict[str, Any]:
    """Of bgpd.yaml, for a node whose files lie there: chained behind its only network, which is written there."""
    places = {name: directory / name for name in ("cniConf", "cniBin", "cniCache")}
    for place in places.values():
        place.mkdir(parents=True)
    main = {"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "bridge"}]}
    (places["cniConf"] / "10-cluster.conflist").write_text(json.dumps(main))
    places |= {name: directory / name for name in ("run", "state", "bpf")}
    return {
        "paths": {name: str(place) for name, place in places.items()},
        "policy": {"enabled": True},
        "cni": {"chainingMode": "auto"},
    }


def ask(node: BgpdNode, asked: Frame) -> int:
    """The plugin's exit status."""
    with socket.socket(socket.AF_UNIX) as plugin:
        plugin.settimeout(ANSWER_S)
        plugin.connect(str(node.directory / "run" / "cni.sock"))
        plugin.sendall(asked.encode())
        return int(plugin.makefile("rb").readline().split()[1])


def add(
    node: BgpdNode, pod: Namespace, mac: bytes, addresses: Iterable[str], *, interface: str = "eth0", names: str = ""
) -> int:
    """As `ask`, of an ADD; `addresses` with their lengths, `names` as CNI_ARGS has those of the pod."""
    told = [{"name": interface, "mac": mac.hex(":"), "sandbox": str(pod.path)}]
    result = {
        "cniVersion": "1.0.0",
        "interfaces": told,
        "ips": [{"address": address, "interface": 0} for address in addresses],
    }
    values = {"cniVersion": "1.0.0", "name": "cluster", "type": "bgpd-cni", "prevResult": result}
    key = {"CNI_CONTAINERID": pod.name, "CNI_IFNAME": interface}
    return ask(node, frame("ADD", values, CNI_NETNS=str(pod.path), CNI_ARGS=names, **key))
