"""Whole chains of Debian's plugins with ours at the end, in network namespaces, through the real socket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bgpd.cni.conflist import Settings
from bgpd.cni.protocol import VERSIONS
from bgpd.cni.publish import Places, Publisher
from bgpd.model.attachment import OWN_FILE
from bgpd.observe.unixsocket import is_answered
from bgpd.runtime.store import Store
from tests.contract.cni_runtime import DEBIAN, PluginError, Runtime
from tests.fabric.netns import Lab, Namespace, missing
from tests.fabric.process import Process, poll

SOON_S = 20.0
IPAM: Mapping[str, Any] = {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]]}
# the main plugins, and what Debian's version of them (1.1.1) speaks: CNI up to 1.0.0
MAINS: Mapping[str, Mapping[str, Any]] = {
    "bridge": {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": IPAM},
    "ptp": {"type": "ptp", "ipam": IPAM},
    "macvlan": {"type": "macvlan", "master": "up0", "mode": "bridge", "ipam": IPAM},
}
BEHIND: Mapping[str, Mapping[str, Any]] = {
    "portmap": {
        "type": "portmap",
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    },
    "tuning": {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    "bandwidth": {
        "type": "bandwidth",
        "ingressRate": 8_000_000,
        "ingressBurst": 8_000_000,
        "egressRate": 0,
        "egressBurst": 0,
    },
}
SPOKEN = tuple(version for version in VERSIONS if version != "1.1.0")


class Node:
    """A node and pods, the daemon in it and its conflist, made from the main plugin's by the real publisher."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = lab.namespace("node", forwarding=True)
        self.directory = lab.directory
        self.places = Places(self.directory / "net.d", self.directory / "bin")
        self.calls = self.directory / "calls"
        self.daemon: Process | None = None

    def start(self) -> None:
        files = ["cni.sock", "cni-queue", "endpoints", "calls"]
        argv = [sys.executable, "-m", "tests.contract.cni_daemon", *(str(self.directory / file) for file in files)]
        self.daemon = self.host.popen(argv, cwd=Path(__file__).parents[2])
        poll(lambda: is_answered(self.directory / "cni.sock"), SOON_S, self.daemon.log_tail)

    def runtime(self, version: str, *plugins: Mapping[str, Any]) -> Runtime:
        """The runtime, with the conflist that we write for a node which has these plugins."""
        data = {"dataDir": str(self.directory / "ipam")}
        chain = [{**each, **({"ipam": {**each["ipam"], **data}} if "ipam" in each else {})} for each in plugins]
        self.places.configurations.mkdir(exist_ok=True)
        target = self.places.configurations / "10-target.conflist"
        target.write_text(json.dumps({"cniVersion": version, "name": "cluster", "plugins": chain}))
        settings = Settings(socket=self.directory / "cni.sock", queue=self.directory / "cni-queue")
        publisher = Publisher(self.places, settings, None, Store({}))
        publisher.publish()
        assert (publisher.problem, publisher.plan.problem) == ("", "")
        conflist = json.loads((self.places.configurations / OWN_FILE).read_text())
        return Runtime(conflist, self.host.path, (self.places.programs, DEBIAN))

    @property
    def told(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def node() -> Iterator[Node]:
    lacking = missing(*(str(DEBIAN / name) for name in (*MAINS, *BEHIND, "host-local")), "iptables")
    if lacking:
        pytest.skip(lacking)
    with Lab() as lab:
        yield Node(lab)


def addresses(pod: Namespace) -> set[str]:
    shown = json.loads(pod.run(["ip", "-j", "addr", "show", "dev", "eth0"]).stdout)
    return {each["local"] for link in shown for each in link["addr_info"] if each["scope"] == "global"}


def uplink(node: Node) -> None:
    """What macvlan needs: something to be stacked on."""
    wire = node.lab.namespace("wire")
    node.lab.link(node.host, "up0", wire, "far0")


@pytest.mark.parametrize("version", SPOKEN)
@pytest.mark.parametrize("main", MAINS)
def test_a_pod_comes_is_checked_and_goes(node: Node, main: str, version: str) -> None:
    """What we are told of it is what it has, and what the runtime gets is what the main plugin said."""
    uplink(node)
    node.start()
    runtime = node.runtime(version, MAINS[main], BEHIND["tuning"])
    pod = node.lab.namespace("pod")
    result = runtime.add("c1", pod.path)
    assert result["cniVersion"] == version
    assert {each["address"].partition("/")[0] for each in result["ips"]} == addresses(pod)
    (line,) = node.told
    assert line.split()[:2] == ["attach", "c1"]
    assert set(line.split()[2:]) == addresses(pod)
    if version != "0.3.1":
        runtime.check("c1", pod.path)
    runtime.delete("c1", pod.path)
    assert node.told[1:] == ["detach c1 known"]
    runtime.delete("c1", pod.path)  # once more is the same


@pytest.mark.parametrize("behind", BEHIND)
def test_it_comes_behind_every_other_plugin(node: Node, behind: str) -> None:
    """The last of a chain of three, with bridge at its head."""
    node.start()
    runtime = node.runtime("1.0.0", MAINS["bridge"], BEHIND[behind])
    pod = node.lab.namespace("pod")
    result = runtime.add("c1", pod.path)
    assert {"cni0", "eth0"} <= {each["name"] for each in result["interfaces"]}
    runtime.check("c1", pod.path, but=["portmap"])  # 1.1.1 looks for the IPv4 rule in IPv6's table, and fails
    runtime.delete("c1", pod.path)
    assert [line.split()[0] for line in node.told] == ["attach", "detach"]


def test_a_pod_goes_whose_namespace_is_gone(node: Node) -> None:
    node.start()
    runtime = node.runtime("1.0.0", MAINS["bridge"])
    pod = node.lab.namespace("pod")
    runtime.add("c1", pod.path)
    node.lab.remove(pod)
    runtime.delete("c1", None)
    assert node.told[-1] == "detach c1 known"


def test_pods_go_while_the_daemon_is_down(node: Node) -> None:
    """All of the chain is done, our part once the daemon is there again; and no pod comes meanwhile."""
    node.start()
    runtime = node.runtime("1.0.0", MAINS["ptp"])
    pods = {name: node.lab.namespace(name) for name in ("c1", "c2", "c3")}
    for name in ("c1", "c2"):
        runtime.add(name, pods[name].path)
    assert node.daemon is not None
    node.daemon.kill()
    runtime.delete("c1", pods["c1"].path)
    with pytest.raises(PluginError) as refusal:
        runtime.add("c3", pods["c3"].path)
    assert refusal.value.error["code"] == 11
    assert 'start it with "systemctl start bgpd"' in refusal.value.error["msg"]
    runtime.delete("c3", pods["c3"].path)  # as a runtime does after an ADD that failed
    node.start()
    assert sorted(line for line in node.told if line.startswith("detach")) == ["detach c1 known", "detach c3 unknown"]
    runtime.check("c2", pods["c2"].path)


def test_pods_go_after_an_uninstallation(node: Node) -> None:
    """By a runtime that deletes them with the chain that it remembers, until it remembers none of ours."""
    node.start()
    runtime, pod = node.runtime("1.0.0", MAINS["ptp"]), node.lab.namespace("c1")
    runtime.add("c1", pod.path)
    caches = node.directory / "cache"
    cached, plugin = caches / "results/cluster-c1-eth0", node.places.programs / "bgpd-cni"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(runtime.cached("c1", pod.path))
    cached.with_name("other-c9-eth0").write_text('{"kind": "cniCacheV1", "config": "e30="}')
    (node.directory / "bgpd.yaml").write_text(
        f"""
        source: {{manifests: {caches}}}
        bgp: {{localASN: 64512, peers: [{{name: tor, peerAddress: 192.0.2.1, peerASN: 64513}}]}}
        paths: {{run: {node.directory}, cniConf: {node.places.configurations}, cniBin: {node.places.programs},
                cniCache: {caches}}}
        """
    )
    assert "stop that first" in bgpd_cni_clear(node, status=1)
    assert node.daemon is not None
    node.daemon.kill()
    said = bgpd_cni_clear(node)
    assert f"removed {node.places.configurations / OWN_FILE}" in said
    assert f"rm {plugin}" in said
    replay = Runtime.replaying(cached.read_bytes(), node.host.path, (node.places.programs, DEBIAN))
    with pytest.raises(PluginError) as refusal:
        replay.add("c2", node.lab.namespace("c2").path)
    assert "take bgpd-cni out of the network configuration" in refusal.value.error["msg"]
    replay.delete("c1", pod.path)
    with pytest.raises(RuntimeError, match='"eth0" does not exist'):
        addresses(pod)
    assert not (node.directory / "cni-queue").exists() or not any((node.directory / "cni-queue").iterdir())
    cached.unlink()
    assert bgpd_cni_clear(node) == f"removed {plugin}\n"
    assert not plugin.exists()
    assert bgpd_cni_clear(node) == "nothing was there\n"


def bgpd_cni_clear(node: Node, status: int = 0) -> str:
    argv = [sys.executable, "-m", "bgpd", "cni", "clear", "--config", str(node.directory / "bgpd.yaml")]
    tree = Path(__file__).parents[2]
    done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_gc_and_status_of_1_1_0(node: Node) -> None:
    """Asked of our plugin alone: Debian's are older."""
    node.start()
    made = node.runtime("1.0.0", MAINS["ptp"])
    pods = {name: node.lab.namespace(name) for name in ("c1", "c2")}
    for name, pod in pods.items():
        made.add(name, pod.path)
    newest = Runtime({**made.conflist, "cniVersion": "1.1.0"}, made.node, made.programs)
    ours = newest.conflist["plugins"][-1]
    newest.status(ours)
    newest.gc(ours, ["c2"])
    assert node.told[-1] == "detach c1 known"
    made.check("c2", pods["c2"].path)
    with pytest.raises(PluginError) as refusal:
        made.check("c1", pods["c1"].path)
    assert (refusal.value.error["code"], refusal.value.error["msg"]) == (
        101,
        "bgpd has no such attachment: no policy is enforced on it",
    )
