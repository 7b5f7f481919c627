"""NetworkPolicy of pods on ipvlans, with real packets: pod to pod at the receiver, the outside at the parent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bgpd.datapath.layout import PolicyVerdict
from bgpd.model.endpoint import IpvlanMode
from tests.fabric import parent_node
from tests.fabric.ipvlan_node import IpvlanNode, ipvlan_node
from tests.fabric.parent_node import PLANS, Plan

TCP = 6
SILENCE_S = 0.5
NOBODY = 1  # a set without rules
EVERYTHING, NOTHING = (True, True, True), (False, False, False)
both = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"v{plan.version}")


@pytest.fixture(scope="module", params=list(IpvlanMode), ids=lambda mode: mode.name.lower())
def place(request: pytest.FixtureRequest) -> Iterator[IpvlanNode]:
    with ipvlan_node(request.param) as made:
        yield made


@pytest.fixture
def node(place: IpvlanNode) -> Iterator[IpvlanNode]:
    yield place
    place.open()


def reaches(node: IpvlanNode, client: str, server: str, plan: Plan) -> tuple[bool, bool, bool]:
    """By TCP, UDP and ping."""
    return parent_node.reaches(node, client, server, plan, SILENCE_S)


def datagram(node: IpvlanNode, client: str, server: str, plan: Plan) -> bool:
    return parent_node.datagram(node, client, server, plan, SILENCE_S)


@both
def test_what_is_not_isolated_reaches_everything(node: IpvlanNode, plan: Plan) -> None:
    pairs = [("a", "b"), ("a", "outside"), ("outside", "b"), ("node", "outside"), ("outside", "node")]
    found = {pair: reaches(node, *pair, plan) for pair in pairs}
    assert found == dict.fromkeys(found, EVERYTHING)


@both
def test_an_isolated_pod_is_reached_by_nobody_and_reaches_everybody(node: IpvlanNode, plan: Plan) -> None:
    """Isolated for ingress: replies to what it asks come in all the same."""
    node.isolate("b", ingress=NOBODY)
    for other in ("a", "outside"):
        assert reaches(node, other, "b", plan) == NOTHING
        assert reaches(node, "b", other, plan) == EVERYTHING


@both
def test_a_pod_isolated_for_egress_reaches_nobody_and_is_reached(node: IpvlanNode, plan: Plan) -> None:
    node.isolate("b", egress=NOBODY)
    before = node.verdicts().get(PolicyVerdict.DENIED_EGRESS, 0)
    for other in ("a", "outside"):
        assert reaches(node, "b", other, plan) == NOTHING
        assert reaches(node, other, "b", plan) == EVERYTHING
    assert node.verdicts()[PolicyVerdict.DENIED_EGRESS] > before
