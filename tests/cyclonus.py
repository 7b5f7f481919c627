"""230 cases of NetworkPolicy with the truth that others worked out: mattfenwick/cyclonus (MIT), as data.

It is not part of the project: it is looked for beside the repository and where BGPD_CONFORMANCE_DATA points.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bgpd.kube.networkpolicy import NETWORK_POLICY
from bgpd.kube.parse import NAMESPACE
from bgpd.model.pod import ContainerPort, Namespace, Pod
from bgpd.model.policy import NetworkPolicy, Protocol, Snapshot

SHARED = Path(__file__).parents[2] / "shared" / "data"
FILE = Path(os.environ.get("BGPD_CONFORMANCE_DATA", SHARED)) / "cyclonus-cases.json.gz"
ALLOWED = "a"
STEPS, ROWS = 256, 109_956
CONTAINER_PORTS = [
    (f"serve-{port}-{protocol.lower()}", protocol, port) for port in (80, 81) for protocol in ("SCTP", "TCP", "UDP")
]
"""Those of every pod: name, protocol and number."""

_PORTS = tuple(ContainerPort(name, Protocol[protocol], port) for name, protocol, port in CONTAINER_PORTS)

needed = pytest.mark.skipif(
    not FILE.exists(), reason=f"{FILE} is not there; BGPD_CONFORMANCE_DATA can say where it is"
)


class Row(NamedTuple):
    client: str
    server: str
    protocol: str
    port: int
    port_name: str
    ingress: str
    egress: str
    combined: str


def cases() -> list[dict[str, Any]]:
    return list(json.loads(gzip.decompress(FILE.read_bytes()))["cases"])


def rows(step: dict[str, Any]) -> Iterator[Row]:
    """What is expected, a pod to itself left out."""
    return (row for row in (Row(*each) for each in step["expected"]) if row.client != row.server)


def snapshot(step: dict[str, Any]) -> Snapshot:
    """The cluster of a step, with every pod on this node."""
    pods = {
        f"{pod['Namespace']}/{pod['Name']}": Pod(
            namespace=pod["Namespace"],
            name=pod["Name"],
            labels=pod["Labels"],
            ips=(ip_address(pod["IP"]),),
            ports=_PORTS,
        )
        for pod in step["pods"]
    }
    policies = [_policy(content) for content in step["policies"]]
    return Snapshot(
        pods=pods,
        namespaces={name: _namespace(name, labels) for name, labels in step["namespaces"].items()},
        policies={each.key: each for each in policies},
        local=dict.fromkeys(pods, ()),
    )


def _policy(content: dict[str, Any]) -> NetworkPolicy:
    read = NETWORK_POLICY.to_model(NETWORK_POLICY.convert(content))
    assert read.faults == ()
    return read


def _namespace(name: str, labels: dict[str, str]) -> Namespace:
    return NAMESPACE.to_model(NAMESPACE.convert({"metadata": {"name": name, "labels": labels}}))
