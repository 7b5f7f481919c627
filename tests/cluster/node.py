"""The whole product beside a real API server: the two-ToR fabric with a control plane on the nodes' segment.

Decides where the API server is (a namespace of its own, so that its cable can be cut without touching a BGP
session), as whom the daemon comes (the service account of config/rbac.yaml and no other right), and how what
it asked for is known (the API server's audit log). What is tested is the test modules' business.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from tests.fabric.netns import Lab, missing
from tests.fabric.node import BIN, BgpdNode, two_tor_bgp
from tests.fabric.observe import BgpCapture, RouteSampler
from tests.fabric.process import Process, poll
from tests.fabric.topology import CABLE, GATEWAY, NodePlace, TwoTorFabric

from .controlplane import ControlPlane
from .rest import ApiError, JsonObject

NODES: Final = "/api/v1/nodes"
RBAC: Final = Path(__file__).parents[2] / "config" / "rbac.yaml"
API_ADDRESS: Final = "11.8.37.10"
USER: Final = "system:serviceaccount:kube-system:bgpd"
OTHER_CIDRS: Final = ("188.188.100.0/24", "fd00:188:188:100::/64")
BLIND_MS: Final = 1000.0  # a sampler that was kept from looking for longer has proved nothing; CI machines are busy
AUDIT_POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}],
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the daemon as the API server saw it. `resource` may end in a subresource."""

    verb: str
    group: str
    resource: str
    selector: str
    status: int


class Cluster:
    """Fabric, control plane, and the Node objects of the fabric's nodes as controllers make them."""

    def __init__(self, lab: Lab, directory: Path, binaries: Path) -> None:
        self.fabric = TwoTorFabric(lab).start()
        self.api = lab.namespace("api")
        lab.plug(self.api, CABLE, self.fabric.fabric, "api")
        self.api.add_address(CABLE, f"{API_ADDRESS}/24")
        self.api.add_route("default", via=GATEWAY)
        self._audit = directory / "audit.log"
        self._forgotten = 0
        policy = directory / "audit-policy.yaml"
        policy.write_text(yaml.safe_dump(AUDIT_POLICY))
        audit = [f"--audit-policy-file={policy}", f"--audit-log-path={self._audit}"]
        self.control_plane = ControlPlane(
            directory / "control-plane", binaries, address=API_ADDRESS, network=self.api.netns_name, extra_args=audit
        )
        self._directory = directory

    # --- Node objects ---------------------------------------------------------------------------------------

    def make(self, place: NodePlace, *pod_cidrs: str) -> None:
        """Creates the Node, as the kubelet and the controller manager do together."""
        self.create(place.name, [place.address, place.address6], pod_cidrs)

    def create(self, name: str, addresses: list[str], pod_cidrs: tuple[str, ...] = ()) -> JsonObject:
        spec = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}
        shown = [{"type": "InternalIP", "address": address} for address in addresses]
        body = {"metadata": {"name": name}, "spec": spec, "status": {"addresses": shown}}
        return self.control_plane.admin.create(NODES, body)

    def give(self, place: NodePlace, *pod_cidrs: str) -> None:
        """Sets the pod CIDRs of a Node that has none. Raises `ApiError`."""
        spec = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)}
        self.control_plane.admin.patch(f"{NODES}/{place.name}", {"spec": spec})

    def unmake(self, place: NodePlace) -> None:
        self.control_plane.admin.delete(f"{NODES}/{place.name}")

    # --- the way to the API server ----------------------------------------------------------------------------

    def cut(self) -> None:
        """Pulls the API server's cable at the switch."""
        self.fabric.fabric.link_down("api")

    def mend(self) -> None:
        self.fabric.fabric.link_up("api")

    # --- who the daemon is, and what it asked for -------------------------------------------------------------

    def token(self) -> str:
        """A token of the daemon's service account, good for an hour."""
        return self.control_plane.service_account_token("kube-system", "bgpd")

    def kubeconfig(self, token_file: Path) -> Path:
        return self.control_plane.token_kubeconfig(token_file)

    def asked(self) -> list[Asked]:
        """Every request of the daemon's user that was answered since `forget_asked`, each once, in order."""
        events: dict[str, dict[str, Any]] = {}
        for line in self._audit.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                event = json.loads(line)
                events.setdefault(event["auditID"], event)
        return [_asked(event) for event in events.values()][self._forgotten :]

    def forget_asked(self) -> None:
        """What was asked for up to now is of no interest any more."""
        self._forgotten += len(self.asked())


def _asked(event: dict[str, Any]) -> Asked:
    about = event.get("objectRef", {})
    query = parse_qs(urlsplit(event["requestURI"]).query)
    return Asked(
        verb=event["verb"],
        group=about.get("apiGroup", ""),
        resource="/".join(filter(None, (about.get("resource", event["requestURI"]), about.get("subresource")))),
        selector=",".join(query.get("fieldSelector", [])),
        status=event["responseStatus"]["code"],
    )


@contextlib.contextmanager
def running_cluster(directory: Path, binaries: Path) -> Iterator[Cluster]:
    """A cluster with config/rbac.yaml applied, and no Node yet; skips where there can be no lab."""
    reason = missing("bird", "curl")
    if reason is not None:
        pytest.skip(reason)
    with Lab() as lab:
        cluster = Cluster(lab, directory, binaries)
        with cluster.control_plane:
            cluster.control_plane.apply_file(RBAC)
            yield cluster


@contextlib.contextmanager
def bgpd_node(cluster: Cluster, place: NodePlace, **sections: Any) -> Iterator[BgpdNode]:
    """The product on this node, not started, with `token` beside its configuration; all of it goes again."""
    token = cluster.fabric.lab.directory / f"{place.namespace.name}.token"
    token.write_text(cluster.token() + "\n")
    source = {"kubernetes": {"kubeconfig": str(cluster.kubeconfig(token))}}
    node = BgpdNode(place.namespace, place.name, two_tor_bgp(cluster.fabric), **{"source": source, **sections})
    try:
        yield node
    finally:
        _clear(cluster, place, node)


def _clear(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """The next test finds the fabric and the cluster as this one did."""
    if node.daemon is not None:
        node.daemon.stop()
        node.daemon.log_path.unlink(missing_ok=True)
    if node.speaker is not None:
        with contextlib.suppress(RuntimeError):
            node.stop_speaker()
        node.speaker.kill()
    shutil.rmtree(node.directory)
    with contextlib.suppress(ApiError):
        cluster.unmake(place)


def announcing(
    cluster: Cluster,
    node: BgpdNode,
    place: NodePlace,
    environment: Mapping[str, str] | None = None,
    speaker_environment: Mapping[str, str] | None = None,
    *,
    wrapper: Sequence[str] = (),
) -> None:
    """Makes the Node, starts the product, and waits until nobody has anything left to say: see `wait_quiet`.

    The environments are added to the daemon's and the speaker's own. `wrapper` is a command that the daemon's is
    appended to, and that becomes the daemon.
    """
    cluster.make(place, *place.pod_cidrs)
    with BgpCapture(place.namespace, CABLE) as capture:
        node.speaker = start(node, "speaker", ["speaker", "run"], speaker_environment or {})
        node.daemon = start(node, "bgpd", ["run"], environment or {}, wrapper)
        node.wait_healthy()
        wait_quiet(cluster, place, capture)


def wait_quiet(cluster: Cluster, place: NodePlace, capture: BgpCapture) -> None:
    """Both ToRs have both pod CIDRs, and everybody has said End-of-RIB for two families since `capture` began."""
    for tor in cluster.fabric.tors:
        for prefix in place.pod_cidrs:
            tor.speaker.wait_route(prefix)
        poll(
            partial(_has_ends, capture, tor.loopback),
            20,
            lambda: str([str(it) for it in capture.besides_keepalives()]),
        )


def _has_ends(capture: BgpCapture, loopback: str) -> bool:
    both = capture.messages(src=loopback), capture.messages(dst=loopback)
    return all(sum(it.end_of_rib for it in said) >= 2 for said in both)


def start(
    node: BgpdNode, name: str, words: Sequence[str], environment: Mapping[str, str], wrapper: Sequence[str] = ()
) -> Process:
    """A `bgpd` command that stays, as the node itself starts it, with this added to its environment."""
    added = [f"{key}={value}" for key, value in environment.items()]
    argv = [*wrapper, "env", *added, str(BIN / "bgpd"), *words, "--config", str(node.config_file)]
    return node.namespace.popen(argv, name=name)


@contextlib.contextmanager
def unbroken(cluster: Cluster, place: NodePlace) -> Iterator[BgpCapture]:
    """Asserts that at no sample inside the block a ToR was without a pod CIDR; yields what was on the wire."""
    with contextlib.ExitStack() as stack:
        capture = stack.enter_context(BgpCapture(place.namespace, CABLE))
        samplers = [
            stack.enter_context(RouteSampler(tor.speaker.directory / "ctl", place.pod_cidrs))
            for tor in cluster.fabric.tors
        ]
        for sampler in samplers:
            sampler.wait_samples()
        yield capture
        for sampler in samplers:
            sampler.wait_samples()
            result = sampler.result()
            assert result.losses == 0, result
            assert result.longest_blind_ms < BLIND_MS, result


def follow_a_change(cluster: Cluster, node: BgpdNode, place: NodePlace) -> None:
    """The Node is made anew with other CIDRs, and both ToRs have those instead of its first ones."""
    cluster.unmake(place)
    cluster.make(place, *OTHER_CIDRS)
    wait_changed(cluster, node, place)


def wait_changed(cluster: Cluster, node: BgpdNode, place: NodePlace, timeout_s: float = 20.0) -> None:
    """Both ToRs have the other CIDRs, no longer the first ones, and the node has no problem."""
    for tor in cluster.fabric.tors:
        for prefix in OTHER_CIDRS:
            tor.speaker.wait_route(prefix, timeout_s)
        for prefix in place.pod_cidrs:
            tor.speaker.wait_no_route(prefix)
    node.wait_healthy()
