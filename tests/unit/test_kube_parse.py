"""What a Node object means, field by field, and how an object that is none is refused."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from bgpd.kube.parse import NODE, Kind, Malformed, RawObject
from bgpd.model.fault import dotted
from bgpd.model.node import Node


def node(spec: Any = None, status: Any = None, **metadata: Any) -> Node:
    content = {"metadata": {"name": "worker1", **metadata}, "spec": spec, "status": status}
    from_value = NODE.to_model(NODE.convert(content))
    assert NODE.to_model(NODE.decode(json.dumps(content).encode())) == from_value
    return from_value


def prefixes(*texts: str) -> tuple[object, ...]:
    return tuple(ip_network(text) for text in texts)


A, B, C6 = "10.1.2.0/24", "10.1.3.0/24", "fd00:1::/64"

CIDRS = [
    ("one", {"podCIDRs": [A]}, (A,), []),
    ("both as the API server has them", {"podCIDR": A, "podCIDRs": [A]}, (A,), []),
    ("dual stack keeps its order", {"podCIDRs": [C6, A]}, (C6, A), []),
    ("before dual stack", {"podCIDR": A}, (A,), []),
    ("empty list", {"podCIDR": A, "podCIDRs": []}, (A,), []),
    ("null list", {"podCIDR": A, "podCIDRs": None}, (A,), []),
    ("list wins", {"podCIDR": B, "podCIDRs": [A]}, (A,), [": spec.podCIDR: '10.1.3.0/24' is not among"]),
    ("none", {}, (), [" has no spec.podCIDRs; is the controller manager running with --allocate-node-cidrs?"]),
    ("empty text", {"podCIDR": ""}, (), [" has no spec.podCIDRs"]),
    ("no spec", None, (), [" has no spec.podCIDRs"]),
    (
        "host bits name the masked one",
        {"podCIDRs": ["10.1.2.3/24", C6]},
        (C6,),
        [": spec.podCIDRs[0]: '10.1.2.3/24' has host bits set; did you mean 10.1.2.0/24?"],
    ),
    ("no length", {"podCIDRs": ["10.1.2.0"]}, (), [": spec.podCIDRs[0]: '10.1.2.0' has no length"]),
    ("rubbish", {"podCIDRs": [A, "x/y"]}, (A,), [": spec.podCIDRs[1]: 'x/y' is not a CIDR"]),
    ("rubbish of old", {"podCIDR": "x/y"}, (), [": spec.podCIDR: 'x/y' is not a CIDR"]),
    ("twice", {"podCIDRs": [A, A]}, (A,), [": spec.podCIDRs[1]: 10.1.2.0/24 is there twice"]),
    ("two of a family", {"podCIDRs": [A, B]}, (A, B), [": spec.podCIDRs[1]: 10.1.3.0/24 is a second ipv4"]),
    (
        "three",
        {"podCIDRs": [A, C6, "fd00:2::/64"]},
        (A, C6, "fd00:2::/64"),
        [": spec.podCIDRs[2]: fd00:2::/64 is a second ipv6 CIDR where Kubernetes allows one; it is used"],
    ),
]


@pytest.mark.parametrize(("spec", "kept", "problems"), [row[1:] for row in CIDRS], ids=[row[0] for row in CIDRS])
def test_pod_cidrs(spec: Any, kept: tuple[str, ...], problems: list[str]) -> None:
    """Every valid pod CIDR counts, in order; each other one is a problem that names field and remedy."""
    found = node(spec)
    assert found.pod_cidrs == prefixes(*kept)
    assert len(found.problems) == len(problems)
    for problem, begin in zip(found.problems, problems, strict=True):
        assert problem.startswith(f"node worker1{begin}")


def test_internal_and_external_ips_are_apart() -> None:
    """Host names are left out; the order stays and repetitions go."""
    addresses = [
        {"type": "Hostname", "address": "worker1"},
        {"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "InternalIP", "address": "2001:db8::1"},
        {"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "ExternalIP", "address": "198.51.100.1"},
    ]
    found = node({"podCIDR": A}, {"addresses": addresses})
    assert found.internal_ips == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    assert (found.external_ips, found.problems) == ((ip_address("198.51.100.1"),), ())


def test_bad_internal_ip_is_a_problem() -> None:
    """An InternalIP that is no address is named; the others stay."""
    addresses = [{"type": "InternalIP", "address": text} for text in ("10.0.0.1/8", "192.0.2.1")]
    found = node({"podCIDR": A}, {"addresses": addresses})
    assert found.internal_ips == (ip_address("192.0.2.1"),)
    assert found.problems[0].startswith("node worker1: status.addresses[0].address: '10.0.0.1/8' is not an IP")


def test_fields_nobody_reads_may_be_anything() -> None:
    """A field of a later Kubernetes, or one that is not ours, does not harm."""
    found = node({"podCIDR": A, "taints": 5}, {"conditions": "x"}, annotations=7, labels=None, generation="?")
    assert found == Node("worker1", pod_cidrs=(ip_network(A),))


MALFORMED = [
    ("list as text", {"metadata": {"name": "a"}, "spec": {"podCIDRs": A}}, "a", "spec.podCIDRs", "got a string"),
    ("number", {"metadata": {"name": "a"}, "spec": {"podCIDRs": [A, 5]}}, "a", "spec.podCIDRs[1]", "a number"),
    ("label", {"metadata": {"name": "a", "labels": {"rack": 7}}}, "a", "metadata.labels", "expected a string"),
    ("no name", {"metadata": {}}, None, "metadata", "missing required field"),
    ("name is a number", {"metadata": {"name": 5}}, None, "metadata.name", "expected a string, got a number"),
    ("no metadata", {"spec": {}}, None, "", "missing required field"),
    ("text", "node", None, "", "expected a mapping, got a string"),
    (
        "address without type",
        {"metadata": {"name": "a"}, "status": {"addresses": [{}]}},
        "a",
        "status.addresses[0]",
        "",
    ),
]


@pytest.mark.parametrize(
    ("content", "key", "path", "problem"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED]
)
def test_malformed(content: Any, key: str | None, path: str, problem: str) -> None:
    """An object of the wrong shape is refused with its name, if it has one, the field, and plain words."""
    with pytest.raises(Malformed) as from_value:
        NODE.convert(content)
    with pytest.raises(Malformed) as from_bytes:
        NODE.decode(json.dumps(content).encode())
    for refused in (from_value.value, from_bytes.value):
        assert (refused.key, dotted(refused.path)) == (key, path)
        assert problem in refused.problem


@pytest.mark.parametrize("data", [b"", b"{", b"nonsense", b'{"metadata": {"name": "\xff"}}'])
def test_bytes_that_are_no_json(data: bytes) -> None:
    """Bytes that are no JSON are malformed, never another error."""
    with pytest.raises(Malformed, match="is not JSON"):
        NODE.decode(data)


def test_kind_knows_its_place_in_the_api() -> None:
    """Core kinds live under /api, the others under /apis; keys carry the namespace where there is one."""
    claim = Kind("Widget", "example.test/v1", "widgets", namespaced=True, raw=RawObject, to_model=lambda raw: raw)
    assert (NODE.path(), NODE.group) == ("/api/v1/nodes", "")
    assert (claim.path(), claim.group) == ("/apis/example.test/v1/widgets", "example.test")
    assert claim.path("b") == "/apis/example.test/v1/namespaces/b/widgets"
    assert NODE.key(NODE.convert({"metadata": {"name": "a"}})) == "a"
    assert claim.key(claim.convert({"metadata": {"name": "a", "namespace": "b"}})) == "b/a"
    assert claim.key(claim.convert({"metadata": {"name": "a"}})) == "default/a"
