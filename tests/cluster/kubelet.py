"""A real kubelet and a real containerd on a node of the fabric, and the pods that they run there.

Decides how the two are configured, which chain of CNI plugins the node has, and how a pod is written and watched:
there is no scheduler, a pod names its node. What pods are for, and what else is on the node, is for the tests to say.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.fabric.process import Process, poll
from tests.fabric.topology import NodePlace
from tests.files import rewrite

from .apply import apply
from .images import IMAGE, PROGRAM, write_image
from .machine import Machine, running_machine
from .node import NODES, Cluster
from .pods import BRIDGE, PLUGINS, host_local
from .rest import ApiError, JsonObject

PROGRAMS: Final = ("containerd", "ctr", "runc", "iptables", str(PLUGINS / "bridge"))
CNI_CONF: Final = Path("/etc/cni/net.d")
CNI_BIN: Final = Path("/opt/cni/bin")
CHAIN: Final = "10-pods.conflist"
PORT: Final = 8080
CONTAINERD_SOCKET: Final = "/run/containerd/containerd.sock"
UP_S: Final = 30.0
POD_S: Final = 30.0
POLL_S: Final = 0.05  # each asks the API server
# What the API server's own authorizer of nodes would grant, for every node alike.
_KUBELETS: Final = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "kubelets"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}],
}
_CONTAINERD: Final = f"""
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  # lowering it takes CAP_SYS_RESOURCE, which a container that tests run in may lack
  restrict_oom_score_adj = true
  # its profile would stay in the kernel
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{CNI_CONF}"
    bin_dir = "{CNI_BIN}"
"""


class KubeletNode:
    """A node of the fabric with a container runtime and a kubelet. `place` is that node with the machine in it."""

    def __init__(self, cluster: Cluster, place: NodePlace, machine: Machine, binaries: Path) -> None:
        self.cluster, self.machine, self.place = cluster, machine, replace(place, namespace=machine)
        self.containerd: Process | None = None
        self.kubelet: Process | None = None
        self._binaries = binaries
        self._directory = machine.lab.directory / f"{machine.name}-kubelet"
        self._directory.mkdir()

    # --- the node's own parts -----------------------------------------------------------------------------

    def start(self) -> None:
        """Everything, until the Node is ready. It has its pod CIDRs then."""
        self._install_plugins()
        self.write_chain(bridge_chain(self.place))
        self.start_containerd()
        self._import_image()
        self.start_kubelet()
        self.wait_ready()
        self.cluster.give(self.place, *self.place.pod_cidrs)

    def start_containerd(self) -> None:
        """Starts it anew, if it is running; containers go on."""
        if self.containerd is not None:
            self.containerd.stop()
        file = self._directory / "containerd.toml"
        file.write_text(_CONTAINERD)
        self.containerd = self.machine.popen(["containerd", "--config", str(file)])
        poll(self._is_answering, UP_S, self.containerd.log_tail)

    def start_kubelet(self) -> None:
        """Starts it anew, if it is running; pods go on."""
        if self.kubelet is not None:
            self.kubelet.stop()
        file = self._directory / "kubelet.json"
        file.write_text(json.dumps(self._configuration()))
        user = f"system:node:{self.place.name}"
        arguments = {
            "config": file,
            "kubeconfig": self.cluster.control_plane.kubeconfig(user, "system:nodes"),
            "hostname-override": self.place.name,
            "node-ip": f"{self.place.address},{self.place.address6}",
            "v": 2,
        }
        argv = [str(self._binaries / "kubelet"), *(f"--{name}={value}" for name, value in arguments.items())]
        self.kubelet = self.machine.popen(argv)

    def wait_ready(self) -> None:
        poll(self._is_ready, UP_S, lambda: self.kubelet.log_tail() if self.kubelet else "not started", POLL_S)

    def write_chain(self, chain: JsonObject, name: str = CHAIN) -> None:
        """As an installer of a CNI does it."""
        directory = self.machine.root / CNI_CONF.relative_to("/")
        directory.mkdir(exist_ok=True)
        rewrite(directory / name, json.dumps(chain))

    def remove_chain(self, name: str) -> None:
        (self.machine.root / CNI_CONF.relative_to("/") / name).unlink()

    def chains(self) -> dict[str, JsonObject]:
        """Every chain that the runtime finds, by file; it takes the first."""
        directory = self.machine.root / CNI_CONF.relative_to("/")
        return {each.name: json.loads(each.read_text()) for each in sorted(directory.glob("*.conflist"))}

    def _install_plugins(self) -> None:
        links = "; ".join(f'ln -s "{each}" {CNI_BIN}/' for each in sorted(PLUGINS.iterdir()))
        self.machine.run(["sh", "-ec", f"mkdir -p {CNI_BIN}; {links}"])

    def _import_image(self) -> None:
        archive = self._directory / "image.tar"
        write_image(archive, self._binaries / PROGRAM, platform.machine())
        self.ctr("images", "import", "--no-unpack", str(archive))

    def ctr(self, *words: str) -> str:
        """containerd's own client, in the kubelet's namespace of it. RuntimeError: it failed."""
        argv = ["ctr", f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io", *words]
        return str(self.machine.run(argv).stdout)

    def _is_answering(self) -> bool:
        try:
            return self.ctr("version") != ""
        except RuntimeError:
            return False

    def _is_ready(self) -> bool:
        try:
            node = self.cluster.control_plane.admin.get(f"{NODES}/{self.place.name}")
        except ApiError:
            return False
        return any(it["type"] == "Ready" and it["status"] == "True" for it in node["status"].get("conditions", []))

    def _configuration(self) -> JsonObject:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.machine.cgroup,
            "failCgroupV1": False,
            "enforceNodeAllocatable": [],
            # a full disk of this machine is no reason to end a pod of a test, nor to collect an image
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": False,
            "resolvConf": "",
            "syncFrequency": "1s",
            "nodeStatusUpdateFrequency": "1s",
        }

    # --- pods: `name` is of the namespace default, or `namespace/name` ----------------------------------------

    def run(self, name: str, **container: Any) -> JsonObject:
        """Makes a pod on this node, which need not run yet; `container` is added to the specification of its own."""
        made = pod(name.rpartition("/")[2], self.place.name, **container)
        return self.cluster.control_plane.admin.create(_resource("pods", name), made)

    def pod(self, name: str) -> JsonObject | None:
        try:
            return self.cluster.control_plane.admin.get(_path(name))
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def wait_pod(self, name: str, wanted: Callable[[JsonObject], bool], timeout_s: float = POD_S) -> JsonObject:
        """The pod as soon as `wanted` holds."""

        def probe() -> JsonObject | None:
            found = self.pod(name)
            return found if found is not None and wanted(found) else None

        return poll(probe, timeout_s, lambda: self.story(name), POLL_S)

    def wait_running(self, name: str, timeout_s: float = POD_S) -> JsonObject:
        """The pod once its readiness probe, if it has one, has succeeded."""
        return self.wait_pod(name, is_ready, timeout_s)

    def delete(self, *names: str) -> None:
        """As `kubectl delete pod` does it, and waits until the kubelet has ended them."""
        for name in names:
            with contextlib.suppress(ApiError):
                self.cluster.control_plane.admin.delete(_path(name))
        for name in names:
            poll(partial(self._is_gone, name), POD_S, partial(self.story, name), POLL_S)

    def _is_gone(self, name: str) -> bool:
        return self.pod(name) is None

    def execute(self, name: str, *argv: str) -> str:
        """What a program in the pod's container prints."""
        found = self.pod(name)
        assert found is not None
        container = found["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        return self.ctr("tasks", "exec", "--exec-id", f"test-{abs(hash(argv)):x}", container, *argv)

    def asks(self, name: str, protocol: str, address: str, port: int = PORT) -> bool:
        """Whether the pod is answered by what serves at this address; `ping` has no port."""
        try:
            return self.execute(name, *asking(protocol, address, port)) != ""
        except RuntimeError:
            return False

    def events(self, name: str) -> list[str]:
        """What was told of the pod, as "Reason: message", each once."""
        selector = f"involvedObject.name={name.rpartition('/')[2]}"
        found = self.cluster.control_plane.admin.get(_resource("events", name), fieldSelector=selector)
        return [f"{each['reason']}: {each['message']}" for each in found["items"]]

    def story(self, name: str) -> str:
        """All that there is to say about a pod that is not as it should be."""
        found = self.pod(name)
        told = [f"{name}: {json.dumps(found['status']) if found else 'there is no such pod'}", *self.events(name)]
        return "\n".join([*told, *(each.log_tail() for each in (self.containerd, self.kubelet) if each)])


def pod(name: str, node: str, **container: Any) -> JsonObject:
    """A pod that serves TCP and UDP, ready when it answers the kubelet."""
    main = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": [f"{PORT}/tcp", f"{PORT}/udp"],
        "readinessProbe": {"httpGet": {"port": PORT, "path": "/"}, "periodSeconds": 1},
        **container,
    }
    spec = {
        "nodeName": node,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 2,
        "containers": [main],
    }
    return {"metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def _resource(kind: str, name: str) -> str:
    return f"/api/v1/namespaces/{name.rpartition('/')[0] or 'default'}/{kind}"


def _path(name: str) -> str:
    return f"{_resource('pods', name)}/{name.rpartition('/')[2]}"


def asking(protocol: str, address: str, port: int = PORT) -> list[str]:
    """The command in a pod that asks whoever serves at this address, and fails without an answer."""
    if protocol == "ping":
        return [PROGRAM, "ping", address]
    host = f"[{address}]" if ":" in address else address
    return [PROGRAM, "ask", protocol, f"{host}:{port}"]


def is_ready(found: JsonObject) -> bool:
    return any(it["type"] == "Ready" and it["status"] == "True" for it in found["status"].get("conditions", []))


def addresses(found: JsonObject) -> dict[int, str]:
    """The pod's, by IP version."""
    return {6 if ":" in each["ip"] else 4: each["ip"] for each in found["status"].get("podIPs", [])}


def bridge_chain(place: NodePlace) -> JsonObject:
    """A bridge, and ports of the node that lead to pods."""
    main = {**BRIDGE, "ipam": host_local(place, Path("/var/lib/cni/networks"))}
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [main, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


@contextlib.contextmanager
def running_kubelet(cluster: Cluster, place: NodePlace, binaries: Path) -> Iterator[KubeletNode]:
    """The node, ready. Of it nothing is left behind, whatever happened."""
    with running_machine(place.namespace) as machine:
        node = KubeletNode(cluster, place, machine, binaries)
        try:
            apply(cluster.control_plane.admin, _KUBELETS)
            node.start()
            yield node
        finally:
            with contextlib.suppress(ApiError):
                cluster.unmake(place)
