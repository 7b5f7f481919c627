"""From a ConfigMap written at the API server to a new flow that goes by it.

The clock starts when the request leaves. Meanwhile a pod sends to the destination that is being listed, every
datagram from another port, which is a new flow every half millisecond, and the clock stops when the outside receives
the first that has the pod's address. So the API server's own share is in the number; how long its answer takes is
told beside. The flows before that were seen with the node's address: the first of them is waited for.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from tests.benchmarks.masq_contenders import LONG
from tests.benchmarks.masq_stage import FAR, NODE, NODE_NAME, POD, POD_CIDR, MasqDaemon, Wire, document, prefixes
from tests.benchmarks.report import Result, percentile
from tests.benchmarks.stage import NODES, RBAC, Api
from tests.cluster.build import binaries
from tests.cluster.controlplane import ControlPlane
from tests.fabric.netns import Lab

CHANGES, CHANGES_LONG = 200, 20
SHORT = 8  # entries, as many as a real fabric had
TIMEOUT_S = 10.0
NAMESPACE, NAME = "kube-system", "ip-masq-agent"
_CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
_NODE_END, _API_END = "172.31.0.1", "172.31.0.2"
_BETWEEN_FLOWS_S = 0.0005
_PAUSE_S = (0.05, 0.12)  # at random, so that nobody's rhythm meets ours


def results(lab: Lab, place: Path) -> list[Result]:
    wire = Wire(lab, "flow")
    with _cluster(lab, wire) as (api, source):
        daemon = MasqDaemon(wire, place, f"{NAMESPACE}/{NAME}", source=source)
        daemon.node.start_daemon()
        daemon.wait_masquerades()
        targets = iter(FAR.subnets(new_prefix=32))
        next(targets)
        taken = [_change(wire, api, prefixes(SHORT), next(targets)) for _ in range(CHANGES)]
        flows, answers = ([each[part] for each in taken] for part in (0, 1))
        long = [_change(wire, api, prefixes(LONG - 1), next(targets))[0] for _ in range(CHANGES_LONG)]
    return [
        Result(name="write_to_flow_p50_ms", value=percentile(flows, 0.5), unit="ms", goal=30.0),
        Result(name="write_to_flow_p99_ms", value=percentile(flows, 0.99), unit="ms", goal=150.0),
        Result(name="configmap_answer_p50_ms", value=percentile(answers, 0.5), unit="ms"),
        Result(name="write_to_flow_16k_p50_ms", value=percentile(long[1:], 0.5), unit="ms"),
    ]


@contextlib.contextmanager
def _cluster(lab: Lab, wire: Wire) -> Iterator[tuple[Api, dict[str, Any]]]:
    """An API server beside the node, with its Node and an empty list; and how the daemon is told of it."""
    place = lab.namespace("api")
    lab.link(wire.node, "eth1", place, "eth0")
    wire.node.add_address("eth1", f"{_NODE_END}/30")
    place.add_address("eth0", f"{_API_END}/30")
    network, directory = place.netns_name, lab.directory / "control-plane"
    with ControlPlane(directory, binaries(), address=_API_END, network=network) as control_plane:
        control_plane.apply_file(RBAC)
        spec = {"podCIDR": POD_CIDR, "podCIDRs": [POD_CIDR]}
        status = {"addresses": [{"type": "InternalIP", "address": NODE}]}
        control_plane.admin.create(NODES, {"metadata": {"name": NODE_NAME}, "spec": spec, "status": status})
        control_plane.admin.create(_CONFIG_MAPS, _config_map([]))
        token = lab.directory / "token"
        token.write_text(control_plane.service_account_token(NAMESPACE, "bgpd") + "\n")
        kubeconfig = control_plane.token_kubeconfig(token)
        yield Api(control_plane, network), {"kubernetes": {"kubeconfig": str(kubeconfig)}}


def _config_map(entries: Sequence[IPv4Network]) -> dict[str, Any]:
    name = {"name": NAME, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": {"config": document(entries)}}


def _change(wire: Wire, api: Api, others: Sequence[IPv4Network], target: IPv4Network) -> tuple[float, float]:
    """Lists `target` in the place of the one before; milliseconds to the flow, and to the API server's answer."""
    wanted, masqueraded = _config_map([*others, target]), threading.Event()
    with (
        contextlib.closing(wire.outside.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        listener.bind(("", 0))
        listener.settimeout(TIMEOUT_S)
        probe = partial(_first_kept, listener, str(target.network_address), masqueraded)
        kept = pool.submit(wire.pod.call, probe)
        if not masqueraded.wait(TIMEOUT_S):
            raise TimeoutError(f"no flow to {target} was masqueraded before it was listed")
        time.sleep(random.uniform(*_PAUSE_S))
        began, answered = api.replace(f"{_CONFIG_MAPS}/{NAME}", wanted)
        return 1e3 * (kept.result() - began), 1e3 * answered


def _first_kept(listener: socket.socket, destination: str, masqueraded: threading.Event) -> float:
    """When the first flow with the pod's address came; it is called in the pod's namespace."""
    to = destination, listener.getsockname()[1]
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"?", to)
        source = listener.recvfrom(64)[1][0]
        now = time.monotonic()
        if source == POD:
            return now
        if now > deadline:
            raise TimeoutError(f"flows to {destination} are still masqueraded")
        masqueraded.set()
        time.sleep(_BETWEEN_FLOWS_S)
