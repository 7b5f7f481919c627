"""Masquerade by a ConfigMap at a real API server, with the rights of config/rbac.yaml, in both readings of it.

The document is that of a cluster with an F5, its health checkers and two switches, as an operator made and edited it
for Cilium, and the list is what `cilium bpf ipmasq list` then showed there. It is compared as a set: Cilium prints a
trie's order, bgpd that of the addresses. Cilium 1.8 had no list for IPv6; with one, it has `fe80::/10` too.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.fabric.netns import Namespace, missing
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.reach import source_seen
from tests.fabric.topology import F5_SNAT, HEALTH_CHECKER, STRANGER, NodePlace

from .masq import delete_document, masquerading_node, write_document
from .node import Cluster, announcing
from .pods import PLUGINS, PTP, Pod, add_pod, host_local

Measured = Callable[[str, float], None]

AS_CREATED = """\
nonMasqueradeCIDRs:
#LinkLocal地址
- 169.254.0.0/16
#F5 SNAT Pool地址
- 11.8.37.4/32
- 11.8.37.5/32
- 11.8.37.6/32
- 11.8.37.7/32
- 11.8.37.8/32
- 11.8.37.9/32
- 11.8.37.10/32
#思科交换机地址
- 11.8.37.252/32
- 11.8.37.253/32
- 11.8.37.254/32
# F5健康检查地址
- 11.11.248.0/21
masqLinkLocal: false
"""
AS_EDITED = """\
nonMasqueradeCIDRs:
- 11.8.37.252/32
- 11.8.37.253/32
- 11.8.37.254/32
- 11.8.37.4/32
- 11.8.37.5/32
- 11.8.37.6/32
- 11.8.37.7/32
- 11.8.37.8/32
- 11.8.37.9/32
- 11.8.37.10/32
- 11.11.248.0/21
masqLinkLocal: false
"""
WITH_STRANGER = AS_EDITED.replace("- 11.8.37.5/32", f"- {STRANGER}/32")
SHOWN_BY_CILIUM = """\
IP PREFIX/ADDRESS
11.8.37.4/32
11.8.37.5/32
11.8.37.9/32
11.8.37.252/32
11.8.37.254/32
11.11.248.0/21
169.254.0.0/16
11.8.37.6/32
11.8.37.7/32
11.8.37.8/32
11.8.37.10/32
11.8.37.253/32
"""
PRIVATE = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}
RESERVED = PRIVATE | {
    "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
    "203.0.113.0/24", "240.0.0.0/4",
}  # fmt: skip
PAUSE_S = 31.0  # the longest pause between two attempts, and one attempt
OUTSIDE6 = "fd00:11:11:250::12"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the two references make of the same ConfigMap."""

    compat: str
    always: frozenset[str]
    without_document: frozenset[str]
    translates_v6: bool


AGENT = Reading("agent", frozenset({"169.254.0.0/16"}), frozenset(PRIVATE), translates_v6=False)
CILIUM = Reading("cilium", frozenset({"169.254.0.0/16", "fe80::/10"}), frozenset(RESERVED), translates_v6=True)


class Site:
    """The product at work on one node, a pod there, and those outside who see it."""

    def __init__(self, cluster: Cluster, place: NodePlace, node: BgpdNode, reading: Reading, pod: Pod, f5: Namespace):
        self.cluster, self.place, self.node, self.reading, self.pod, self.f5 = cluster, place, node, reading, pod, f5

    def listed(self) -> list[str]:
        """What `bgpd masq list` prints, without its heading."""
        heading, *entries = self.node.bgpd("masq", "list").splitlines()
        assert heading.strip() == SHOWN_BY_CILIUM.splitlines()[0]
        return [entry.strip() for entry in entries]

    def wait_listed(self, wanted: set[str] | frozenset[str], timeout_s: float = 10.0) -> None:
        """The list is this, with the link-local ranges, and nothing twice."""
        everything = sorted(wanted | self.reading.always)
        poll(lambda: sorted(self.listed()) == everything, timeout_s, lambda: f"{self.listed()}, not {everything}")

    def seen(self, at: Namespace, address: str) -> str | None:
        """The address that `at` sees when the pod dials `address`."""
        return source_seen(self.pod.namespace, at, address)

    def wait_seen(self, at: Namespace, address: str, source: str) -> None:
        poll(lambda: self.seen(at, address) == source, 10.0, lambda: self.node.bgpd("status", check=False))


@pytest.fixture(scope="module")
def pod(cluster: Cluster) -> Pod:
    reason = missing("nft", str(PLUGINS / "ptp"))
    if reason is not None:
        pytest.skip(reason)
    (place, *_) = cluster.fabric.nodes
    ipam = host_local(place, cluster.fabric.lab.directory / "leases")
    return add_pod(place, "pod", {**PTP, "ipam": ipam})


@pytest.fixture(scope="module")
def f5(cluster: Cluster) -> Namespace:
    return cluster.fabric.add_f5()


@pytest.fixture(scope="module", params=[AGENT, CILIUM], ids=lambda it: it.compat)
def running(request: pytest.FixtureRequest, cluster: Cluster, pod: Pod, f5: Namespace) -> Iterator[Site]:
    """One daemon for the tests of one reading, its ConfigMap there before it."""
    reading: Reading = request.param
    (place, *_) = cluster.fabric.nodes
    write_document(cluster, AS_CREATED)
    with masquerading_node(cluster, place, compat=reading.compat) as node:
        announcing(cluster, node, place)
        yield Site(cluster, place, node, reading, pod, f5)


@pytest.fixture
def site(running: Site) -> Site:
    """With the document as it was edited, in force."""
    write_document(running.cluster, AS_EDITED)
    running.wait_listed(set(SHOWN_BY_CILIUM.splitlines()[1:]), PAUSE_S)
    running.node.wait_healthy(PAUSE_S)
    running.wait_seen(running.cluster.fabric.outside, STRANGER, running.place.address)
    return running


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Keeps a number in the test's report."""
    return lambda name, value: request.node.user_properties.append((name, round(value, 4)))


# --- what a ConfigMap says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [AS_CREATED, AS_EDITED], ids=["created", "edited"])
def test_the_list_is_the_one_that_cilium_shows(running: Site, text: str) -> None:
    """Before and after the operator's edit, which took out what is there by itself."""
    write_document(running.cluster, text)
    running.wait_listed(set(SHOWN_BY_CILIUM.splitlines()[1:]))
    assert len(running.listed()) == 12 + running.reading.translates_v6


def test_who_sees_the_pod(site: Site) -> None:
    """F5, switches and health checkers, and nobody else; IPv6 as the reference does it without being told."""
    fabric, pod = site.cluster.fabric, site.pod
    assert site.seen(site.f5, F5_SNAT) == pod.addresses[4]
    assert site.seen(fabric.outside, HEALTH_CHECKER) == pod.addresses[4]
    assert site.seen(fabric.tors[0].namespace, "11.8.37.252") == pod.addresses[4]
    assert site.seen(fabric.outside, STRANGER) == site.place.address
    expected = site.place.address6 if site.reading.translates_v6 else pod.addresses[6]
    assert site.seen(fabric.outside, OUTSIDE6) == expected


def test_an_edit_counts_for_the_next_flow(site: Site, measured: Measured) -> None:
    """In, and out again."""
    outside = site.cluster.fabric.outside
    for text, source in (
        (WITH_STRANGER, site.pod.addresses[4]),
        (AS_EDITED, site.place.address),
    ):
        started = time.monotonic()
        write_document(site.cluster, text)
        site.wait_seen(outside, STRANGER, source)
        measured(f"write_until_{source}_is_seen_s", time.monotonic() - started)
    site.wait_listed(set(SHOWN_BY_CILIUM.splitlines()[1:]))


def test_a_document_with_faults_leaves_the_last_good_list(site: Site) -> None:
    """All of its faults stand in the status, by line and key, until it is put right."""
    before = site.listed()
    write_document(
        site.cluster,
        "nonMasqueradeCIDRs:\n- 11.8.37.0/33\n- 198.51.100.0/24\n- nonsense\nmasqLinkLocal: perhaps\n",
    )
    problems = site.node.wait_status("no faults", lambda it: len(it["problems"]) >= 3)["problems"]
    for line, key in ((2, "nonMasqueradeCIDRs[0]"), (4, "nonMasqueradeCIDRs[2]"), (5, "masqLinkLocal")):
        place = f"masquerade: ConfigMap kube-system/ip-masq-agent data.config:{line}:"
        (found,) = [it for it in problems if it.startswith(place)]
        assert f" {key}: " in found
        assert found.endswith("; the last good list stays in use")
    assert site.node.try_bgpd("status").returncode == 4
    assert site.listed() == before
    assert site.seen(site.cluster.fabric.outside, STRANGER) == site.place.address
    write_document(site.cluster, AS_EDITED)
    site.node.wait_healthy()


def test_no_config_map_is_what_the_reference_takes_for_it(site: Site) -> None:
    """ip-masq-agent keeps RFC 1918, Cilium all reserved ranges; the status says what was looked for."""
    delete_document(site.cluster)
    site.wait_listed(site.reading.without_document)
    kept = "198.51.100.0/24" in site.reading.without_document
    source = site.pod.addresses[4] if kept else site.place.address
    assert site.seen(site.cluster.fabric.outside, STRANGER) == source
    assert site.seen(site.f5, F5_SNAT) == site.place.address
    problem = site.node.wait_problem("there is no ConfigMap named kube-system/ip-masq-agent")
    assert "the default list is in use" in problem
    assert "node.name" not in problem
    write_document(site.cluster, AS_EDITED)
    site.node.wait_healthy()


# --- without the API server, which is the same for both readings ----------------------------------------------------

one_reading = pytest.mark.parametrize("running", [AGENT], indirect=True, ids=["agent"])


@one_reading
def test_the_list_outlives_the_api_server_the_daemon_and_the_kernel(site: Site) -> None:
    """Everything stays while the server is away; a node that boots then has the list from what is remembered."""
    control_plane, node, outside = site.cluster.control_plane, site.node, site.cluster.fabric.outside
    listed = site.listed()
    poll((node.directory / "state" / "masq-document").exists, 10.0, lambda: "nothing is remembered yet")
    control_plane.kill_apiserver()
    try:
        for is_restarted in (False, True):
            if is_restarted:
                node.restart_daemon()
            node.wait_problem("source")
            assert site.listed() == listed
            assert site.seen(outside, HEALTH_CHECKER) == site.pod.addresses[4]
            assert site.seen(outside, STRANGER) == site.place.address
        assert node.daemon is not None
        node.daemon.stop()
        node.bgpd("masq", "clear")  # as a boot does
        node.start_daemon()
        poll(lambda: site.listed() == listed, 10.0, lambda: node.bgpd("status", check=False))
    finally:
        control_plane.start_apiserver()
    node.wait_healthy(PAUSE_S)
    site.wait_seen(outside, STRANGER, site.place.address)
    write_document(site.cluster, WITH_STRANGER)
    site.wait_seen(outside, STRANGER, site.pod.addresses[4])


@one_reading
def test_an_edit_during_an_outage_counts_after_it(site: Site) -> None:
    """The cable to the server is pulled, the document written, the old list in force until it is plugged in again."""
    outside = site.cluster.fabric.outside
    site.cluster.cut()
    try:
        write_document(site.cluster, WITH_STRANGER)
        for _ in range(3):
            assert f"{STRANGER}/32" not in site.listed()
            assert site.seen(outside, STRANGER) == site.place.address
    finally:
        site.cluster.mend()
    poll(lambda: site.seen(outside, STRANGER) == site.pod.addresses[4], PAUSE_S, lambda: str(site.listed()))


@one_reading
def test_nothing_is_remembered_of_a_node_that_is_made_anew(site: Site) -> None:
    """Without memory, document and server there is nothing to go by, so nothing is changed, and that is said."""
    control_plane, node = site.cluster.control_plane, site.node
    assert node.daemon is not None
    node.daemon.stop()
    node.bgpd("masq", "clear")
    shutil.rmtree(node.directory / "state")
    control_plane.kill_apiserver()
    try:
        node.start_daemon()
        node.wait_problem("there was no good document so far, so list and rule stay as they are")
        assert site.seen(site.cluster.fabric.outside, STRANGER) == site.pod.addresses[4]
    finally:
        control_plane.start_apiserver()
    site.wait_seen(site.cluster.fabric.outside, STRANGER, site.place.address)
