"""The first synchronisation: from the start of the daemon to the whole cluster in the kernel, and what it then takes.

The clock starts with the process, so Python's start is in it, and stops when the tables that ask the programs are
there; they come after the maps. Beside it a process that reads the same three lists with the official client's
models, in the same pages, and does nothing with them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from tests.benchmarks.footprint import rss_mb
from tests.benchmarks.policy_cluster import NODE_PODS
from tests.benchmarks.policy_stage import Stage, start
from tests.benchmarks.report import Result
from tests.fabric.netns import Namespace
from tests.fabric.policy_site import Cluster

STARTS = 3
SETTLE_S = 5.0
CLIENT = """
import json, resource, sys, time
began = time.monotonic()
from kubernetes import client, config
config.load_kube_config(sys.argv[1])
core, networking = client.CoreV1Api(), client.NetworkingV1Api()
found = []
for ask in (
    core.list_pod_for_all_namespaces, core.list_namespace, networking.list_network_policy_for_all_namespaces
):
    more = None
    while more != "":
        page = ask(limit=500, _continue=more)
        found += page.items
        more = page.metadata._continue or ""
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"s": time.monotonic() - began, "mb": peak, "objects": len(found)}))
"""


def results(stage: Stage, cluster: Cluster) -> list[Result]:
    """The daemon runs in the end."""
    taken = []
    for _ in range(STARTS):
        if cluster.node.daemon is not None:
            cluster.node.daemon.stop()
            _forget(cluster)
        began = time.monotonic()
        start(cluster, NODE_PODS)
        taken.append(time.monotonic() - began)
    theirs = _client(stage, cluster.node.namespace)
    time.sleep(SETTLE_S)
    assert cluster.node.daemon is not None
    pid = [cluster.node.daemon.pid]
    return [
        Result(
            name="sync_10k_pods_s",
            value=statistics.median(taken),
            unit="s",
            goal=4.0,
            beside={"official client, lists only": theirs["s"]},
        ),
        Result(
            name="daemon_rss_10k_pods_mb",
            value=rss_mb(pid),
            unit="MB",
            goal=150.0,
            beside={"official client, lists only": theirs["mb"]},
        ),
    ]


def _forget(cluster: Cluster) -> None:
    """A node that boots has nothing in the kernel."""
    cluster.node.namespace.run(["nft", "flush", "ruleset"])
    for pin in cluster.pins.iterdir():
        pin.unlink()
    cluster.pins.rmdir()


def _client(stage: Stage, place: Namespace) -> dict[str, float]:
    said = place.run([sys.executable, "-c", CLIENT, str(stage.kubeconfig)], timeout_s=300.0).stdout
    return dict(json.loads(said))
