"""Requests as a container runtime makes them, for tests to change one thing in."""

from __future__ import annotations

import json
from typing import Any

from bgpd.cni.frame import Frame

NETNS = "/var/run/netns/cni-6f0f"
CONTAINER = "6f0f2a"
POD = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=6f0f2a;K8S_POD_UID=11-22"


def environment(verb: str, **changes: str | None) -> dict[str, str]:
    """As the runtime sets it; a change of None leaves the variable out."""
    usual: dict[str, str | None] = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": NETNS,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"IgnoreUnknown=1;{POD}",
        "CNI_PATH": "/opt/cni/bin",
    }
    return {name: value for name, value in (usual | changes).items() if value is not None}


def previous(version: str = "1.0.0") -> dict[str, Any]:
    """What bridge returns for a pod with two addresses."""
    ips = [
        {"address": "10.244.1.7/24", "gateway": "10.244.1.1", "interface": 2},
        {"address": "fd00::7/64", "interface": 2},
    ]
    if version in ("0.3.1", "0.4.0"):
        ips = [{"version": family, **ip} for family, ip in zip("46", ips, strict=True)]
    return {
        "cniVersion": version,
        "interfaces": [
            {"name": "cni0", "mac": "02:00:00:00:00:01"},
            {"name": "veth3f", "mac": "02:00:00:00:00:02"},
            {"name": "eth0", "mac": "02:00:00:00:00:0A", "sandbox": NETNS},
        ],
        "ips": ips,
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.96.0.10"]},
        "someday": {"unknown": True},
    }


def configuration(version: str = "1.0.0", **changes: Any) -> dict[str, Any]:
    """As the runtime passes it to the last of a chain; a change of None leaves the key out."""
    usual = {"cniVersion": version, "name": "cluster", "type": "bgpd-cni", "prevResult": previous(version)}
    return {name: value for name, value in (usual | changes).items() if value is not None}


def frame(verb: str, values: object = None, **changes: str | None) -> Frame:
    variables = "".join(f"{name}={value}\0" for name, value in environment(verb, **changes).items())
    return Frame(variables.encode(), json.dumps(configuration() if values is None else values).encode())
