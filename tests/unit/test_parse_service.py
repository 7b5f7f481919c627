"""What Services and EndpointSlices mean, field by field."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from bgpd.kube.service import ENDPOINT_SLICE, SERVICE
from bgpd.model.fault import dotted
from bgpd.model.policy import Protocol
from bgpd.model.service import EndpointSlice, Service, ServiceEndpoint, ServicePort


def service(spec: Any = None, ingress: Any = None) -> Service:
    content = {"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}
    content["status"] = {"loadBalancer": {"ingress": ingress}}
    found = SERVICE.to_model(SERVICE.convert(content))
    assert SERVICE.to_model(SERVICE.decode(json.dumps(content).encode())) == found
    return found


def endpoint_slice(*endpoints: Any, **content: Any) -> EndpointSlice:
    metadata = {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
    content = {"metadata": metadata, "addressType": "IPv4", "endpoints": list(endpoints), **content}
    found = ENDPOINT_SLICE.to_model(ENDPOINT_SLICE.convert(content))
    assert ENDPOINT_SLICE.to_model(ENDPOINT_SLICE.decode(json.dumps(content).encode())) == found
    return found


def addresses(*texts: str) -> tuple[object, ...]:
    return tuple(ip_address(text) for text in texts)


BALANCER = {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:96::7"]}


def test_addresses_of_each_kind() -> None:
    """Cluster IPs of both families, external IPs, and what the load balancer assigned, each where it belongs."""
    found = service({**BALANCER, "externalIPs": ["192.0.2.7"]}, [{"ip": "198.51.100.7"}, {"ip": "2001:db8::7"}])
    assert found.cluster_ips == addresses("10.96.0.7", "fd00:96::7")
    assert found.external_ips == addresses("192.0.2.7")
    assert found.load_balancer_ips == addresses("198.51.100.7", "2001:db8::7")
    assert (found.key, found.proxied, found.faults) == ("shop/web", (), ())


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None", "clusterIPs": ["None"], "externalIPs": ["192.0.2.7"]},
        {"clusterIP": "None", "externalIPs": ["192.0.2.7"]},
        {"type": "ExternalName", "externalName": "a.example", "externalIPs": ["192.0.2.7"]},
        None,
    ],
    ids=["headless", "headless of old", "ExternalName", "no spec"],
)
def test_services_that_no_node_serves_have_no_address(spec: Any) -> None:
    """kube-proxy leaves these alone altogether, external IPs included."""
    found = service(spec)
    assert (found.cluster_ips, found.external_ips, found.load_balancer_ips) == ((), (), ())


def test_a_service_before_dual_stack_has_its_one_cluster_ip() -> None:
    """`clusterIP` counts where there is no list."""
    assert service({"clusterIP": "10.96.0.7"}).cluster_ips == addresses("10.96.0.7")


def test_ingress_of_a_service_that_is_no_load_balancer_any_more() -> None:
    """What was assigned earlier is not an address of the Service any more."""
    assert service({"type": "ClusterIP", "clusterIP": "10.96.0.7"}, [{"ip": "198.51.100.7"}]).load_balancer_ips == ()


def test_ingress_that_nodes_do_not_answer() -> None:
    """A host name is no address; one in mode Proxy is the load balancer's own."""
    ingress = [{"hostname": "a.example"}, {"ip": "198.51.100.7", "ipMode": "Proxy"}]
    found = service(BALANCER, [*ingress, {"ip": "198.51.100.8", "ipMode": "VIP"}])
    assert found.load_balancer_ips == addresses("198.51.100.8")
    assert found.proxied == addresses("198.51.100.7")


@pytest.mark.parametrize(
    ("spec", "external", "internal"),
    [
        ({}, False, False),
        ({"externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster"}, False, False),
        ({"externalTrafficPolicy": "Local"}, True, False),
        ({"internalTrafficPolicy": "Local"}, False, True),
    ],
)
def test_traffic_policies(spec: Any, external: bool, internal: bool) -> None:
    """Both are Cluster unless said otherwise."""
    found = service(BALANCER | spec)
    assert (found.external_local, found.internal_local) == (external, internal)


def test_addresses_that_are_none_are_faults() -> None:
    """Each is named with its place; the others count."""
    spec = {**BALANCER, "clusterIPs": ["10.96.0.7", "x"], "externalIPs": ["192.0.2.7/32", "192.0.2.8"]}
    found = service(spec, [{"ip": "198.51.100"}])
    assert (found.cluster_ips, found.external_ips) == (addresses("10.96.0.7"), addresses("192.0.2.8"))
    places = ["spec.clusterIPs[1]", "spec.externalIPs[0]", "status.loadBalancer.ingress[0].ip"]
    assert [dotted(fault.path) for fault in found.faults] == places
    assert list(SERVICE.faults(found) if SERVICE.faults else ()) == list(found.faults)


def test_ports() -> None:
    """TCP by default; a protocol that is none is a fault, and the other ports count."""
    ports = [{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP"}, {"port": 7, "protocol": "ICMP"}]
    found = service({**BALANCER, "ports": ports})
    assert found.ports == (ServicePort("http", Protocol.TCP, 80), ServicePort("", Protocol.UDP, 53))
    assert [dotted(fault.path) for fault in found.faults] == ["spec.ports[2].protocol"]


A = ip_address("10.1.2.3")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, ServiceEndpoint(A, "w1", True, True, False)),
        ({}, ServiceEndpoint(A, "w1", True, True, False)),
        ({"ready": False}, ServiceEndpoint(A, "w1", False, False, False)),
        ({"ready": True}, ServiceEndpoint(A, "w1", True, True, False)),
        ({"ready": False, "serving": True, "terminating": True}, ServiceEndpoint(A, "w1", False, True, True)),
        ({"ready": False, "serving": False, "terminating": True}, ServiceEndpoint(A, "w1", False, False, True)),
    ],
)
def test_conditions(conditions: Any, expected: ServiceEndpoint) -> None:
    """What is absent: ready, serving as ready is, not terminating."""
    given = {"addresses": ["10.1.2.3"], "nodeName": "w1", "conditions": conditions}
    assert endpoint_slice(given).endpoints == (expected,)


@pytest.mark.parametrize(
    ("reference", "is_pod"), [({"kind": "Pod", "name": "web-0"}, True), ({"kind": "Node"}, False), (None, False)]
)
def test_an_endpoint_may_be_a_pod(reference: Any, is_pod: bool) -> None:
    """Its slice says so."""
    (found,) = endpoint_slice({"addresses": ["10.1.2.3"], "nodeName": "w1", "targetRef": reference}).endpoints
    assert found.is_pod is is_pod


def test_a_slice_belongs_to_the_service_of_its_label() -> None:
    """In its own namespace; without the label it belongs to none."""
    assert endpoint_slice().service == "shop/web"
    assert endpoint_slice(metadata={"name": "web-x", "namespace": "shop"}).service == ""


def test_endpoints_that_do_not_count() -> None:
    """Host names, and all addresses of an endpoint but its first; one that is none is a fault."""
    assert endpoint_slice({"addresses": ["a.example"]}, addressType="FQDN").endpoints == ()
    assert [each.address for each in endpoint_slice({"addresses": ["10.1.2.3", "10.1.2.4"]}).endpoints] == [A]
    found = endpoint_slice({"addresses": ["10.1.2"]}, {"addresses": ["10.1.2.3"]}, {"addresses": None})
    assert [each.address for each in found.endpoints] == [A]
    assert [dotted(fault.path) for fault in found.faults] == ["endpoints[0].addresses[0]"]


def test_ports_of_a_slice() -> None:
    """By name and number; one without a number means all ports and is left out."""
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "all"}]
    assert endpoint_slice(ports=ports).ports == (ServicePort("http", Protocol.TCP, 8080),)


@pytest.mark.parametrize("port", [0, -1, 65536, 10**20])
def test_a_port_that_is_none(port: int) -> None:
    """The API server does not look at those of slices, and whoever connected to one would fail."""
    found = endpoint_slice(ports=[{"name": "http", "port": port}, {"name": "https", "port": 65535}])
    assert found.ports == (ServicePort("https", Protocol.TCP, 65535),)
    assert [dotted(fault.path) for fault in found.faults] == ["ports[0].port"]
