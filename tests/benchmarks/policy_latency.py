"""From a policy, or a pod's labels, written at the API server to the first packet that goes by it.

The clock starts when the request leaves. Meanwhile a peer sends to the isolated pod, a datagram each half
millisecond, and the clock stops when the pod receives the first: the rules let nobody in but the peer that the
change is about. So the API server's own share is in the number; how long its answer takes is told beside. Every
change is about another peer, of another namespace.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.benchmarks.masq_stage import POD, Wire
from tests.benchmarks.policy_cluster import NAMESPACES, NODE_PODS, TIERS, address_of, name_of
from tests.benchmarks.policy_stage import Stage
from tests.benchmarks.report import Result, percentile
from tests.benchmarks.stage import Api
from tests.fabric.policy_site import labelled, policy

CHANGES = 200
TIMEOUT_S = 10.0
PORT = 8081
_POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
_BETWEEN_S = 0.0005
_PAUSE_S = (0.05, 0.12)  # at random, so that nobody's rhythm meets ours
_HOME = name_of(0)  # of the pod on the wire
_UDP = [{"protocol": "UDP", "port": PORT}]


def results(stage: Stage, wire: Wire) -> list[Result]:
    """With the daemon at work on the node of the wire."""
    api = stage.connect()
    api.create(_POLICIES.format(_HOME), policy(_HOME, "one-peer", types=["Ingress"]))
    labelled_peers = {"namespaceSelector": {}, "podSelector": labelled(role="allowed")}
    rule = {"from": [labelled_peers], "ports": _UDP}
    api.create(_POLICIES.format(_HOME), policy(_HOME, "by-label", types=["Ingress"], ingress=[rule]))
    rand = random.Random(1)
    peers = rand.sample(range(NODE_PODS, NAMESPACES), 2 * CHANGES)
    written = [_change(wire, each, partial(_replace, api, each)) for each in peers[:CHANGES]]
    labels = [_change(wire, each, partial(_label, api, each)) for each in peers[CHANGES:]]
    return [
        *_results("write_to_enforced", [each[0] for each in written]),
        *_results("label_to_enforced", [each[0] for each in labels]),
        Result(name="policy_answer_p50_ms", value=percentile([each[1] for each in written], 0.5), unit="ms"),
        Result(name="label_answer_p50_ms", value=percentile([each[1] for each in labels], 0.5), unit="ms"),
    ]


def _results(name: str, taken: list[float]) -> Iterator[Result]:
    for share, goal in ((50, 30.0), (99, 150.0)):
        yield Result(name=f"{name}_p{share}_ms", value=percentile(taken, share / 100), unit="ms", goal=goal)


def _replace(api: Api, number: int) -> tuple[float, float]:
    """The policy names this peer and nobody else."""
    home = {"namespaceSelector": labelled(**{"kubernetes.io/metadata.name": name_of(number)})}
    rule = {"from": [{**home, "podSelector": labelled(number=str(number))}], "ports": _UDP}
    return api.replace(
        f"{_POLICIES.format(_HOME)}/one-peer", policy(_HOME, "one-peer", types=["Ingress"], ingress=[rule])
    )


def _label(api: Api, number: int) -> tuple[float, float]:
    """The peer gets the label that the policy asks for."""
    path = f"/api/v1/namespaces/{name_of(number)}/pods/{TIERS[0]}-{number}"
    return api.patch(path, {"metadata": {"labels": {"role": "allowed"}}})


def _change(wire: Wire, number: int, write: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Milliseconds to the first datagram of this peer, and to the API server's answer."""
    stop = threading.Event()
    with (
        contextlib.closing(wire.pod.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener,
        contextlib.closing(wire.outside.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        ThreadPoolExecutor(max_workers=2) as pool,
    ):
        listener.bind((POD, PORT))
        sender.bind((address_of(number), 0))
        listener.settimeout(TIMEOUT_S)
        try:
            received = pool.submit(_first, listener)
            pool.submit(_send, sender, stop)
            time.sleep(random.uniform(*_PAUSE_S))
            if received.done():
                raise RuntimeError(f"peer {number} reaches the pod before it may")
            began, answered = write()
            return 1e3 * (received.result() - began), 1e3 * answered
        finally:
            stop.set()


def _first(listener: socket.socket) -> float:
    """When a datagram came."""
    listener.recv(64)
    return time.monotonic()


def _send(sender: socket.socket, stop: threading.Event) -> None:
    while not stop.wait(_BETWEEN_S):
        sender.sendto(b"?", (POD, PORT))
