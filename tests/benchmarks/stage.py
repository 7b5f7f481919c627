"""Where it is measured: the two-ToR fabric and a real API server on the nodes' segment.

This decides where the API server is and how the measuring process talks to it: over one connection that stays
open, so that no TLS handshake is in any number. It does not decide who is measured (`contenders`).

A Node's pod CIDRs cannot be changed once they are set, the API server sees to that. So a change is what happens
in a cluster when a node is registered anew: the Node is deleted and created without pod CIDRs, and the moment
that counts is when the controller manager assigns them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import netns
from tests.cluster.build import binaries
from tests.cluster.controlplane import ControlPlane
from tests.cluster.rest import MERGE_PATCH, ApiError
from tests.fabric.netns import Lab
from tests.fabric.topology import CABLE, NodePlace, TwoTorFabric

NODES = "/api/v1/nodes"
API_ADDRESS = "11.8.37.20"
RBAC = Path(__file__).parents[2] / "config" / "rbac.yaml"


class Api:
    """The cluster's administrator, on one open connection."""

    def __init__(self, control_plane: ControlPlane, network: str) -> None:
        kubeconfig = yaml.safe_load(control_plane.kubeconfig("bench", "system:masters").read_text())
        credential = kubeconfig["users"][0]["user"]
        tls = ssl.create_default_context(cafile=str(control_plane.certificate_authority))
        tls.load_cert_chain(credential["client-certificate"], credential["client-key"])
        plain = netns.connect(network, control_plane.address, control_plane.port, 10.0)
        plain.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, 1)
        self._connection = http.client.HTTPConnection(control_plane.address, control_plane.port)
        self._connection.sock = tls.wrap_socket(plain, server_hostname=control_plane.address)

    def register(self, place: NodePlace) -> None:
        """The Node as a kubelet makes it: no pod CIDRs yet. One that is there is deleted before."""
        with contextlib.suppress(ApiError):
            self._request("DELETE", f"{NODES}/{place.name}")
        addresses = [{"type": "InternalIP", "address": it} for it in (place.address, place.address6)]
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": place.name},
            "status": {"addresses": addresses},
        }
        self._request("POST", NODES, node)

    def assign(self, place: NodePlace, pod_cidrs: Sequence[str]) -> tuple[float, float]:
        """Sets the pod CIDRs; when the request left, and how long the answer took."""
        spec = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)}
        return self.patch(f"{NODES}/{place.name}", {"spec": spec})

    def replace(self, path: str, body: Mapping[str, Any]) -> tuple[float, float]:
        """Puts an object in the place of the one that is there; returns as `assign`."""
        return self._timed("PUT", path, body)

    def patch(self, path: str, body: Mapping[str, Any]) -> tuple[float, float]:
        """Merges this into the object (RFC 7386); returns as `assign`."""
        return self._timed("PATCH", path, body, MERGE_PATCH)

    def create(self, path: str, body: Mapping[str, Any]) -> tuple[float, float]:
        """`path` is the collection's; returns as `assign`."""
        return self._timed("POST", path, body)

    def _timed(self, method: str, path: str, body: Any, *content_type: str) -> tuple[float, float]:
        began = time.monotonic()
        self._request(method, path, body, *content_type)
        return began, time.monotonic() - began

    def _request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> None:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"Content-Type": content_type})
        response = self._connection.getresponse()
        text = response.read()
        if response.status >= 400:
            raise ApiError(response.status, text.decode(errors="replace"))


class Stage:
    """`fabric` with its ToRs started, `control_plane` with the rights of config/rbac.yaml, `api` to change Nodes."""

    def __init__(self, lab: Lab, control_plane: ControlPlane, fabric: TwoTorFabric, network: str) -> None:
        self.lab, self.control_plane, self.fabric = lab, control_plane, fabric
        self.api = Api(control_plane, network)
        control_plane.apply_file(RBAC)
        self.token = lab.directory / "token"
        self.token.write_text(control_plane.service_account_token("kube-system", "bgpd") + "\n")
        self.kubeconfig = control_plane.token_kubeconfig(self.token)


@contextlib.contextmanager
def stage(lab: Lab, fabric: TwoTorFabric | None = None) -> Iterator[Stage]:
    """Everything in `lab`, on its `fabric` if it has one; the API server ends with the block."""
    fabric = fabric or TwoTorFabric(lab).start()
    place = lab.namespace("api")
    lab.plug(place, CABLE, fabric.fabric, "api")
    place.add_address(CABLE, f"{API_ADDRESS}/24")
    directory = lab.directory / "control-plane"
    network = place.netns_name
    with ControlPlane(directory, binaries(), address=API_ADDRESS, network=network) as control_plane:
        yield Stage(lab, control_plane, fabric, network)
