"""Node objects that are odd or wrong, as the manifest source and both ToRs see them.

What can be used of an object is used, what cannot is named by file, line and key, and nothing that was announced
is lost to a mistake.
"""

from __future__ import annotations

import pytest

from bgpd.model.brief import LINES
from tests.fabric.node import BgpdNode, node_manifest
from tests.fabric.process import poll
from tests.fabric.test_lifecycle import never_without
from tests.fabric.topology import NodePlace, TwoTorFabric

pytestmark = pytest.mark.needs("bird")


def manifest(place: NodePlace, *pod_cidrs: str) -> str:
    return node_manifest(place.name, list(pod_cidrs), place.address, place.address6)


def test_two_manifests_that_define_one_node(fabric: TwoTorFabric) -> None:
    """The first file by name counts, the other is named with its line; removing either settles it."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    with never_without(fabric, place.pod_cidrs):
        other = node.manifests / "other.yaml"
        other.write_text(manifest(place, "188.188.9.0/24"))
        told = node.wait_problem("is defined already at")
        assert f"{other}:" in told
        assert f"{node.manifests / 'node.yaml'}:" in told
        assert node.try_bgpd("status").returncode == 4
        assert "is defined already at" in node.try_bgpd("check").stderr
        other.unlink()
        node.wait_healthy()
    other.write_text(manifest(place, "188.188.9.0/24"))
    (node.manifests / "node.yaml").unlink()
    for tor in fabric.tors:
        tor.speaker.wait_route("188.188.9.0/24")
        tor.speaker.wait_no_route(place.pod_cidrs[0])


def test_a_node_without_pod_cidrs(fabric: TwoTorFabric) -> None:
    """Sessions come up, nothing is announced, status says who allocates; the first allocation goes out."""
    place = fabric.nodes[0]
    node = BgpdNode.announcing_nothing(fabric)
    (node.manifests / "node.yaml").write_text(manifest(place))
    node.start()
    for tor in fabric.tors:
        tor.speaker.wait_established(place.address)
    assert "--allocate-node-cidrs" in node.wait_problem("has no spec.podCIDRs")
    node.allocate(place, *place.pod_cidrs)
    for tor in fabric.tors:
        for prefix in place.pod_cidrs:
            tor.speaker.wait_route(prefix)
    node.wait_healthy()


def test_pod_cidrs_taken_away_are_kept_for_a_while(fabric: TwoTorFabric) -> None:
    """A Node that suddenly has none: suspicious, so the routes stay for 10 s, and for good when they are back."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.daemon is not None
    with never_without(fabric, place.pod_cidrs):
        node.allocate(place)
        node.daemon.wait_log("removals wait 10 s")
        node.allocate(place, *place.pod_cidrs)
        node.wait_healthy()


def test_an_invalid_pod_cidr_harms_only_itself(fabric: TwoTorFabric) -> None:
    """The valid one is announced, the other is named with its field and what may have been meant."""
    place = fabric.nodes[0]
    node = BgpdNode.announcing_nothing(fabric)
    (node.manifests / "node.yaml").write_text(manifest(place, "188.188.0.7/24", place.pod_cidrs[1]))
    node.start()
    for tor in fabric.tors:
        tor.speaker.wait_route(place.pod_cidrs[1])
        assert tor.speaker.route(place.pod_cidrs[0]) is None
    assert "did you mean 188.188.0.0/24?" in node.wait_problem("spec.podCIDRs[0]")
    assert node.try_bgpd("status").returncode == 4


def test_three_pod_cidrs_are_all_announced(fabric: TwoTorFabric) -> None:
    """More than Kubernetes gives is announced all the same, with a word about it."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    node.allocate(place, *place.pod_cidrs, "188.188.9.0/24")
    for tor in fabric.tors:
        for prefix in (*place.pod_cidrs, "188.188.9.0/24"):
            tor.speaker.wait_route(prefix)
    node.wait_problem("188.188.9.0/24 is a second ipv4 CIDR")


def test_very_many_pod_cidrs_do_not_bury_the_rest(fabric: TwoTorFabric) -> None:
    """The first problems of each sort are told and the others counted, in status, its screen and the log."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    assert node.daemon is not None
    node.allocate(place, *place.pod_cidrs, *(f"10.0.{index}.0/24" for index in range(100)))
    node.wait_problem("and 90 more")
    node.wait_problem("and 190 more")  # refused by the brake, for each of two ToRs
    assert len(node.status()["problems"]) == 2 * (LINES + 1)
    assert len(node.status()["podCIDRs"]) == 102
    assert "and 92 more" in node.try_bgpd("status").stdout
    assert len(node.ask("routes")) == 2 * 102
    node.daemon.wait_log('"and 90 more"')


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param("kind: Node\nmetadata: {name: [", id="half a file"),
        pytest.param("\x00\x01\x02", id="binary"),
        pytest.param("a: &a [x, x]\nb: *c\n", id="an unknown alias"),
    ],
)
def test_a_manifest_that_turns_unreadable_changes_nothing(fabric: TwoTorFabric, broken: str) -> None:
    """The last good content of the file stays in use, and status names file and line."""
    place, node = fabric.nodes[0], BgpdNode.announcing(fabric)
    file = node.manifests / "node.yaml"
    with never_without(fabric, place.pod_cidrs):
        file.write_text(broken)
        node.wait_problem(f"source: {file}")
        assert node.try_bgpd("status").returncode == 4
        faults = 'bgpd_source_faults{source="manifests"}'
        poll(lambda: node.metric(faults) == 1, 5, lambda: "the fault is not counted")
        node.allocate(place, *place.pod_cidrs)
        node.wait_healthy()
