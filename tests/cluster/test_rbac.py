"""config/rbac.yaml grants what the daemon does: take a verb away and it says which; and it asks for nothing else."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import yaml

from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace

from .node import NODES, RBAC, Cluster, announcing
from .rest import ApiError, Rest

ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
RESTORED_S = 31.0  # the longest pause between two attempts, and one attempt

Right = tuple[str, str, str]


def granted() -> list[Right]:
    """Group, resource and verb of everything that the cluster roles of config/rbac.yaml allow."""
    roles = [it for it in yaml.safe_load_all(RBAC.read_text()) if it["kind"] == "ClusterRole"]
    rules = [rule for role in roles for rule in role["rules"]]
    return [right for rule in rules for right in product(rule["apiGroups"], rule["resources"], rule["verbs"])]


def without(right: Right) -> list[dict[str, Any]]:
    """One rule for each right but this one."""
    rest = [it for it in granted() if it != right]
    return [{"apiGroups": [group], "resources": [resource], "verbs": [verb]} for group, resource, verb in rest]


def is_allowed(client: Rest, right: Right) -> bool:
    """Whether the API server lets this user do it now: a changed role takes it a moment."""
    group, resource, verb = right
    assert (group, resource) == ("", "nodes"), "say here how this resource is asked for"
    try:
        if verb == "list":
            client.get(NODES, limit=1)
        else:
            list(client.watch(NODES, seconds=1))
    except ApiError as error:
        assert error.status == 403
        return False
    return True


@pytest.mark.parametrize("right", granted(), ids=lambda right: f"{right[2]} {right[1]}")
def test_right_that_is_missing(cluster: Cluster, place: NodePlace, node: BgpdNode, right: Right) -> None:
    """The status names verb and resource as a rule has them, and all is well by itself once it is granted."""
    group, resource, verb = right
    control_plane = cluster.control_plane
    client = control_plane.token_client(cluster.token())
    cluster.make(place, *place.pod_cidrs)
    try:
        control_plane.admin.patch(f"{ROLES}/bgpd", {"rules": without(right)})
        poll(lambda: not is_allowed(client, right), 10, lambda: "the role is not in force")
        node.start()
        problem = node.wait_problem(f"not allowed to {verb} {resource}; the role lacks")
        assert f'apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]' in problem
        shown = node.try_bgpd("status")
        assert shown.returncode == 4
        assert problem in shown.stdout
    finally:
        control_plane.apply_file(RBAC)
    node.wait_healthy(RESTORED_S)
    for tor in cluster.fabric.tors:
        tor.speaker.wait_route(place.pod_cidrs[0])


def test_every_right_is_used_and_no_other_asked_for(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """The audit log of a whole life has exactly what config/rbac.yaml grants, and every request was allowed."""
    cluster.forget_asked()
    announcing(cluster, node, place)
    rights = set(granted())
    poll(lambda: len(cluster.asked()) >= len(rights), 10, lambda: str(cluster.asked()))
    asked = cluster.asked()
    assert {(it.group, it.resource, it.verb) for it in asked} == rights
    assert {it.status for it in asked} == {200}
