"""What the plugin adds to the start of a pod: Debian's bridge plugin with ours behind it, in the published chain.

A node has 100 pods; another is attached and detached again and again, and each plugin is timed from its start to its
end, by who starts it: a runtime starts them one after the other, so ours is the time added. Then 200 pods are
attached at once. None may be lost: attached means that its rules are in the kernel.

In the end one by one again while a policy of another pod does not fit into the maps: nobody else may wait for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bgpd.model.attachment import OWN_FILE
from tests.benchmarks.policy_cluster import name_of, pod
from tests.benchmarks.policy_stage import READY_S, Stage, isolated
from tests.benchmarks.report import Result, percentile
from tests.contract.cni_runtime import DEBIAN, PluginError, Runtime
from tests.fabric.netns import Namespace
from tests.fabric.policy_site import Cluster, Object, labelled, namespace, policy
from tests.fabric.process import poll

PROGRAMS = tuple(str(DEBIAN / name) for name in ("bridge", "host-local"))
NODE, HOME = "worker2", "shop"
STANDING, ADDS, AT_ONCE = 100, 200, 200
POLICIES = 10
CROWDED, GIANT = "crowded", "giant"
GIANT_RULES = 1_000  # with a set of ranges each that no other rule has, of 75 entries and more
PAUSE_S = 0.05  # what a DEL leaves to be done is not in the next ADD
_MAIN, _OURS = "bridge", "bgpd-cni"
_ADDRESSES = "10.244.0.0/22"


def objects() -> Iterator[Object]:
    """The pods that are going to be attached, and policies that select all of them."""
    yield namespace(HOME, {"kubernetes.io/metadata.name": HOME})
    for number in range(STANDING + AT_ONCE):
        yield pod(HOME, _pod(number), None, {"tier": "web"}, NODE)
    yield namespace(CROWDED, {"kubernetes.io/metadata.name": CROWDED})
    yield pod(CROWDED, "waiting", None, {"tier": "web"}, NODE)
    for number in range(POLICIES):
        rule = {"from": [{"namespaceSelector": labelled(**{"kubernetes.io/metadata.name": name_of(number)})}]}
        yield policy(HOME, f"policy-{number}", types=["Ingress"], ingress=[rule])


def results(stage: Stage) -> list[Result]:
    stage.store(objects())
    cluster, runtime = _node(stage)
    pods = [stage.lab.namespace(_pod(number)) for number in range(STANDING + AT_ONCE)]
    node = cluster.node.namespace

    node.call(lambda: [runtime.add(each.name, each.path, each.name) for each in pods[:STANDING]])
    took_ms = _one_by_one(runtime, node, pods[STANDING])
    failed = _at_once(runtime, node, pods[STANDING:])
    lost = len(pods) - isolated(cluster)
    together_ms = [1e3 * each for each in runtime.took_s[_OURS]]
    for each in pods[STANDING:]:
        node.call(partial(runtime.delete, each.name, each.path))
    stage.connect().create(f"/apis/networking.k8s.io/v1/namespaces/{CROWDED}/networkpolicies", giant())
    poll(lambda: _blocked(cluster), READY_S, lambda: cluster.node.bgpd("status", check=False))
    misfit_ms = _one_by_one(runtime, node, pods[STANDING])
    if not _blocked(cluster):
        raise RuntimeError(f"NetworkPolicy {GIANT} fits, and should not")
    return [
        *_shares("cni_add_share", took_ms),
        Result(name=f"cni_{AT_ONCE}_at_once_lost", value=max(failed, lost), unit="pods", goal=0),
        Result(name=f"cni_{AT_ONCE}_at_once_p99_ms", value=percentile(together_ms, 0.99), unit="ms"),
        *_shares("cni_add_share_blocked", misfit_ms),
    ]


def giant() -> Object:
    """A policy that does not fit: a set of ranges of its own for each of many namespaces."""
    rules = [
        {
            "from": [{"namespaceSelector": labelled(**{"kubernetes.io/metadata.name": name_of(number)})}],
            "ports": [
                {"protocol": protocol, "port": 1, "endPort": 65534 - number} for protocol in ("TCP", "UDP", "SCTP")
            ],
        }
        for number in range(GIANT_RULES)
    ]
    return policy(CROWDED, GIANT, types=["Ingress"], ingress=rules)


def _blocked(cluster: Cluster) -> bool:
    """Whether the daemon says so."""
    return f"{CROWDED}/{GIANT} does not fit" in cluster.node.bgpd("status", check=False)


def _shares(name: str, took_ms: dict[str, list[float]]) -> Iterator[Result]:
    for share, goal in ((50, 12.0), (99, 60.0)):
        ours, theirs = (percentile(took_ms[each], share / 100) for each in (_OURS, _MAIN))
        yield Result(name=f"{name}_p{share}_ms", value=ours, unit="ms", goal=goal, beside={_MAIN: theirs})


def _one_by_one(runtime: Runtime, node: Namespace, one: Namespace) -> dict[str, list[float]]:
    """Milliseconds that each plugin took for one more pod, which is gone in the end."""
    runtime.took_s.clear()

    def turns() -> None:
        for _ in range(ADDS):
            runtime.add(one.name, one.path, one.name)
            runtime.delete(one.name, one.path)
            time.sleep(PAUSE_S)

    node.call(turns)
    took_ms = {name: [1e3 * each for each in values] for name, values in runtime.took_s.items()}
    runtime.took_s.clear()
    return took_ms


def _pod(number: int) -> str:
    return f"web-{number}"


def _node(stage: Stage) -> tuple[Cluster, Runtime]:
    """The daemon on a node of its own, with the chain that it has published."""
    node = stage.lab.namespace("cni-node", forwarding=True)
    cluster = stage.join(NODE, node)
    directory = cluster.node.directory
    chains, programs = directory / "cniConf", directory / "cniBin"
    ipam = {"type": "host-local", "ranges": [[{"subnet": _ADDRESSES}]], "dataDir": str(directory / "ipam")}
    main: dict[str, Any] = {"type": _MAIN, "bridge": "cni0", "isGateway": True, "ipam": ipam}
    conflist = {"cniVersion": "1.0.0", "name": "cluster", "plugins": [main]}
    (chains / "10-bridge.conflist").write_text(json.dumps(conflist))
    cluster.node.start_daemon()
    own = chains / OWN_FILE
    poll(own.exists, READY_S, lambda: cluster.node.bgpd("status", check=False))
    return cluster, Runtime(json.loads(own.read_text()), None, (DEBIAN, programs))


def _at_once(runtime: Runtime, node: Namespace, pods: list[Namespace]) -> int:
    """How many failed."""

    def attach(each: Namespace) -> bool:
        try:
            node.call(lambda: runtime.add(each.name, each.path, each.name))
        except PluginError:
            return False
        return True

    with ThreadPoolExecutor(max_workers=len(pods)) as pool:
        return list(pool.map(attach, pods)).count(False)
