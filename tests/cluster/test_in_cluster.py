"""The whole daemon as a pod has it: no kubeconfig, but a service account's volume and the API server's address.

The volume is where the kubelet mounts it, in a mount namespace of the daemon's own, and is written as the
kubelet writes it: a directory for each content, and a link that is turned from one to the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace

from .node import API_ADDRESS, Cluster, announcing, bgpd_node, follow_a_change, start, unbroken
from .rest import JsonObject

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
NAMESPACE: Final = "kube-system"
PODS: Final = f"/api/v1/namespaces/{NAMESPACE}/pods"
PAUSE_S: Final = 31.0  # the longest pause between two attempts, and one attempt
# /run is the only place on the way that exists everywhere; nothing else of it is needed by the daemon here.
MOUNT: Final = 'mount -t tmpfs none /run; mkdir -p "$1"; mount --bind "$2" "$1"; shift 2; exec "$@"'


@dataclass
class Volume:
    """A service account's projected volume in `directory`, empty at first, and where the API server is."""

    directory: Path
    cluster: Cluster
    written: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What every container has."""
        return {
            "KUBERNETES_SERVICE_HOST": API_ADDRESS,
            "KUBERNETES_SERVICE_PORT": str(self.cluster.control_plane.port),
        }

    @property
    def wrapper(self) -> list[str]:
        """Runs a command with this volume mounted, which nobody else sees."""
        shell = ["sh", "-ec", MOUNT, "sh", SERVICE_ACCOUNT, str(self.directory)]
        return ["unshare", "--mount", "--propagation", "private", *shell]

    def write(self, token: str) -> None:
        """As the kubelet's atomic writer does: readers see all of the old content or all of the new."""
        self.written += 1
        content = self.directory / f"..{self.written}"
        content.mkdir()
        (content / "token").write_text(token)
        (content / "ca.crt").write_bytes(self.cluster.control_plane.certificate_authority.read_bytes())
        (content / "namespace").write_text(NAMESPACE)
        turned = self.directory / "..data_tmp"
        turned.symlink_to(content.name)
        turned.rename(self.directory / "..data")
        for file in content.iterdir():
            with contextlib.suppress(FileExistsError):
                (self.directory / file.name).symlink_to(f"..data/{file.name}")


@pytest.fixture
def volume(cluster: Cluster, tmp_path: Path) -> Volume:
    return Volume(tmp_path, cluster)


@pytest.fixture
def node(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The product with `kubernetes:` and nothing below it, not started."""
    with bgpd_node(cluster, place, source={"kubernetes": {}}) as made:
        yield made


def make_pod(cluster: Cluster, place: NodePlace, name: str) -> JsonObject:
    """A pod of the daemon's service account on this node, as the API server knows it; nothing runs in it."""
    spec = {"nodeName": place.name, "serviceAccountName": "bgpd", "containers": [{"name": "bgpd", "image": "bgpd"}]}
    return cluster.control_plane.admin.create(PODS, {"metadata": {"name": name}, "spec": spec})


def token_for(cluster: Cluster, pod: JsonObject) -> str:
    """What the kubelet asks for on behalf of a pod: it is refused once the pod is gone."""
    return cluster.control_plane.service_account_token(NAMESPACE, "bgpd", bound_to=pod)


def test_pod_whose_token_is_rotated(cluster: Cluster, place: NodePlace, node: BgpdNode, volume: Volume) -> None:
    """It comes as the service account of config/rbac.yaml; the token that is replaced and revoked is never missed."""
    cluster.forget_asked()
    admin = cluster.control_plane.admin
    old, new = (make_pod(cluster, place, name) for name in ("old", "new"))
    volume.write(token_for(cluster, old))
    announcing(cluster, node, place, volume.environment, wrapper=volume.wrapper)
    assert "kubernetes: synced" in node.bgpd("status")
    poll(lambda: [it.verb for it in cluster.asked()] == ["list", "watch"], 10, lambda: str(cluster.asked()))
    with unbroken(cluster, place) as capture:
        volume.write(token_for(cluster, new))
        admin.delete(f"{PODS}/old", {"gracePeriodSeconds": 0})
        cluster.control_plane.kill_apiserver()  # ends the watch, and what the server remembers of tokens
        node.wait_problem("source")
        cluster.control_plane.start_apiserver()
        status = node.wait_healthy(PAUSE_S)
        assert "401" not in status["source"]["lastError"]
    assert capture.besides_keepalives() == []
    follow_a_change(cluster, node, place)


@pytest.mark.parametrize("lacking", ["volume", "environment"])
def test_outside_a_pod(node: BgpdNode, volume: Volume, cluster: Cluster, lacking: str) -> None:
    """Without either there is no service account: the daemon ends, and says what to configure instead."""
    if lacking == "environment":
        volume.write(cluster.token())
    daemon = start(node, "bgpd", ["run"], volume.environment if lacking == "volume" else {}, volume.wrapper)
    assert daemon.popen.wait(10) == 1  # so that systemd, or the kubelet, tries again
    assert f"{SERVICE_ACCOUNT}: " in daemon.log()
    assert "Outside a pod, give source.kubernetes.kubeconfig" in daemon.log()
