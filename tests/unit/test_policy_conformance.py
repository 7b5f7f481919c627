"""Every case of `tests.cyclonus` through the reference and the compiled maps."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from bgpd.kube.networkpolicy import NETWORK_POLICY
from bgpd.kube.parse import NAMESPACE
from bgpd.model.pod import ContainerPort, Namespace, Pod
from bgpd.model.policy import Direction, NetworkPolicy, Protocol, Snapshot
from bgpd.policy.compile import Compiler
from bgpd.policy.evaluate import Flow, evaluate
from bgpd.policy.transition import changes
from tests import cyclonus
from tests.cyclonus import ALLOWED
from tests.unit.policy_reader import Maps, look_up

PORTS = tuple(ContainerPort(name, Protocol[protocol], port) for name, protocol, port in cyclonus.CONTAINER_PORTS)


def snapshot(step: dict[str, Any]) -> Snapshot:
    """The cluster of a step, with every pod on this node."""
    pods = {
        f"{pod['Namespace']}/{pod['Name']}": Pod(
            namespace=pod["Namespace"],
            name=pod["Name"],
            labels=pod["Labels"],
            ips=(ip_address(pod["IP"]),),
            ports=PORTS,
        )
        for pod in step["pods"]
    }
    policies = [policy(content) for content in step["policies"]]
    return Snapshot(
        pods=pods,
        namespaces={name: namespace(name, labels) for name, labels in step["namespaces"].items()},
        policies={each.key: each for each in policies},
        local=dict.fromkeys(pods, ()),
    )


def policy(content: dict[str, Any]) -> NetworkPolicy:
    read = NETWORK_POLICY.to_model(NETWORK_POLICY.convert(content))
    assert read.faults == ()
    return read


def namespace(name: str, labels: dict[str, str]) -> Namespace:
    return NAMESPACE.to_model(NAMESPACE.convert({"metadata": {"name": name, "labels": labels}}))


@cyclonus.needed
def test_every_row_of_every_case() -> None:
    """Both directions and both together, from the reference and from maps that went from step to step."""
    assert sum(check(case) for case in cyclonus.cases()) == cyclonus.ROWS


def check(case: dict[str, Any]) -> int:
    """The number of rows, a pod to itself left out."""
    compiler, maps, contents = Compiler(), Maps(), None
    rows = 0
    for number, step in enumerate(case["steps"]):
        now = snapshot(step)
        for stage in compiler.advance(now):
            for write in changes(contents, stage) if contents else changes(type(stage)(), stage):
                maps.apply(write)
            contents = stage
        for row in cyclonus.rows(step):
            rows += 1
            flow = Flow(address(now, row.client), address(now, row.server), Protocol[row.protocol], row.port)
            wanted = (row.egress == ALLOWED, row.ingress == ALLOWED, row.combined == ALLOWED)
            told = evaluate(now, flow)
            where = f"case {case['i']} ({case['desc']}), step {number}: {row}"
            assert (told.egress.allowed, told.ingress.allowed, told.allowed) == wanted, where
            found = [look_up(maps, flow, direction).allowed for direction in (Direction.EGRESS, Direction.INGRESS)]
            assert (*found, all(found)) == wanted, where
    return rows


def address(now: Snapshot, pod: str) -> Any:
    return now.pods[pod].ips[0]
