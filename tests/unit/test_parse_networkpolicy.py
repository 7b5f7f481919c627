"""How NetworkPolicy objects are read: the API's defaults, every fault with its place, and nothing open by mistake."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest

from bgpd.kube.feed import Feed
from bgpd.kube.mirror import Listing, Mirror
from bgpd.kube.networkpolicy import NETWORK_POLICY
from bgpd.kube.objects import read_objects
from bgpd.model.fault import dotted
from bgpd.model.labels import Operator, Requirement, Selector
from bgpd.model.policy import IpBlock, NamedPort, NetworkPolicy, PodPeer, PolicyRule, PortRange, Protocol
from bgpd.runtime.store import Store

TCP, UDP, SCTP = Protocol
APP = Selector((Requirement("app", Operator.IN, ("web",)),))
EVERYBODY = PolicyRule(None, None)
NOTHING = PolicyRule((), ())


def policy(spec: Any) -> NetworkPolicy:
    content = {"metadata": {"name": "p", "namespace": "n"}, "spec": spec}
    found = NETWORK_POLICY.to_model(NETWORK_POLICY.convert(content))
    assert NETWORK_POLICY.to_model(NETWORK_POLICY.decode(json.dumps(content).encode())) == found
    return found


def ingress(rule: Any) -> PolicyRule:
    """The one ingress rule of a policy without faults."""
    found = policy({"ingress": [rule]})
    assert found.faults == ()
    assert found.ingress is not None
    return found.ingress[0]


TYPES: list[tuple[str, Any, bool, bool]] = [
    ("no spec", None, True, False),
    ("nothing", {}, True, False),
    ("rules in", {"ingress": [{}]}, True, False),
    ("rules out", {"egress": [{}]}, True, True),
    ("no rules out", {"egress": []}, True, False),
    ("null", {"policyTypes": None, "egress": None}, True, False),
    ("no types", {"policyTypes": [], "egress": [{}]}, True, True),
    ("only in", {"policyTypes": ["Ingress"], "egress": [{}]}, True, False),
    ("only out", {"policyTypes": ["Egress"], "ingress": [{}]}, False, True),
    ("both", {"policyTypes": ["Egress", "Ingress"]}, True, True),
]


@pytest.mark.parametrize(("spec", "in_", "out"), [row[1:] for row in TYPES], ids=[row[0] for row in TYPES])
def test_policy_types_default_as_in_the_api(spec: Any, in_: bool, out: bool) -> None:
    """Ingress always, Egress if there is an egress rule; what is written counts instead."""
    found = policy(spec)
    assert (found.ingress is not None, found.egress is not None, found.faults) == (in_, out, ())


PEERS: list[tuple[str, Any, Any]] = [
    ("absent", {}, None),
    ("empty", {"from": []}, None),
    ("null", {"from": None}, None),
    ("pods here", {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}, (PodPeer(APP),)),
    ("all pods here", {"from": [{"podSelector": {}}]}, (PodPeer(Selector()),)),
    ("null beside", {"from": [{"podSelector": {}, "namespaceSelector": None}]}, (PodPeer(Selector()),)),
    ("all pods anywhere", {"from": [{"namespaceSelector": {}}]}, (PodPeer(Selector(), Selector()),)),
    (
        "both",
        {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}]},
        (PodPeer(APP, Selector()),),
    ),
    (
        "block with host bits",
        {"from": [{"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.1.0.0/16"]}}]},
        (IpBlock(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),)),),
    ),
    ("v6", {"from": [{"ipBlock": {"cidr": "fd00::/8"}}]}, (IpBlock(ip_network("fd00::/8")),)),
]


@pytest.mark.parametrize(("rule", "peers"), [row[1:] for row in PEERS], ids=[row[0] for row in PEERS])
def test_peers(rule: Any, peers: Any) -> None:
    """An absent or empty list is everybody; an absent selector is not an empty one."""
    assert ingress(rule).peers == peers


PORTS: list[tuple[str, Any, Any]] = [
    ("absent", {}, None),
    ("empty", {"ports": []}, None),
    ("of a protocol", {"ports": [{"protocol": "UDP"}]}, (PortRange(UDP, 0, 65535),)),
    ("nothing given", {"ports": [{}]}, (PortRange(TCP, 0, 65535),)),
    ("number", {"ports": [{"port": 80}]}, (PortRange(TCP, 80, 80),)),
    ("range", {"ports": [{"protocol": "SCTP", "port": 80, "endPort": 90}]}, (PortRange(SCTP, 80, 90),)),
    ("range of one", {"ports": [{"port": 80, "endPort": 80}]}, (PortRange(TCP, 80, 80),)),
    ("name", {"ports": [{"port": "http-2"}]}, (NamedPort(TCP, "http-2"),)),
]


@pytest.mark.parametrize(("rule", "ports"), [row[1:] for row in PORTS], ids=[row[0] for row in PORTS])
def test_ports(rule: Any, ports: Any) -> None:
    """TCP where no protocol is given, every port where none is; without any, all protocols too."""
    assert ingress(rule).ports == ports


def peer(**fields: Any) -> Any:
    return {"ingress": [{"from": [{"podSelector": {}}, fields]}]}


def port(**fields: Any) -> Any:
    return {"ingress": [{"ports": [{"port": 80}, fields]}]}


FIRST_PEER = PolicyRule((PodPeer(Selector()),), None)
FIRST_PORT = PolicyRule(None, (PortRange(TCP, 80, 80),))
EXPRESSION = "spec.ingress[0].from[1].podSelector.matchExpressions[0]"

FAULTS: list[tuple[Any, str, str, PolicyRule]] = [
    (peer(), "spec.ingress[0].from[1]", "selects nobody", FIRST_PEER),
    (peer(ipBlock={"cidr": "10.0.0.0"}), "spec.ingress[0].from[1].ipBlock.cidr", "has no length", FIRST_PEER),
    (peer(ipBlock={"cidr": 7}), "spec.ingress[0].from[1].ipBlock.cidr", "must be a CIDR", FIRST_PEER),
    (peer(ipBlock={}), "spec.ingress[0].from[1].ipBlock.cidr", "must be a CIDR", FIRST_PEER),
    (peer(ipBlock={"cidr": "::ffff:10.0.0.0/104"}), "spec.ingress[0].from[1].ipBlock.cidr", "as IPv4", FIRST_PEER),
    (
        peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.0.0.0/8"]}),
        "spec.ingress[0].from[1].ipBlock.except[1]",
        "must be a part of 10.0.0.0/8",
        FIRST_PEER,
    ),
    (
        peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["x"]}),
        "spec.ingress[0].from[1].ipBlock.except[0]",
        "'x' has no length",
        FIRST_PEER,
    ),
    (peer(ipBlock={"cidr": "::/0"}, podSelector={}), "spec.ingress[0].from[1]", "two entries", FIRST_PEER),
    (peer(podSelectors={}), "spec.ingress[0].from[1].podSelectors", "no field that is known", FIRST_PEER),
    (
        peer(podSelector={"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}),
        f"{EXPRESSION}.operator",
        "must be In, NotIn, Exists, DoesNotExist, not 'in'",
        FIRST_PEER,
    ),
    (
        peer(podSelector={"matchExpressions": [{"key": "a", "operator": "In"}]}),
        f"{EXPRESSION}.values",
        "name at least one",
        FIRST_PEER,
    ),
    (
        peer(podSelector={"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}),
        f"{EXPRESSION}.values",
        "remove them",
        FIRST_PEER,
    ),
    (
        peer(podSelector={"matchExpressions": [{"key": "a b", "operator": "Exists"}]}),
        f"{EXPRESSION}.key",
        "is no label key",
        FIRST_PEER,
    ),
    (
        peer(namespaceSelector={"matchLabels": {"a": True}}),
        "spec.ingress[0].from[1].namespaceSelector.matchLabels.a",
        "write it in quotes",
        FIRST_PEER,
    ),
    (port(port=0), "spec.ingress[0].ports[1].port", "from 1 to 65535", FIRST_PORT),
    (port(port=True), "spec.ingress[0].ports[1].port", "from 1 to 65535", FIRST_PORT),
    (port(port="80"), "spec.ingress[0].ports[1].port", "without quotes", FIRST_PORT),
    (port(port="-x"), "spec.ingress[0].ports[1].port", "RFC 6335", FIRST_PORT),
    (port(port=90, endPort=80), "spec.ingress[0].ports[1].endPort", "80 is less than port, 90", FIRST_PORT),
    (port(port="http", endPort=80), "spec.ingress[0].ports[1].endPort", "'http' is a name", FIRST_PORT),
    (port(endPort=80), "spec.ingress[0].ports[1].endPort", "add 'port'", FIRST_PORT),
    (port(protocol="ICMP"), "spec.ingress[0].ports[1].protocol", "must be TCP, UDP, SCTP", FIRST_PORT),
    ({"ingress": [{"form": []}]}, "spec.ingress[0].form", "those are from, ports", NOTHING),
    ({"ingress": [{"from": {}}]}, "spec.ingress[0].from", "must be a list", PolicyRule((), None)),
    ({"ingress": [{"ports": "80"}]}, "spec.ingress[0].ports", "must be a list", PolicyRule(None, ())),
    ({"ingress": ["any"]}, "spec.ingress[0]", "must be a mapping", NOTHING),
]


@pytest.mark.parametrize(("spec", "path", "problem", "kept"), FAULTS, ids=[f"{row[1]} {row[2]}" for row in FAULTS])
def test_what_cannot_be_read_allows_nothing(spec: Any, path: str, problem: str, kept: PolicyRule) -> None:
    """The fault says where and what; the rest of the rule counts, and never becomes more than was written."""
    found = policy(spec)
    assert [dotted(fault.path) for fault in found.faults] == [path]
    assert problem in found.faults[0].problem
    assert found.ingress == (kept,)


def test_a_rule_that_cannot_be_read_keeps_its_place() -> None:
    """The rules after it are still known by their own index."""
    found = policy({"ingress": [{"form": []}, {}]})
    assert found.ingress == (NOTHING, EVERYBODY)


@pytest.mark.parametrize(
    "selector", [{"matchLabels": []}, {"matchLabel": {}}, [], {"matchExpressions": [{"key": "a", "operator": "Is"}]}]
)
def test_an_unreadable_pod_selector_closes_the_namespace(selector: Any) -> None:
    """Nobody knows whom it was to isolate, so all are; nor whom it was to let in where, so nobody is."""
    found = policy({"podSelector": selector, "ingress": [{}]})
    assert (found.pods, found.ingress, found.egress) == (Selector(), (), None)
    assert len(found.faults) == 1


@pytest.mark.parametrize("spec", [[], "x", {"ingres": []}, {"policyTypes": ["ingress"]}, {"policyTypes": "Ingress"}])
def test_a_policy_that_may_be_about_egress_isolates_both_ways(spec: Any) -> None:
    """A spec of the wrong shape, a field or a type that is misspelt."""
    found = policy(spec)
    assert (found.ingress, found.egress) == ((), ())
    assert found.faults


def test_all_faults_at_once() -> None:
    """Reading goes on behind a fault, in every list."""
    spec = {
        "podSelector": {"matchLabels": {"-": "x", "a": 1}},
        "ingress": [{"from": [{}], "ports": [{"port": 0}]}, {"to": []}],
        "egress": [{"to": [{"ipBlock": {"cidr": "x"}}]}],
        "policyTypes": ["In"],
    }
    assert sorted(dotted(fault.path) for fault in policy(spec).faults) == [
        "spec.egress[0].to[0].ipBlock.cidr",
        "spec.ingress[0].from[0]",
        "spec.ingress[0].ports[0].port",
        "spec.ingress[1].to",
        "spec.podSelector.matchLabels.-",
        "spec.podSelector.matchLabels.a",
        "spec.policyTypes[0]",
    ]


MANIFEST = b"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: good}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: bad}
spec:
  podSelector: {}
  ingress:
  - ports:
    - port: 90
      endPort: 80
    - port: 65536
"""


def test_a_file_is_told_where_its_faults_are() -> None:
    """File, line and column; the policy counts as far as it goes, and so does its neighbor."""
    feed = Feed(NETWORK_POLICY, Store({}))
    reading = read_objects(MANIFEST, "policies.yaml", (feed,))
    assert [found.key.key for found in reading.found] == ["default/good", "default/bad"]
    assert [(fault.line, fault.key) for fault in reading.faults] == [
        (14, "spec.ingress[0].ports[0].endPort"),
        (15, "spec.ingress[0].ports[1].port"),
    ]
    assert "NetworkPolicy default/bad: 80 is less than port, 90" in str(reading.faults[0])
    assert (reading.broken, reading.is_partial) == (frozenset(), False)


def test_faults_of_the_api_servers_objects_are_named_too() -> None:
    """The object is complete, for it has a value; its faults stand beside those of objects that have none."""
    item = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"ingress": [{"from": [{}]}]}}
    listing = Listing(NETWORK_POLICY)
    listing.add(json.dumps({"metadata": {"resourceVersion": "1"}, "items": [item]}).encode())
    mirror = Mirror(NETWORK_POLICY)
    mirror.adopt(listing)
    assert mirror.complete
    assert [str(fault) for fault in mirror.faults] == [
        "NetworkPolicy n/p: spec.ingress[0].from[0]: "
        "selects nobody; give it a podSelector, a namespaceSelector or an ipBlock"
    ]
