"""Cilium's BGP objects in a real API server: definitions, routes at both ToRs, edits, conditions, rights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import yaml

from tests.fabric import cilium_bgp as cilium
from tests.fabric.cilium_bgp import Manifest
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace

from .apply import apply, apply_file, collection_of
from .node import RBAC, Cluster, bgpd_node
from .rest import ApiError

CONFIG = RBAC.parent
CRDS = sorted((CONFIG / "crds").glob("*.yaml"))
ROLE = CONFIG / "rbac.ciliumbgp.yaml"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
SERVED_S = 45.0  # the longest pause between two attempts to list, and what a definition takes to be served
WRITTEN_S = 20.0  # bgpd.kube.conditions.SPREAD_S, and a busy machine


@pytest.fixture
def node(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The product, not started, for sessions from the cluster."""
    cluster.control_plane.apply_file(ROLE)
    with bgpd_node(cluster, place) as made:
        made.config["bgp"] = dict(cilium.SECTION)
        made.write_config()
        cluster.make(place, *place.pod_cidrs)
        yield made
    for path in CRDS:
        name = yaml.safe_load(path.read_text())["metadata"]["name"]
        try:
            cluster.control_plane.admin.delete(f"{DEFINITIONS}/{name}")
        except ApiError as error:
            assert error.status == 404
        poll(partial(_is_gone, cluster, name), 20, partial(str, f"{name} stays"))


def _is_gone(cluster: Cluster, name: str) -> bool:
    try:
        cluster.control_plane.admin.get(f"{DEFINITIONS}/{name}")
    except ApiError as error:
        return error.status == 404
    return False


def define(cluster: Cluster) -> None:
    for path in CRDS:
        apply_file(cluster.control_plane.admin, path)


def put(cluster: Cluster, *objects: Manifest) -> None:
    for each in objects:
        apply(cluster.control_plane.admin, each)


def path_of(cluster: Cluster, manifest: Manifest) -> str:
    return f"{collection_of(cluster.control_plane.admin, manifest)}/{manifest['metadata']['name']}"


def conditions(cluster: Cluster, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Those that speak of the object as it is now."""
    found = cluster.control_plane.admin.get(path_of(cluster, manifest))
    generation = found["metadata"]["generation"]
    there = found.get("status", {}).get("conditions", [])
    return {each["type"]: each for each in there if each["observedGeneration"] == generation}


def wait_conditions(cluster: Cluster, manifest: Manifest, wanted: dict[str, str]) -> dict[str, dict[str, Any]]:
    """By type, once their statuses are as `wanted`."""

    def probe() -> dict[str, dict[str, Any]] | None:
        found = conditions(cluster, manifest)
        return found if {type_: it["status"] for type_, it in found.items()} == wanted else None

    return poll(probe, WRITTEN_S, lambda: f"{wanted}, not {conditions(cluster, manifest)}")


def wait_routes(cluster: Cluster, place: NodePlace, timeout_s: float = 20.0) -> None:
    for tor, prefix in product(cluster.fabric.tors, place.pod_cidrs):
        tor.speaker.wait_route(prefix, timeout_s)


def test_from_no_definitions_to_routes(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """A cluster without the definitions is named with the remedy; once it has them and objects, there are routes."""
    node.start()
    assert "kubectl apply -f config/crds" in node.wait_problem("there is no CiliumBGPClusterConfig")
    config, peer = cilium.cluster_config(cluster.fabric), cilium.peer_config()
    define(cluster)
    put(cluster, config, peer, cilium.advertisement(cilium.pod_cidrs("65000:99")))
    wait_routes(cluster, place, SERVED_S)
    node.wait_healthy()
    wait_conditions(cluster, config, {"bgpd.io/Accepted": "True", "cilium.io/MissingPeerConfigs": "False"})
    wait_conditions(cluster, peer, {"bgpd.io/Accepted": "True"})


def test_edits_and_conditions(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """What is missing or refused stands in the object's status, by name, until it is put right."""
    define(cluster)
    config, peer = cilium.cluster_config(cluster.fabric), cilium.peer_config()
    put(cluster, config, cilium.advertisement())
    node.start()
    missing = wait_conditions(
        cluster, config, {"bgpd.io/Accepted": "False", "cilium.io/MissingPeerConfigs": "True"}
    )["cilium.io/MissingPeerConfigs"]
    assert missing["message"] == f"Referenced CiliumBGPPeerConfig(s) are missing: [{cilium.PEER_CONFIG}]"
    put(cluster, peer)
    wait_routes(cluster, place)
    node.wait_healthy()
    wait_conditions(cluster, config, {"bgpd.io/Accepted": "True", "cilium.io/MissingPeerConfigs": "False"})
    families = [*peer["spec"]["families"], {"afi": "l2vpn", "safi": "evpn"}]
    put(cluster, cilium.peer_config(families=families))
    refused = wait_conditions(cluster, peer, {"bgpd.io/Accepted": "False"})["bgpd.io/Accepted"]
    assert refused["message"].startswith("spec.families[2]: l2vpn/evpn is not supported")
    node.wait_problem("l2vpn/evpn is not supported")
    put(cluster, peer)
    wait_conditions(cluster, peer, {"bgpd.io/Accepted": "True"})
    node.wait_healthy()


def test_conditions_of_others_stay(cluster: Cluster, node: BgpdNode) -> None:
    """What another controller says in the status is not touched."""
    define(cluster)
    config = cilium.cluster_config(cluster.fabric)
    put(cluster, config, cilium.peer_config())
    other = {
        "type": "example.com/Seen", "status": "True", "reason": "Seen", "message": "",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    cluster.control_plane.admin.patch(f"{path_of(cluster, config)}/status", {"status": {"conditions": [other]}})
    node.start()
    wanted = {"bgpd.io/Accepted": "True", "cilium.io/MissingPeerConfigs": "False", "example.com/Seen": "True"}
    wait_conditions(cluster, config, wanted)


def test_every_right_is_used(cluster: Cluster, place: NodePlace, node: BgpdNode) -> None:
    """What config/rbac.ciliumbgp.yaml grants is what is asked for, and nobody is refused."""
    define(cluster)
    config, peer = cilium.cluster_config(cluster.fabric), cilium.peer_config()
    put(cluster, config, peer, cilium.advertisement())
    cluster.forget_asked()
    node.start()
    wait_routes(cluster, place)
    role = next(it for it in yaml.safe_load_all(ROLE.read_text()) if it["kind"] == "ClusterRole")
    granted = {
        right for rule in role["rules"] for right in product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }

    def asked() -> set[tuple[str, str, str]]:
        return {(it.group, it.resource, it.verb) for it in cluster.asked() if it.group == "cilium.io"}

    poll(lambda: asked() == granted, WRITTEN_S, lambda: str(granted ^ asked()))
    wait_conditions(cluster, peer, {"bgpd.io/Accepted": "True"})
    assert sum(it.verb == "patch" for it in cluster.asked()) == 2  # of each object once, though its status changed
    assert {it.status for it in cluster.asked()} <= {200, 429}  # a definition that is just being set up asks to wait
