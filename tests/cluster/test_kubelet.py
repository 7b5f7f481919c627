"""Pods of a real kubelet and containerd, chained to the node's own CNI by the conflist that the daemon publishes.

The runtime is of libcni 1.1, so that it has no GC and no STATUS: those are the contract tier's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from bgpd.cni.journal import read
from bgpd.cni.protocol import PLUGIN_TYPE
from bgpd.config.files import MissingError
from bgpd.model.attachment import OWN_FILE
from tests.fabric.netns import missing
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll

from .kubelet import CHAIN, PORT, PROGRAMS, KubeletNode, addresses, asking, is_ready, running_kubelet
from .machine import lacking
from .node import Cluster, bgpd_node
from .rest import JsonObject

POLICIES: Final = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
TOLD_S: Final = 20.0
RETRY_S: Final = 40.0  # a kubelet whose runtime refused a sandbox waits up to 15 s before it asks again


class Daemon:
    """bgpd on that node, with its plugin chained."""

    def __init__(self, node: KubeletNode, bgpd: BgpdNode) -> None:
        self._node, self.bgpd = node, bgpd
        self._state = bgpd.directory / "state"

    def start(self, mode: str = "auto") -> None:
        """Returns once the runtime has its conflist, and the plugin its answers."""
        self.bgpd.config["cni"] = {"chainingMode": mode}
        self.bgpd.write_config()
        self.bgpd.start_daemon()
        poll(partial(self._is_chained, mode), TOLD_S, self.log)

    def stop(self) -> None:
        assert self.bgpd.daemon is not None
        assert self.bgpd.daemon.stop() == 0

    def pods(self) -> set[str]:
        """The pods that it knows to be attached."""
        return pods_of(self._state / "endpoints")

    def queued(self) -> set[str]:
        """The pods whose DELs wait for it."""
        return pods_of(self._state / "cni-queue")

    def log(self) -> str:
        return self.bgpd.bgpd("status", check=False) + (self.bgpd.daemon.log_tail() if self.bgpd.daemon else "")

    def _is_chained(self, mode: str) -> bool:
        own = self._node.chains().get(OWN_FILE)
        published = own is not None and own["plugins"][-1].get("chaining-mode", "auto") == mode
        return published and (self.bgpd.directory / "run" / "cni.sock").exists()


def pods_of(directory: Path) -> set[str]:
    """The pods that the requests in these files are about."""
    found = set()
    for file in (each for each in directory.iterdir() if not each.name.startswith(".")):
        with contextlib.suppress(MissingError):
            pod = read(file).pod
            assert pod is not None
            found.add(pod.name)
    return found


@pytest.fixture(scope="module")
def node(cluster: Cluster, control_plane_binaries: Path) -> Iterator[KubeletNode]:
    reason = missing(*PROGRAMS) or lacking()
    if reason is not None:
        pytest.skip(reason)
    with running_kubelet(cluster, cluster.fabric.nodes[0], control_plane_binaries) as running:
        yield running


@pytest.fixture(scope="module")
def early(node: KubeletNode) -> JsonObject:
    """A pod from before the daemon."""
    node.run("early", startupProbe={"exec": {"command": asking("tcp", "127.0.0.1")}, "periodSeconds": 1})
    return node.wait_pod("early", is_ready)


@pytest.fixture(scope="module")
def installed(node: KubeletNode, early: JsonObject) -> Iterator[Daemon]:
    """One daemon for all tests of this file."""
    paths = {"bpf": "/sys/fs/bpf/bgpd"}
    with bgpd_node(node.cluster, node.place, policy={"enabled": True}) as bgpd:
        bgpd.config["paths"] |= paths
        bgpd.start_speaker()
        made = Daemon(node, bgpd)
        made.start()
        yield made


@pytest.fixture
def daemon(installed: Daemon) -> Daemon:
    """Running, as every test leaves it."""
    assert installed.bgpd.daemon is not None and installed.bgpd.daemon.running(), installed.log()
    return installed


def sandbox_failures(node: KubeletNode, name: str) -> list[str]:
    """Why the runtime could not make the pod's sandbox, as its events tell."""
    return [each for each in node.events(name) if each.startswith("FailedCreatePodSandBox: ")]


def wait_failure(node: KubeletNode, name: str, text: str) -> str:
    """The first event that tells why the pod does not start, which must hold `text`."""
    (found, *_) = poll(lambda: sandbox_failures(node, name) or None, TOLD_S, lambda: node.story(name))
    assert text in found
    return found


def containers(found: JsonObject) -> list[tuple[str, int]]:
    """The pod's containers by id, and how often each was started again."""
    return [(each["containerID"], each["restartCount"]) for each in found["status"]["containerStatuses"]]


def is_creating(found: JsonObject) -> bool:
    """What `kubectl get pods` calls ContainerCreating."""
    waiting = [each["state"].get("waiting", {}) for each in found["status"].get("containerStatuses", [])]
    return [each.get("reason") for each in waiting] == ["ContainerCreating"]


# --- the node without us ------------------------------------------------------------------------------------


def test_a_pod_runs_without_us(node: KubeletNode, early: JsonObject) -> None:
    """It has an address of either family, was probed from outside and from inside, and serves TCP and UDP."""
    given = addresses(early)
    assert sorted(given) == [4, 6]
    assert node.execute("early", *asking("tcp", given[6])).endswith("\n\nearly\n")
    for version, address in given.items():
        assert answer(node, address, version) == b"early\n"


def answer(node: KubeletNode, address: str, version: int) -> bytes:
    """What the pod answers its node, by UDP: that it answers by TCP is what the kubelet has found."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with contextlib.closing(node.machine.socket(family, socket.SOCK_DGRAM)) as client:
        client.settimeout(2.0)
        client.connect((address, PORT))
        client.send(b"who?")
        return client.recv(1500)


# --- with us at the end of its chain ------------------------------------------------------------------------


def test_the_chain_is_the_node_s_own_with_us_at_its_end(node: KubeletNode, daemon: Daemon) -> None:
    chains = node.chains()
    assert list(chains) == [OWN_FILE, CHAIN]
    own, target = chains[OWN_FILE], chains[CHAIN]
    assert own["plugins"][:-1] == target["plugins"]
    assert own["plugins"][-1]["type"] == PLUGIN_TYPE
    assert own["name"] == target["name"]


def test_a_pod_that_ran_before_us_is_adopted(node: KubeletNode, daemon: Daemon, early: JsonObject) -> None:
    """Without anything happening to it."""
    assert "early" in daemon.pods()
    now = node.pod("early")
    assert now is not None and containers(now) == containers(early)


def test_a_pod_comes_and_goes(node: KubeletNode, daemon: Daemon) -> None:
    """It is attached before its first container starts; of it nothing stays."""
    node.run("comes")
    found = node.wait_running("comes")
    assert "comes" in daemon.pods()
    assert answer(node, addresses(found)[4], 4) == b"comes\n"
    node.delete("comes")
    poll(lambda: "comes" not in daemon.pods(), TOLD_S, daemon.log)


def test_a_pod_that_nobody_may_reach_is_probed(node: KubeletNode, daemon: Daemon, early: JsonObject) -> None:
    """From its first moment: it becomes ready, and no pod gets through to it."""
    deny = {"podSelector": {"matchLabels": {"app": "denied"}}, "policyTypes": ["Ingress"]}
    policies = node.cluster.control_plane.admin
    policies.create(POLICIES, {"metadata": {"name": "deny"}, "spec": deny})
    node.run("denied")
    address = addresses(node.wait_running("denied"))[4]
    assert answered(node, "early", address) == []
    policies.delete(f"{POLICIES}/deny")
    poll(lambda: answered(node, "early", address) == ["tcp", "udp"], TOLD_S, daemon.log)
    node.delete("denied")


def answered(node: KubeletNode, client: str, address: str) -> list[str]:
    """The protocols in which one pod is answered by another."""
    return [protocol for protocol in ("tcp", "udp") if node.asks(client, protocol, address)]


def test_a_pod_waits_for_the_daemon(node: KubeletNode, daemon: Daemon) -> None:
    """Nothing of it runs, and its events say what to do; it starts by itself when the daemon has started."""
    daemon.stop()
    try:
        node.run("waits")
        told = wait_failure(node, "waits", f'plugin type="{PLUGIN_TYPE}"')
        assert "cni.sock cannot be reached" in told
        assert 'start it with "systemctl start bgpd"' in told
        node.wait_pod("waits", is_creating)
    finally:
        daemon.start()
    node.wait_running("waits", RETRY_S)
    assert "waits" in daemon.pods()
    assert "waits" not in daemon.queued()
    node.delete("waits")


def test_a_pod_goes_while_the_daemon_is_down(node: KubeletNode, daemon: Daemon) -> None:
    """At once; the daemon is told when it has started."""
    node.run("goes")
    node.wait_running("goes")
    daemon.stop()
    try:
        node.delete("goes")
        poll(lambda: "goes" in daemon.queued(), TOLD_S, lambda: node.story("goes"))
        assert "goes" in daemon.pods()
    finally:
        daemon.start()
    poll(lambda: "goes" not in daemon.pods() | daemon.queued(), TOLD_S, daemon.log)


def test_a_pod_that_is_refused_does_not_start(node: KubeletNode, daemon: Daemon) -> None:
    """The chain makes a veth; its administrator has said that it makes a macvlan."""
    daemon.stop()
    daemon.start("macvlan")
    try:
        node.run("refused")
        wait_failure(node, "refused", "macvlan")
        node.wait_pod("refused", is_creating)
        assert "refused" not in daemon.pods()
        node.delete("refused")
    finally:
        daemon.stop()
        daemon.start()


def test_20_pods_at_once(node: KubeletNode, daemon: Daemon) -> None:
    """Each is attached, and of none anything stays."""
    names = [f"many-{number}" for number in range(20)]
    before = daemon.pods()
    for name in names:
        node.run(name)
    found = [node.wait_running(name, RETRY_S) for name in names]
    assert not [each for name in names for each in sandbox_failures(node, name)]
    assert len({address for each in found for address in addresses(each).values()}) == 2 * len(names)
    assert daemon.pods() == before | set(names)
    node.delete(*names)
    poll(lambda: daemon.pods() == before, TOLD_S, daemon.log)


def test_a_kubelet_that_is_started_again_disturbs_nothing(
    node: KubeletNode, daemon: Daemon, early: JsonObject
) -> None:
    node.start_kubelet()
    node.run("after")
    node.wait_running("after")
    now = node.wait_pod("early", is_ready)
    assert containers(now) == containers(early)
    assert {"early", "after"} <= daemon.pods()
    node.delete("after")


def test_a_containerd_that_is_started_again_disturbs_nothing(
    node: KubeletNode, daemon: Daemon, early: JsonObject
) -> None:
    node.start_containerd()
    node.wait_ready()
    node.run("later")
    node.wait_running("later")
    now = node.wait_pod("early", is_ready)
    assert containers(now) == containers(early)
    assert {"early", "later"} <= daemon.pods()
    node.delete("later")


def test_without_us_the_node_is_as_it_was(node: KubeletNode, daemon: Daemon) -> None:
    """Our conflist taken away, the original counts again: for pods that come, and pods that we had attached go."""
    node.run("ours")
    node.wait_running("ours")
    daemon.stop()
    try:
        node.remove_chain(OWN_FILE)
        node.run("theirs")
        node.wait_running("theirs", RETRY_S)
        assert "theirs" not in daemon.pods()
        node.delete("ours", "theirs")
        assert "ours" not in daemon.queued()
    finally:
        daemon.start()
    poll(lambda: "ours" not in daemon.pods(), TOLD_S, daemon.log)
