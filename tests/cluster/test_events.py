"""A policy that does not fit shows in the cluster as an Event of that policy, whatever becomes of the daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bgpd.kube.event import NOTE_BYTES
from tests.fabric.node import BgpdNode
from tests.fabric.topology import NodePlace

from .events import blocked_policy, mend, wait_event
from .masq import delete_document, masquerading_node, write_document
from .node import Cluster, announcing


@pytest.fixture
def node(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The product with policy, not started."""
    write_document(cluster, "nonMasqueradeCIDRs: []\n")
    with masquerading_node(cluster, place) as made:
        made.config["policy"] = {"enabled": True, "onOverflow": "close"}  # so that a restart changes no text
        made.write_config()
        yield made
    delete_document(cluster)


def test_a_policy_that_does_not_fit_has_an_event(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """It says what `policy list` says, but for what others ask for; a restart counts it on.

    Once the policy is gone nobody tells of it.
    """
    announcing(cluster, node, place)
    with blocked_policy(cluster, place.name) as policy:
        node.wait_problem("x/big does not fit")
        event = wait_event(cluster, node)
        (row,) = json.loads(node.try_bgpd("policy", "list", "-o", "json").stdout)
        (problem,) = row["problems"]
        assert event["note"] == problem.partition(". Most entries are of ")[0]
        assert "x/d is closed" in event["note"] and len(event["note"].encode()) <= NOTE_BYTES
        assert event["regarding"] == {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "namespace": "x",
            "name": "big",
            "uid": policy["metadata"]["uid"],
        }
        assert (event["type"], event["reason"], event["action"]) == ("Warning", "PolicyBlocked", "Enforce")
        assert (event["reportingController"], event["reportingInstance"]) == ("bgpd.io/bgpd", place.name)
        node.restart_daemon()
        counted = wait_event(cluster, node, counted=True)
        assert counted["series"]["count"] == 2
        assert counted["series"]["lastObservedTime"] > event["eventTime"] == counted["eventTime"]
        mend(cluster)
        node.wait_healthy()
        cluster.forget_asked()
        node.restart_daemon()
        node.wait_healthy()
        assert wait_event(cluster, node, counted=True) == counted
        assert "events" not in {it.resource for it in cluster.asked()}
