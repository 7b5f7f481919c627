"""config/rbac.yaml grants what the daemon does: take a verb away and it says which; and it asks for nothing else.

The daemon masquerades by a ConfigMap, enforces policy, has its conflist from another ConfigMap (the Role is for these
two), and announces Services. Without all that it asks for Nodes only: `test_daemon`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import yaml

from bgpd.model.attachment import OWN_FILE
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace

from . import conflist
from .events import TOLD_S, blocked_policy, forget_events, wait_event
from .masq import CONFIG_MAP, CONFIG_MAPS, delete_document, masquerading_node, write_document
from .node import NODES, RBAC, Asked, Cluster, announcing
from .rest import ApiError, Rest

ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
ROLES_IN = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles"
COLLECTIONS = {
    "nodes": NODES,
    "configmaps": CONFIG_MAPS,
    "pods": "/api/v1/pods",
    "namespaces": "/api/v1/namespaces",
    "networkpolicies": "/apis/networking.k8s.io/v1/networkpolicies",
    "services": "/api/v1/services",
    "endpointslices": "/apis/discovery.k8s.io/v1/endpointslices",
}
RESTORED_S = 31.0  # the longest pause between two attempts, and one attempt
READS = ("list", "watch")
REFUSALS = 3  # with pauses of 1 and 2 s between them


@dataclass(frozen=True, order=True, slots=True)
class Right:
    """One verb on one resource. `namespace` and `name` empty: everywhere, all of them."""

    group: str
    resource: str
    verb: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource} {self.name}".rstrip()

    @property
    def rule(self) -> dict[str, Any]:
        names = {"resourceNames": [self.name]} if self.name else {}
        return {"apiGroups": [self.group], "resources": [self.resource], "verbs": [self.verb], **names}

    @property
    def role(self) -> str:
        """The path of the role that grants it."""
        return f"{ROLES_IN.format(self.namespace) if self.namespace else ROLES}/bgpd"


def granted() -> list[Right]:
    """Everything that the roles of config/rbac.yaml allow."""
    roles = [it for it in yaml.safe_load_all(RBAC.read_text()) if it["kind"] in ("ClusterRole", "Role")]
    assert {it["metadata"]["name"] for it in roles} == {"bgpd"}
    return [
        Right(group, resource, verb, role["metadata"].get("namespace", ""), name)
        for role in roles
        for rule in role["rules"]
        for group, resource, verb, name in product(
            rule["apiGroups"], rule["resources"], rule["verbs"], rule.get("resourceNames", [""])
        )
    ]


def without(right: Right) -> list[dict[str, Any]]:
    """The rules of its role, one for each right but this one."""
    return [it.rule for it in granted() if it.role == right.role and it != right]


def is_allowed(client: Rest, resource: str, verb: str, selector: str = "") -> bool:
    """Whether the API server lets this user do it now: a changed role takes it a moment."""
    path, query = COLLECTIONS[resource], {"fieldSelector": selector} if selector else {}
    try:
        if verb == "list":
            client.get(path, limit=1, **query)
        else:
            list(client.watch(path, seconds=1, **query))
    except ApiError as error:
        assert error.status == 403
        return False
    return True


@pytest.fixture
def node(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The product, not started, with its ConfigMap."""
    write_document(cluster, "nonMasqueradeCIDRs: [11.8.37.4/32]\n")
    with masquerading_node(cluster, place) as made:
        conflist.configure(made)
        announced = {"advertisementType": "Service", "service": {"addresses": ["ExternalIP"]}, "selector": {}}
        made.config["bgp"]["advertisements"].append(announced)
        made.config["policy"]["onOverflow"] = "close"  # so that a restart changes nothing about it
        made.write_config()
        conflist.write_config_map(cluster, json.dumps(conflist.chain(made)))
        yield made
    delete_document(cluster)
    conflist.delete_config_map(cluster)


@pytest.mark.parametrize("right", [it for it in granted() if it.verb in READS], ids=str)
def test_right_that_is_missing(cluster: Cluster, place: NodePlace, node: BgpdNode, right: Right) -> None:
    """The status names verb and resource as a rule has them, and all is well by itself once it is granted."""
    control_plane = cluster.control_plane
    client = control_plane.token_client(cluster.token())
    selector = f"metadata.name={right.name}" if right.name else ""
    cluster.make(place, *place.pod_cidrs)
    try:
        control_plane.admin.patch(right.role, {"rules": without(right)})
        poll(
            lambda: not is_allowed(client, right.resource, right.verb, selector),
            10,
            lambda: "the role is not in force",
        )
        node.start()
        problem = node.wait_problem(f"not allowed to {right.verb} {right.resource}; the role lacks")
        rule = f'apiGroups: ["{right.group}"], resources: ["{right.resource}"], verbs: ["{right.verb}"]'
        assert rule in problem and right.name in problem
        shown = node.try_bgpd("status")
        assert shown.returncode == 4
        assert problem in shown.stdout
    finally:
        control_plane.apply_file(RBAC)
    node.wait_healthy(RESTORED_S)
    for tor in cluster.fabric.tors:
        tor.speaker.wait_route(place.pod_cidrs[0])
    poll(lambda: "11.8.37.4/32" in node.bgpd("masq", "list"), 10, lambda: node.bgpd("status", check=False))
    poll((node.directory / "net.d" / OWN_FILE).exists, 10, lambda: node.bgpd("status", check=False))


def may_write(client: Rest, right: Right) -> bool:
    """Whether the API server would let this user do it now."""
    asked = {"group": right.group, "resource": right.resource, "verb": right.verb, "namespace": "x"}
    review = {"spec": {"resourceAttributes": asked}}
    answer = client.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


@pytest.mark.parametrize("right", [it for it in granted() if it.verb not in READS], ids=str)
def test_right_to_write_that_is_missing(cluster: Cluster, place: NodePlace, node: BgpdNode, right: Right) -> None:
    """The log has it once, with the remedy, and nobody minds otherwise; it is made up for once it is granted."""
    control_plane = cluster.control_plane
    client = control_plane.token_client(cluster.token())
    announcing(cluster, node, place)
    with blocked_policy(cluster, place.name):
        wait_event(cluster, node)
        if right.verb == "create":
            forget_events(cluster)
        try:
            control_plane.admin.patch(right.role, {"rules": without(right)})
            poll(lambda: not may_write(client, right), 10, lambda: "the role is not in force")
            cluster.forget_asked()
            node.restart_daemon()
            poll(lambda: len(refused(cluster)) >= REFUSALS, TOLD_S, lambda: str(cluster.asked()))
            assert {it.verb for it in refused(cluster)} == {right.verb}
            (line,) = (line for line in log_of(node).splitlines() if "events cannot be written" in line)
            assert f'resources: ["events"], verbs: ["{right.verb}"]' in line.replace("\\", "")
            assert "apply config/rbac.yaml" in line
            assert len(node.status()["problems"]) == 1
        finally:
            control_plane.apply_file(RBAC)
        counted = right.verb == "patch"
        wait_event(cluster, node, counted=counted, timeout_s=RESTORED_S)
        poll(lambda: "events are written again" in log_of(node), 5, lambda: log_of(node))


def refused(cluster: Cluster) -> list[Asked]:
    return [it for it in cluster.asked() if it.status == 403]


def log_of(node: BgpdNode) -> str:
    """Of the daemon that runs now."""
    assert node.daemon is not None
    _, _, text = node.daemon.log_path.read_text().rpartition('"started"')
    return text


def test_every_right_is_used_and_no_other_asked_for(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """The audit log of a whole life has exactly what config/rbac.yaml grants, and every request was allowed.

    An Event that is there already cannot be created (409), and is patched.
    """
    cluster.forget_asked()
    announcing(cluster, node, place)
    with blocked_policy(cluster, place.name):
        wait_event(cluster, node)
        node.restart_daemon()
        wait_event(cluster, node, counted=True)
    selected = {"nodes": f"metadata.name={place.name}"}
    rights = {
        (it.group, it.resource, it.verb, f"metadata.name={it.name}" if it.name else selected.get(it.resource, ""))
        for it in granted()
    }

    def asked() -> set[tuple[str, str, str, str]]:
        return {(it.group, it.resource, it.verb, it.selector) for it in cluster.asked()}

    poll(lambda: len(asked()) >= len(rights), 10, lambda: str(cluster.asked()))
    assert asked() == rights
    assert {it.status for it in cluster.asked()} == {200, 201, 409}


def test_other_config_maps_are_refused(cluster: Cluster) -> None:
    """Those that are named, and they only by a selector; not written, and not one of another namespace."""
    admin, client = cluster.control_plane.admin, cluster.control_plane.token_client(cluster.token())
    write_document(cluster, "nonMasqueradeCIDRs: []\n")
    admin.create(CONFIG_MAPS, {"metadata": {"name": "other"}, "data": {"config": "nonMasqueradeCIDRs: []"}})
    try:
        for verb in ("list", "watch"):
            for name in (CONFIG_MAP, conflist.CONFIG_MAP):
                assert is_allowed(client, "configmaps", verb, f"metadata.name={name}")
            assert not is_allowed(client, "configmaps", verb, "metadata.name=other")
            assert not is_allowed(client, "configmaps", verb)
        elsewhere = CONFIG_MAPS.replace("kube-system", "default")
        refused: list[Callable[[], object]] = [
            lambda: client.get(f"{CONFIG_MAPS}/{CONFIG_MAP}"),
            lambda: client.get(elsewhere, fieldSelector=f"metadata.name={CONFIG_MAP}"),
            lambda: client.patch(f"{CONFIG_MAPS}/{CONFIG_MAP}", {"data": {"config": ""}}),
            lambda: client.delete(f"{CONFIG_MAPS}/{CONFIG_MAP}"),
            lambda: client.create(CONFIG_MAPS, {"metadata": {"name": "more"}}),
        ]
        for request in refused:
            with pytest.raises(ApiError) as error:
                request()
            assert error.value.status == 403
    finally:
        admin.delete(f"{CONFIG_MAPS}/other")
        delete_document(cluster)
