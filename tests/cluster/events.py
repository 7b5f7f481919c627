"""A NetworkPolicy that does not fit into the maps of a node, and the Events that the cluster has of it.

Decides how such a policy comes to be and goes again. What is told of it is for the tests to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from tests.fabric.node import BgpdNode
from tests.fabric.policy_site import namespace, pod, too_big
from tests.fabric.process import poll

from .apply import apply, collection_of
from .node import Cluster
from .policies import show_pod
from .rest import ApiError, JsonObject

EVENTS: Final = "/apis/events.k8s.io/v1/namespaces/x/events"
POD: Final = "100.64.8.8"
TOLD_S: Final = 20.0


@contextlib.contextmanager
def blocked_policy(cluster: Cluster, node: str) -> Iterator[JsonObject]:
    """x/big, for the pod x/d of the node; neither is left behind, nor is what was told of it."""
    admin = cluster.control_plane.admin
    shown, wanted = pod("x", "d", [POD], node=node), too_big("d")
    apply(admin, namespace("x"))
    show_pod(cluster, shown)
    try:
        yield apply(admin, wanted)
    finally:
        mend(cluster)
        admin.delete(f"{collection_of(admin, shown)}/d", {"gracePeriodSeconds": 0})
        forget_events(cluster)


def mend(cluster: Cluster) -> None:
    """There is no such policy any more, if there was one."""
    admin = cluster.control_plane.admin
    with contextlib.suppress(ApiError):
        admin.delete(f"{collection_of(admin, too_big('d'))}/big")


def wait_event(cluster: Cluster, node: BgpdNode, *, counted: bool = False, timeout_s: float = TOLD_S) -> JsonObject:
    """The one Event of the namespace, once there is one; `counted`: once that has been said again."""
    return poll(
        lambda: next((it for it in _events(cluster) if counted == ("series" in it)), None),
        timeout_s,
        lambda: f"{_events(cluster)}\n{node.bgpd('status', check=False)}",
    )


def _events(cluster: Cluster) -> list[JsonObject]:
    found = list(cluster.control_plane.admin.get(EVENTS)["items"])
    assert len(found) <= 1
    return found


def forget_events(cluster: Cluster) -> None:
    for each in _events(cluster):
        cluster.control_plane.admin.delete(f"{EVENTS}/{each['metadata']['name']}")
