"""What the plugin adds to the start of a pod: Debian's bridge plugin with ours behind it, in the published chain.

A node has 100 pods; another is attached and detached again and again, and each plugin is timed from its start to its
end, by who starts it: a runtime starts them one after the other, so ours is the time added. Then 200 pods are
attached at once. None may be lost: attached means that its rules are in the kernel.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
PAUSE_S = 0.05  # what a DEL leaves to be done is not in the next ADD
_MAIN, _OURS = "bridge", "bgpd-cni"
_ADDRESSES = "10.244.0.0/22"


def objects() -> Iterator[Object]:
    """The pods that are going to be attached, and policies that select all of them."""
    yield namespace(HOME, {"kubernetes.io/metadata.name": HOME})
    for number in range(STANDING + AT_ONCE):
        yield pod(HOME, _pod(number), None, {"tier": "web"}, NODE)
    for number in range(POLICIES):
        rule = {"from": [{"namespaceSelector": labelled(**{"kubernetes.io/metadata.name": name_of(number)})}]}
        yield policy(HOME, f"policy-{number}", types=["Ingress"], ingress=[rule])


def results(stage: Stage) -> list[Result]:
    stage.store(objects())
    cluster, runtime = _node(stage)
    pods = [stage.lab.namespace(_pod(number)) for number in range(STANDING + AT_ONCE)]
    node = cluster.node.namespace

    def one_by_one() -> None:
        for each in pods[:STANDING]:
            runtime.add(each.name, each.path, each.name)
        runtime.took_s.clear()
        one_more = pods[STANDING]
        for _ in range(ADDS):
            runtime.add(one_more.name, one_more.path, one_more.name)
            runtime.delete(one_more.name, one_more.path)
            time.sleep(PAUSE_S)

    node.call(one_by_one)
    took_ms = {name: [1e3 * each for each in values] for name, values in runtime.took_s.items()}
    runtime.took_s.clear()
    failed = _at_once(runtime, node, pods[STANDING:])
    lost = len(pods) - isolated(cluster)
    together_ms = [1e3 * each for each in runtime.took_s[_OURS]]
    return [
        *(
            Result(
                name=f"cni_add_share_p{share}_ms",
                value=percentile(took_ms[_OURS], share / 100),
                unit="ms",
                goal=goal,
                beside={_MAIN: percentile(took_ms[_MAIN], share / 100)},
            )
            for share, goal in ((50, 12.0), (99, 60.0))
        ),
        Result(name=f"cni_{AT_ONCE}_at_once_lost", value=max(failed, lost), unit="pods", goal=0),
        Result(name=f"cni_{AT_ONCE}_at_once_p99_ms", value=percentile(together_ms, 0.99), unit="ms"),
    ]


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
