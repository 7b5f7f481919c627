"""A node whose sessions and advertisements come from Cilium's BGP objects in a directory, against both ToRs."""

from __future__ import annotations

import pytest
import yaml

from bgpd.bgp.launch import SpeakerFiles
from tests.fabric import cilium_bgp as cilium
from tests.fabric.cilium_bgp import Manifest
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.service_objects import endpoint, endpoint_slice, service
from tests.fabric.topology import TwoTorFabric
from tests.files import rewrite


def write(node: BgpdNode, *objects: Manifest, file: str = "bgp") -> None:
    rewrite(node.manifests / f"{file}.yaml", yaml.safe_dump_all(objects))


def running(fabric: TwoTorFabric, *objects: Manifest, **bgp: object) -> BgpdNode:
    """A node with these objects, both pod CIDRs at both ToRs."""
    place = fabric.nodes[0]
    node = BgpdNode.at(place, {**cilium.SECTION, **bgp}, *place.pod_cidrs)
    write(node, *objects)
    node.start()
    for tor in fabric.tors:
        for prefix in place.pod_cidrs:
            tor.speaker.wait_route(prefix)
    return node


def wait_came_up_once(fabric: TwoTorFabric, node: BgpdNode) -> None:
    """Each session came up, and never went down since; what /metrics shows is a moment old."""

    def transitions() -> list[float]:
        names = [f'{{address="{tor.loopback}",peer="{tor.name}"}}' for tor in fabric.tors]
        return [node.metric(f"bgpd_bgp_session_transitions_total{name}") for name in names]

    poll(lambda: transitions() == [1.0, 1.0], 5, lambda: str(transitions()))


def communities(fabric: TwoTorFabric, prefix: str) -> set[tuple[str, ...]]:
    return {tor.speaker.wait_route(prefix).communities for tor in fabric.tors}


pytestmark = pytest.mark.needs("bird")

WEBS = ("203.0.113.7/32", "2001:db8:113::7/128")


def test_objects_become_sessions_and_routes(fabric: TwoTorFabric) -> None:
    """Routes of both families carry what the advertisement says; an edit changes them and no session falls."""
    config, peer = cilium.cluster_config(fabric), cilium.peer_config()
    prefix = fabric.nodes[0].pod_cidrs[0]
    node = running(fabric, config, peer, cilium.advertisement(cilium.pod_cidrs("65000:99", localPreference=99)))
    node.wait_healthy()
    assert communities(fabric, prefix) == {("65000:99",)}
    assert fabric.tors[0].speaker.wait_route(prefix).local_pref == 99
    wait_came_up_once(fabric, node)
    write(node, config, peer, cilium.advertisement(cilium.pod_cidrs("65000:7", "65000:8")))
    wanted = {("65000:7", "65000:8")}
    poll(lambda: communities(fabric, prefix) == wanted, 10, lambda: str(communities(fabric, prefix)))
    wait_came_up_once(fabric, node)


def test_objects_that_break_let_no_session_fall(fabric: TwoTorFabric) -> None:
    """Each fault is named with its place, what was last good stays, and mending it ends the matter."""
    good = [cilium.cluster_config(fabric), cilium.peer_config(), cilium.advertisement()]
    node = running(fabric, *good)
    node.wait_healthy()
    wait_came_up_once(fabric, node)
    bad_peer = cilium.cluster_config(fabric)
    bad_peer["spec"]["bgpInstances"][0]["peers"][0]["peerAddress"] = "fe80::1%eth0"
    broken = {
        "spec.timers.holdTimeSeconds": [good[0], cilium.peer_config(timers={"holdTimeSeconds": 1}), good[2]],
        "unknown key 'bfd'": [good[0], cilium.peer_config(bfd={}), good[2]],
        "peers[0].peerAddress": [bad_peer, *good[1:]],
        f"there is no CiliumBGPPeerConfig {cilium.PEER_CONFIG}": [good[0], good[2]],
        "CiliumPodIPPool is not supported": [
            *good[:2],
            cilium.advertisement(cilium.pod_cidrs(), {"advertisementType": "CiliumPodIPPool"}),
        ],
    }
    for named, objects in broken.items():
        write(node, *objects)
        node.wait_problem(named)
        write(node, *good)
        node.wait_healthy()
    for tor in fabric.tors:
        for prefix in fabric.nodes[0].pod_cidrs:
            tor.speaker.wait_route(prefix)
    wait_came_up_once(fabric, node)


def test_secret_that_is_missing_and_comes(fabric: TwoTorFabric) -> None:
    """A peer whose password cannot be had is named and has no session; once it can, the session comes up with it."""
    node = BgpdNode.at(fabric.nodes[0], cilium.SECTION)
    secrets = node.directory / "secrets"
    node.config["bgp"] = {**cilium.SECTION, "authSecrets": str(secrets)}
    node.write_config()
    config = cilium.cluster_config(fabric)
    config["spec"]["bgpInstances"][0]["peers"][0]["peerConfigRef"]["name"] = "with-secret"
    with_secret = cilium.peer_config("with-secret", authSecretRef="bgp-auth")
    write(node, config, cilium.peer_config(), with_secret, cilium.advertisement())
    node.start()
    fabric.tors[1].speaker.wait_route(fabric.nodes[0].pod_cidrs[0])
    assert str(secrets / "bgp-auth" / "password") in node.wait_problem("authSecretRef bgp-auth")
    (secrets / "bgp-auth").mkdir(parents=True)
    file = secrets / "bgp-auth" / "password"
    file.touch(mode=0o600)
    file.write_text("hunter2\n")
    node.wait_status("a peer with a password", lambda it: len(it["peers"]) == 2)


def test_override_and_node_selector(fabric: TwoTorFabric) -> None:
    """Only the nodes that are selected have sessions; the override of its name has its say on one of them."""
    place = fabric.nodes[0]
    selector = {"matchLabels": {"kubernetes.io/hostname": place.name}}
    objects = [
        cilium.cluster_config(fabric, nodeSelector=selector),
        cilium.peer_config(),
        cilium.advertisement(),
        cilium.override(place.name, routerID="10.99.0.1"),
        cilium.override(fabric.nodes[1].name, routerID="10.99.0.2"),
    ]
    node = running(fabric, *objects)
    node.wait_healthy()
    assert "router-id 10.99.0.1" in SpeakerFiles(node.directory / "run").configuration.read_text()
    node.allocate(place, place.pod_cidrs[0], labels={"kubernetes.io/hostname": "elsewhere"})
    node.wait_problem("no CiliumBGPClusterConfig selects this node")
    node.wait_status("no sessions", lambda it: not it["peers"])
    for tor in fabric.tors:
        tor.speaker.wait_no_route(place.pod_cidrs[0], 30)


def test_service_advertisement(fabric: TwoTorFabric) -> None:
    """Its selector and attributes are the object's, the health of the endpoints is watched, and an edit ends it."""
    bgp = {**cilium.SECTION, "export": {"allow": [*cilium.SECTION["export"]["allow"], *WEBS]}}
    config, peer = cilium.cluster_config(fabric), cilium.peer_config()
    announced = {
        "advertisementType": "Service",
        "service": {"addresses": ["LoadBalancerIP"]},
        "selector": {"matchLabels": {"announce": "yes"}},
        "attributes": {"communities": {"standard": ["65000:7"]}},
    }
    node = running(fabric, config, peer, cilium.advertisement(cilium.pod_cidrs(), announced), **bgp)
    addresses = [web.partition("/")[0] for web in WEBS]
    plain = service("plain", ingress=["203.0.113.9"])
    write(node, service("web", ingress=addresses, labels={"announce": "yes"}), plain, file="services")
    ready6 = endpoint_slice("web", [endpoint("fd00:1::1", "elsewhere")], "b")
    ready4 = endpoint_slice("web", [endpoint("10.1.1.1", "elsewhere")])
    theirs = endpoint_slice("plain", [endpoint("10.1.1.2", "elsewhere")])
    write(node, ready4, ready6, theirs, file="slices")
    for web in WEBS:
        assert communities(fabric, web) == {("65000:7",)}
    for tor in fabric.tors:
        tor.speaker.wait_no_route("203.0.113.9/32")
    down = endpoint_slice("web", [endpoint("10.1.1.1", "elsewhere", ready=False)])
    write(node, down, ready6, theirs, file="slices")
    for tor in fabric.tors:
        tor.speaker.wait_no_route(WEBS[0])
        tor.speaker.wait_route(WEBS[1])
    write(node, config, peer, cilium.advertisement(cilium.pod_cidrs()))
    for tor in fabric.tors:
        tor.speaker.wait_no_route(WEBS[1])
        for prefix in fabric.nodes[0].pod_cidrs:
            tor.speaker.wait_route(prefix)
    wait_came_up_once(fabric, node)
