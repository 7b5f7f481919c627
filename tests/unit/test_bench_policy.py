"""What the benchmark of policy sets up: objects that mean what it says of them, contenders that do the same job."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TypeVar

import pytest

from bgpd.kube.networkpolicy import NETWORK_POLICY
from bgpd.kube.parse import NAMESPACE, POD, Kind
from bgpd.model.policy import Protocol, Snapshot
from bgpd.policy.evaluate import Flow, evaluate
from tests.benchmarks.masq_stage import FAR
from tests.benchmarks.policy_cluster import NAMESPACES, NODE_PODS, PODS, POLICIES, PORT, Tenant, stored
from tests.benchmarks.policy_contenders import ipset_lines, iptables_chains, nftables_text, tenant
from tests.benchmarks.policy_stage import node_addresses, whole_cluster
from tests.fabric.policy_site import Object

T = TypeVar("T")
NODE = "worker1"
FEW = Tenant(NODE, ("10.244.1.10", "10.244.1.11"), 3, peers_each=2)


def models(kind: Kind[T], objects: list[Object]) -> Iterator[T]:
    """Those of this kind."""
    return (kind.to_model(kind.convert(each)) for each in objects if each["kind"] == kind.name)


@pytest.fixture(scope="module")
def cluster() -> list[Object]:
    return whole_cluster(NODE)


def test_the_cluster_is_as_large_as_is_said(cluster: list[Object]) -> None:
    assert Counter(each["kind"] for each in cluster) == {
        "Pod": PODS, "Namespace": NAMESPACES, "NetworkPolicy": POLICIES,
    }  # fmt: skip
    assert len(stored(cluster)) == len(cluster), "two objects have one key"
    pods = [each for each in cluster if each["kind"] == "Pod"]
    assert 2_500 < len(json.dumps(pods[0])) < 4_000
    addresses = {each["status"]["podIP"] for each in pods}
    assert len(addresses) == PODS


def test_the_node_has_the_pods_that_a_kubelet_takes_and_a_policy_for_each(cluster: list[Object]) -> None:
    here = [pod for pod in models(POD, cluster) if pod.node == NODE]
    policies = list(models(NETWORK_POLICY, cluster))
    assert [str(address) for pod in here for address in pod.ips] == node_addresses()
    assert len(here) == NODE_PODS
    assert not any(policy.faults for policy in policies)
    assert {pod.namespace for pod in here} <= {policy.namespace for policy in policies if policy.ingress is not None}


def test_a_tenant_reaches_its_peers_and_nobody_else() -> None:
    objects = list(FEW.objects())
    pods = {pod.key: pod for pod in models(POD, objects)}
    namespaces = {each.name: each for each in models(NAMESPACE, objects)}
    policies = {each.key: each for each in models(NETWORK_POLICY, objects)}
    local = {key: () for key, pod in pods.items() if pod.node == NODE}
    snapshot = Snapshot(pods, namespaces, policies, dict(local))
    allowed = FEW.allowed()
    peers = [next(allowed) for _ in range(6)]
    assert len(set(peers)) == 6
    for pod in FEW.addresses:
        client = ip_address(pod)
        for peer in peers:
            assert evaluate(snapshot, Flow(client, peer, Protocol.TCP, PORT)).allowed
            assert not evaluate(snapshot, Flow(client, peer, Protocol.TCP, PORT + 1)).allowed
        assert not evaluate(snapshot, Flow(client, FAR[1], Protocol.TCP, PORT)).allowed


def test_tenants_of_one_cluster_share_no_peer() -> None:
    found = [address for count in (10, 1_000) for number in range(count) for address in tenant(count).peers(number)]
    assert len(set(found)) == len(found) == 10_100


def test_the_chains_of_iptables_are_whole() -> None:
    """Every chain that is jumped to is there, every set that is asked for as well, and each of both is used."""
    text = iptables_chains(FEW)
    made = set(re.findall(r"^:(\S+)", text, re.MULTILINE))
    jumps = set(re.findall(r"-j (KUBE-\S+)", text))
    assert made == jumps
    asked = set(re.findall(r"--match-set (\S+)", text))
    assert asked == set(re.findall(r"^create (\S+)", ipset_lines(FEW), re.MULTILINE))
    for number in range(FEW.policies):
        members = set(re.findall(rf"^add KUBE-DST-{number} (\S+)", ipset_lines(FEW), re.MULTILINE))
        assert members == set(FEW.peers(number))


def test_every_pod_goes_through_every_policy_in_both() -> None:
    pairs = len(FEW.addresses) * FEW.policies
    assert len(re.findall(r"-s \S+ -j KUBE-NWPLCY-\d", iptables_chains(FEW))) == pairs
    assert len(re.findall(r"ip saddr \S+ jump policy\d", nftables_text(FEW))) == pairs
