"""What following all pods for `PodIP` adds to the daemon's resident memory, 10,000 of them at the API server.

Compared are two daemons of nodes that have no pod, alike but for that advertisement. Beside it what the list of the
same pods adds to a process that keeps it in the official client's models, in the same pages. What the reading took
and Python's allocator has not given back is in both, as it is on a node.
"""

from __future__ import annotations

import json
import sys
import time

from tests.benchmarks.footprint import rss_mb
from tests.benchmarks.policy_stage import Stage
from tests.benchmarks.report import Result
from tests.fabric.netns import Lab, Namespace
from tests.fabric.process import Process

SETTLE_S = 5.0
SYNCED_S = 60.0
CLIENT = """
import json, pathlib, re, sys
from kubernetes import client, config
config.load_kube_config(sys.argv[1])
core = client.CoreV1Api()
core.list_pod_for_all_namespaces(limit=1)  # all that it loads to do that is loaded

def rss_kb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

before, found, more = rss_kb(), [], None
while more != "":
    page = core.list_pod_for_all_namespaces(limit=500, _continue=more)
    found += page.items
    more = page.metadata._continue or ""
print(json.dumps((rss_kb() - before) / 1024))
"""


def results(lab: Lab, stage: Stage) -> list[Result]:
    daemons = {kind: _started(lab.namespace(kind.lower()), stage, kind) for kind in ("PodCIDR", "PodIP")}
    time.sleep(SETTLE_S)
    rss = {kind: rss_mb([daemon.pid]) for kind, daemon in daemons.items()}
    for daemon in daemons.values():
        daemon.stop()  # what is measured next is measured alone
    client = _client(stage, lab.namespaces["podip"])
    return [
        Result(
            name="pod_ip_10k_pods_mb",
            value=rss["PodIP"] - rss["PodCIDR"],
            unit="MB",
            beside={"official client, list only": client},
        )
    ]


def _started(place: Namespace, stage: Stage, kind: str) -> Process:
    """The daemon that has this advertisement, with all that it follows read."""
    node = stage.join(kind.lower(), place).node
    node.config["policy"], node.config["cni"] = {"enabled": False}, {}
    node.config["bgp"]["advertisements"] = [{"advertisementType": kind}]
    node.write_config()
    node.start_daemon()
    node.wait_status("not synced", lambda status: bool(status["source"]["state"] == "synced"), SYNCED_S)
    assert node.daemon is not None
    return node.daemon


def _client(stage: Stage, place: Namespace) -> float:
    said = place.run([sys.executable, "-c", CLIENT, str(stage.kubeconfig)], timeout_s=300.0).stdout
    return float(json.loads(said))
