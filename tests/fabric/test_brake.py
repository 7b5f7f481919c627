"""The export brake on a real fabric: what must never be announced is refused, named, and not on the wire (item 4)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fabric.bgp_wire import BgpType
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.observe import BgpCapture
from tests.fabric.topology import CABLE, TwoTorFabric

pytestmark = pytest.mark.needs("bird")

GOOD = "188.188.0.0/24"


@pytest.mark.parametrize(
    ("refused", "export", "reason"),
    [
        pytest.param("0.0.0.0/0", {}, "a default route is never announced", id="default route"),
        pytest.param("::/0", {}, "a default route is never announced", id="v6 default route"),
        pytest.param("10.0.0.0/24", {"allow": ["188.188.0.0/16"]}, "outside export.allow", id="outside"),
        pytest.param("188.0.0.0/8", {"allow": ["188.188.0.0/16"]}, "outside export.allow", id="wider than allowed"),
        pytest.param("188.188.1.0/24", {"maxPrefixes": 1}, "export.maxPrefixes is 1", id="too many"),
        pytest.param("11.11.0.0/16", {}, "it covers the address of peer tor-a", id="covers a peer"),
    ],
)
def test_the_brake_refuses_by_name(fabric: TwoTorFabric, refused: str, export: dict[str, Any], reason: str) -> None:
    """The good prefix goes out, the other one never; `routes`, `status` and a metric say why."""
    place = fabric.nodes[0]
    node = BgpdNode.at(place, two_tor_bgp(fabric) | {"export": export}, GOOD, refused)
    with BgpCapture(place.namespace, CABLE) as capture:
        node.start()
        for tor in fabric.tors:
            tor.speaker.wait_route(GOOD)
        node.wait_status("no End-of-RIB", lambda it: all(row["endOfRIB"] for row in it["peers"]))
    for row in node.ask("routes"):
        assert (row["announced"], row["why"]) == ((True, "") if row["prefix"] == GOOD else (False, reason))
    assert reason in node.wait_problem(f"{refused} to tor-a")
    assert node.try_bgpd("status").returncode == 4
    node.wait_status("the metric", lambda it: node.metric('bgpd_bgp_routes_refused{peer="tor-a"}') == 1)
    for tor in fabric.tors:
        assert set(tor.speaker.routes(place.address)) == {GOOD}
    announced = [it for it in capture.messages(BgpType.UPDATE, src=place.address) if not it.end_of_rib]
    assert len(announced) == 2
    assert all(it.body.endswith(bytes([24, 188, 188, 0])) for it in announced)


def test_a_tightened_brake_withdraws(fabric: TwoTorFabric) -> None:
    """A reload that no longer allows a prefix which is announced takes it back, and says why."""
    place = fabric.nodes[0]
    node = BgpdNode.announcing(fabric)
    node.config["bgp"]["export"] = {"allow": ["fd00:188:188::/48"]}
    node.write_config()
    node.bgpd("reload")
    for tor in fabric.tors:
        tor.speaker.wait_no_route(place.pod_cidrs[0])
        assert tor.speaker.route(place.pod_cidrs[1]) is not None
    node.wait_problem(f"{place.pod_cidrs[0]} to tor-b")
