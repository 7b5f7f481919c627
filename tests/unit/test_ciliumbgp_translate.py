"""What Cilium's documentation has as examples, translated to this node's `bgp` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from bgpd.ciliumbgp.objects import Objects
from bgpd.ciliumbgp.translate import Translation, refusals, translate
from bgpd.config.bgp import Bgp
from bgpd.kube.ciliumbgp import ADVERTISEMENT, CLUSTER_CONFIG, NODE_CONFIG_OVERRIDE, PEER_CONFIG
from bgpd.kube.parse import Kind
from bgpd.model.bgp import AdvertisementType, Family
from bgpd.model.custom import Custom

BASE = Bgp.model_validate({"peersFrom": "cilium", "export": {"allow": ["10.0.0.0/8"]}})
RACK = {"rack": "rack0"}
NODE = "bgp-cplane-dev-multi-homing-worker"

CLUSTER = """
metadata: {name: cilium-bgp}
spec:
  nodeSelector: {matchLabels: {rack: rack0}}
  bgpInstances:
  - name: "instance-65000"
    localASN: 65000
    localPort: 179
    peers:
    - name: "peer-65000-tor1"
      peerASN: 65000
      peerAddress: fd00:10:0:0::1
      peerConfigRef: {name: cilium-peer}
    - name: "peer-65000-tor2"
      peerASN: 65000
      peerAddress: fd00:11:0:0::1
      peerConfigRef: {name: cilium-peer}
"""
PEER = """
metadata: {name: cilium-peer}
spec:
  timers: {holdTimeSeconds: 9, keepAliveTimeSeconds: 3}
  authSecretRef: bgp-auth-secret
  ebgpMultihop: 4
  gracefulRestart: {enabled: true, restartTimeSeconds: 15}
  families:
    - {afi: ipv4, safi: unicast, advertisements: {matchLabels: {advertise: bgp}}}
"""
ADVERT = """
metadata: {name: bgp-advertisements, labels: {advertise: bgp}}
spec:
  advertisements:
    - advertisementType: PodCIDR
      attributes: {communities: {standard: ["65000:99"]}, localPreference: 99}
"""
OVERRIDE = f"""
metadata: {{name: {NODE}}}
spec:
  bgpInstances:
    - name: "instance-65000"
      routerID: "192.168.10.1"
      localPort: 1790
      localASN: 65010
      peers:
        - {{name: "peer-65000-tor1", localAddress: "fd00:10:0:2::2"}}
        - {{name: "peer-65000-tor2", localAddress: "fd00:11:0:2::2"}}
"""


def read(kind: Kind[Custom[Any]], *texts: str) -> dict[str, Custom[Any]]:
    found = [kind.to_model(kind.convert(yaml.safe_load(text))) for text in texts]
    return {each.name: each for each in found}


def objects(
    *clusters: str, peers: tuple[str, ...] = (PEER,), adverts: tuple[str, ...] = (ADVERT,), override: str = ""
) -> Objects:
    return Objects(
        read(CLUSTER_CONFIG, *(clusters or (CLUSTER,))),
        read(PEER_CONFIG, *peers),
        read(ADVERTISEMENT, *adverts),
        read(NODE_CONFIG_OVERRIDE, *([override] if override else [])),
    )


def on_node(found: Objects, labels: Mapping[str, str] = RACK) -> Translation:
    return translate(BASE, found, NODE, labels)


def edited(text: str, **spec: Any) -> str:
    value = yaml.safe_load(text)
    value["spec"] |= spec
    return yaml.safe_dump(value)


def with_peer(**fields: Any) -> str:
    """The ClusterConfig with these fields of its first peer, without those that are None."""
    value = yaml.safe_load(CLUSTER)
    peers = value["spec"]["bgpInstances"][0]["peers"]
    peers[0] = {key: each for key, each in (peers[0] | fields).items() if each is not None}
    return yaml.safe_dump(value)


def test_the_examples_of_the_documentation() -> None:
    """ClusterConfig, PeerConfig and Advertisement, key by key."""
    found = on_node(objects())
    bgp = found.bgp
    assert (bgp.local_asn, bgp.listen_port, bgp.router_id) == (65000, 179, None)
    assert [peer.name for peer in bgp.peers] == ["peer-65000-tor1", "peer-65000-tor2"]
    peer = bgp.peers[0]
    assert str(peer.peer_address) == "fd00:10::1"
    assert peer.timers.hold_time_seconds == 9
    assert peer.families == (Family.IPV4,)
    assert (peer.graceful_restart.enabled, peer.graceful_restart.restart_time_seconds) == (True, 15)
    assert peer.ebgp_multihop is None  # between routers of one AS it does not count
    assert found.secrets == {"peer-65000-tor1": "bgp-auth-secret", "peer-65000-tor2": "bgp-auth-secret"}
    entry = bgp.advertisements[0]
    assert (entry.peers, entry.families) == (("peer-65000-tor1",), (Family.IPV4,))
    assert (entry.attributes.communities, entry.attributes.local_preference) == (("65000:99",), 99)
    assert bgp.export == BASE.export
    assert (found.chosen, found.refused) == ("cilium-bgp", ())


def test_the_override_of_the_documentation() -> None:
    """It has its say on the node of its name and on no other."""
    found = objects(override=OVERRIDE)
    bgp = on_node(found).bgp
    assert (bgp.local_asn, bgp.listen_port, str(bgp.router_id)) == (65010, 1790, "192.168.10.1")
    assert [str(peer.local_address) for peer in bgp.peers] == ["fd00:10:0:2::2", "fd00:11:0:2::2"]
    assert {peer.ebgp_multihop for peer in bgp.peers} == {4}  # now it is another AS
    assert translate(BASE, found, "another", RACK) == on_node(objects())


def test_defaults_are_those_of_cilium() -> None:
    """Without a PeerConfig: both families, no graceful restart, nothing announced. Without a port: no listening."""
    value = yaml.safe_load(CLUSTER)
    instance = value["spec"]["bgpInstances"][0]
    del instance["localPort"], instance["peers"][0]["peerConfigRef"]
    bgp = on_node(objects(yaml.safe_dump(value))).bgp
    assert bgp.listen_port == 0
    peer = bgp.peers[0]
    assert set(peer.families) == set(Family)
    assert (peer.graceful_restart.enabled, peer.timers.hold_time_seconds, peer.peer_port) == (False, 90, 179)
    assert all(entry.peers != (peer.name,) for entry in bgp.advertisements)


def test_selectors() -> None:
    """No nodeSelector selects every node; a family without a selector announces nothing, an empty one everything."""
    assert on_node(objects(), {}).chosen == ""
    everywhere = yaml.safe_load(CLUSTER)
    del everywhere["spec"]["nodeSelector"]
    assert on_node(objects(yaml.safe_dump(everywhere)), {}).chosen == "cilium-bgp"
    families = [{"afi": "ipv4", "safi": "unicast"}, {"afi": "ipv6", "safi": "unicast", "advertisements": {}}]
    bgp = on_node(objects(peers=(edited(PEER, families=families),))).bgp
    assert {entry.families for entry in bgp.advertisements} == {(Family.IPV6,)}


def test_of_two_that_select_a_node_the_older_counts() -> None:
    """By the time of their creation; in files, which have none, by name."""
    older = yaml.safe_load(CLUSTER)
    older["metadata"] = {"name": "z", "creationTimestamp": "2026-01-01T00:00:00Z"}
    newer = yaml.safe_load(CLUSTER)
    newer["metadata"] = {"name": "a", "creationTimestamp": "2026-01-02T00:00:00Z"}
    found = on_node(objects(yaml.safe_dump(newer), yaml.safe_dump(older)))
    assert (found.chosen, found.others) == ("z", ("a",))
    del older["metadata"]["creationTimestamp"], newer["metadata"]["creationTimestamp"]
    assert on_node(objects(yaml.safe_dump(older), yaml.safe_dump(newer))).chosen == "a"


def test_overlapping_advertisements_add_up() -> None:
    """Communities of all of them, well-known ones as numbers, and the highest local preference."""
    more = edited(
        ADVERT.replace("bgp-advertisements", "more"),
        advertisements=[
            {
                "advertisementType": "PodCIDR",
                "attributes": {
                    "communities": {"standard": ["4259840099"], "wellKnown": ["no-export"], "large": ["1:2:3"]},
                    "localPreference": 120,
                },
            },
            {"advertisementType": "PodCIDR"},
        ],
    )
    (first, _) = on_node(objects(adverts=(more, ADVERT))).bgp.advertisements
    assert first.attributes.communities == ("65000:99", "65000:99", "65535:65281")
    assert first.attributes.large_communities == ("1:2:3",)
    assert first.attributes.local_preference == 120


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"peerASN": 0}, "peerASN 0"),
        ({"peerAddress": None}, "give exactly one of 'peerAddress'"),
        ({"peerAddress": "fe80::1%eth0"}, "peers[0].peerAddress: "),
        ({"peerAddress": "fd00:11::1"}, "has this peerAddress already, fd00:11::1"),
        ({"peerConfigRef": {"name": "nobody"}}, "there is no CiliumBGPPeerConfig nobody"),
    ],
)
def test_a_peer_that_cannot_be_had_is_refused_and_the_other_is_not(fields: dict[str, Any], why: str) -> None:
    """By name, with its place; what is refused of the first is no matter for the second, or the other way round."""
    found = on_node(objects(with_peer(**fields)))
    (refused,) = found.refused
    assert why in str(refused)
    assert str(refused).startswith("CiliumBGPClusterConfig cilium-bgp: spec.bgpInstances[0].peers[")
    assert len(found.bgp.peers) == 1


def test_peers_that_are_discovered() -> None:
    """By the gateway of one family, or at the other end of a link."""
    gateway = {"mode": "DefaultGateway", "defaultGateway": {"addressFamily": "ipv6"}}
    peer = on_node(objects(with_peer(peerAddress=None, autoDiscovery=gateway))).bgp.peers[0]
    assert peer.auto_discovery is not None
    assert peer.auto_discovery.default_gateway.address_family == "ipv6"
    link = {"mode": "Unnumbered", "unnumbered": {"interface": "eth0"}}
    assert on_node(objects(with_peer(peerAddress=None, autoDiscovery=link))).bgp.peers[0].interface == "eth0"


def test_what_advertisements_and_families_cannot_have() -> None:
    """Named once, however many peers it is for."""
    families = [
        {"afi": "ipv4", "safi": "unicast", "advertisements": {}},
        {"afi": "l2vpn", "safi": "evpn", "advertisements": {}},
    ]
    things = [{"advertisementType": it} for it in ("PodCIDR", "CiliumPodIPPool", "Interface")]
    found = on_node(
        objects(peers=(edited(PEER, families=families),), adverts=(edited(ADVERT, advertisements=things),))
    )
    assert [str(each).split(" is not supported")[0] for each in found.refused] == [
        "CiliumBGPAdvertisement bgp-advertisements: spec.advertisements[1]: CiliumPodIPPool",
        "CiliumBGPAdvertisement bgp-advertisements: spec.advertisements[2]: Interface",
        "CiliumBGPPeerConfig cilium-peer: spec.families[1]: l2vpn/evpn",
    ]
    assert len(found.bgp.advertisements) == 2


def test_instances_share_a_speaker() -> None:
    """Each has an ASN of its own; of peers of one name the later is told apart; another port is refused."""
    value = yaml.safe_load(CLUSTER)
    first = value["spec"]["bgpInstances"][0]
    second = {**first, "name": "Instance 2", "localASN": 65001}
    second["peers"] = [{**first["peers"][0], "peerAddress": "192.0.2.9"}]
    value["spec"]["bgpInstances"].append(second)
    bgp = on_node(objects(yaml.safe_dump(value))).bgp
    assert [(peer.name, peer.local_asn) for peer in bgp.peers][2] == ("instance-2-peer-65000-tor1", 65001)
    second["localPort"] = 180
    found = on_node(objects(yaml.safe_dump(value)))
    assert "localPort or routerID differs" in str(found.refused[0])
    assert found.failed == {"instance-2-peer-65000-tor1"}


def test_every_fault_of_an_object_is_found_at_once() -> None:
    """Each by its path; unknown keys, which a later Cilium may have, among them."""
    text = edited(PEER, timers={"holdTimeSeconds": 1}, transport={"sourceInterface": "lo"}, ebgpMultihop="many")
    broken = read(PEER_CONFIG, text)["cilium-peer"]
    assert broken.spec is None
    assert {fault.path for fault in broken.faults} == {
        ("spec", "timers", "holdTimeSeconds"),
        ("spec", "transport", "sourceInterface"),
        ("spec", "ebgpMultihop"),
    }


def test_what_no_node_has_is_the_same_on_all() -> None:
    """An ASN that only overrides give is no refusal for all nodes."""
    value = yaml.safe_load(CLUSTER)
    del value["spec"]["bgpInstances"][0]["localASN"]
    found = objects(yaml.safe_dump(value))
    assert "localASN" in str(on_node(found).refused[0])
    assert list(refusals(found)) == []


def test_services_without_a_selector_are_none() -> None:
    """As in Cilium: nothing is announced, and nothing is wrong."""
    thing = {"advertisementType": "Service", "service": {"addresses": ["ClusterIP"]}}
    found = on_node(objects(adverts=(edited(ADVERT, advertisements=[thing]),)))
    assert (found.bgp.advertisements, found.refused) == ((), ())


def test_services_by_selector_and_address() -> None:
    """Entries as the file has them, for one family each; all of Cilium's ways to select are there."""
    selector = {
        "matchExpressions": [{"key": "bgp", "operator": "In", "values": ["blue"]}, {"key": "x", "operator": "Exists"}]
    }
    options: dict[str, Any] = {"addresses": ["ClusterIP", "LoadBalancerIP"]}
    thing = {"advertisementType": "Service", "service": options}
    found = on_node(objects(adverts=(edited(ADVERT, advertisements=[{**thing, "selector": selector}]),)))
    assert found.refused == ()
    entry = found.bgp.advertisements[0]
    assert entry.advertisement_type is AdvertisementType.SERVICE
    assert entry.families == (Family.IPV4,)
    assert entry.service is not None
    assert [it.value for it in entry.service.addresses] == ["ClusterIP", "LoadBalancerIP"]
    assert entry.selector is not None
    assert entry.selector.matches({"bgp": "blue", "x": ""})
    assert not entry.selector.matches({"bgp": "blue"})
    aggregated = {**thing, "service": {**options, "aggregationLengthIPv4": 24}, "selector": {}}
    (refused,) = on_node(objects(adverts=(edited(ADVERT, advertisements=[aggregated]),))).refused
    assert "aggregationLength is not supported" in str(refused)
