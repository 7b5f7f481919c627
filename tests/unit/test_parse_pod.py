"""What of a Pod and a Namespace counts, and that the rest may be anything."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from bgpd.kube.parse import NAMESPACE, POD
from bgpd.model.pod import ContainerPort, Namespace, Pod
from bgpd.model.policy import Protocol


def pod(spec: Any = None, status: Any = None, **metadata: Any) -> Pod:
    content = {"metadata": {"name": "p", "namespace": "n", **metadata}, "spec": spec, "status": status}
    found = POD.to_model(POD.convert(content))
    assert POD.to_model(POD.decode(json.dumps(content).encode())) == found
    return found


def test_a_pod_that_the_scheduler_has_not_seen() -> None:
    """Nothing is known of it but its name."""
    assert pod() == Pod("n", "p")


@pytest.mark.parametrize(("text", "said"), [("true", True), ("false", False), (None, None)])
def test_what_is_said_of_a_host_route(text: str | None, said: bool | None) -> None:
    """Other annotations are nobody's business, however long."""
    annotations = {"k8s.v1.cni.cncf.io/network-status": "[" * 9000} | ({"bgpd.io/host-route": text} if text else {})
    found = pod(annotations=annotations)
    assert (found.host_route, found.problems) == (said, ())


def test_a_host_route_that_is_neither_asked_for_nor_refused() -> None:
    """It counts as not said, and the pod names it."""
    found = pod(annotations={"bgpd.io/host-route": "yes"})
    assert found.host_route is None
    (problem,) = found.problems
    assert problem == """pod n/p: metadata.annotations['bgpd.io/host-route']: found 'yes'; give "true" or "false\""""


def test_a_running_pod() -> None:
    """Both families, in order; ports that have a name, those of sidecars too."""
    http = {"name": "http", "containerPort": 80}
    dns = {"name": "dns", "containerPort": 53, "protocol": "UDP"}
    once = {"ports": [{"name": "setup", "containerPort": 1}]}
    sidecar = {"ports": [{"name": "m", "containerPort": 9}], "restartPolicy": "Always"}
    found = pod(
        {
            "nodeName": "w1",
            "containers": [{"ports": [http, {"containerPort": 81}]}, {"ports": [dns]}, {}],
            "initContainers": [once, sidecar],
        },
        {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        labels={"a": "b"},
        uid="u",
        creationTimestamp="2026-01-01T00:00:00Z",
    )
    assert found == Pod(
        namespace="n",
        name="p",
        uid="u",
        labels={"a": "b"},
        ips=(ip_address("10.0.0.1"), ip_address("fd00::1")),
        node="w1",
        ports=(
            ContainerPort("http", Protocol.TCP, 80),
            ContainerPort("dns", Protocol.UDP, 53),
            ContainerPort("m", Protocol.TCP, 9),
        ),
        created="2026-01-01T00:00:00Z",
    )


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Pending", False), ("Running", False), ("Succeeded", True), ("Failed", True), (None, False)],
)
def test_a_finished_pod_has_given_its_addresses_back(phase: str | None, finished: bool) -> None:
    """One that is being ended has not, until it is finished."""
    found = pod(
        {"hostNetwork": True}, {"phase": phase, "podIP": "10.0.0.1"}, deletionTimestamp="2026-01-01T00:00:00Z"
    )
    assert (found.finished, found.terminating, found.host_network) == (finished, True, True)
    assert found.ips == (ip_address("10.0.0.1"),)


def test_an_address_that_is_none_is_a_problem() -> None:
    """The other one stays."""
    found = pod(status={"podIPs": [{"ip": "10.0.0.256"}, {"ip": "fd00::1"}]})
    assert found.ips == (ip_address("fd00::1"),)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("pod n/p: status.podIPs[0].ip: '10.0.0.256' is not an IP address")


def test_an_address_that_is_there_twice_counts_once() -> None:
    """As in a file that somebody wrote by hand."""
    assert pod(status={"podIPs": [{"ip": "fd00::1"}, {"ip": "FD00:0::1"}]}).ips == (ip_address("fd00::1"),)


def test_a_namespace_has_its_name_as_a_label() -> None:
    """As the API server has it, whatever a file says."""
    content = {"metadata": {"name": "n", "labels": {"a": "b", "kubernetes.io/metadata.name": "other"}}}
    wanted = Namespace("n", {"a": "b", "kubernetes.io/metadata.name": "n"})
    assert NAMESPACE.to_model(NAMESPACE.convert(content)) == wanted
    assert NAMESPACE.key(NAMESPACE.convert(content)) == "n"
