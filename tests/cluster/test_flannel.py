"""Masquerade beside a real flannel: host-gw between two nodes, its pods attached by the bridge plugin.

flannel's own masquerade is on, with iptables or with nf_tables, or off, and then the bridge plugin's is on: that is
what the flannel CNI plugin asks of its delegate. All three hide pods from everybody outside, the bridge plugin's from
pods of other nodes too; with the daemon it is the list that says who sees a pod, whatever else is on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.fabric.netns import missing
from tests.fabric.process import poll
from tests.fabric.reach import source_seen
from tests.fabric.topology import HEALTH_CHECKER, STRANGER, NodePlace

from .flanneld import MODES, READY_S, Flannel, Mode
from .kubeproxy import ruleset
from .masq import masquerading_node, write_document
from .node import Cluster
from .pods import PLUGINS, Pod, add_pod
from .rest import ApiError

LISTED: Final = {4: HEALTH_CHECKER, 6: "fd00:11:11:250::12"}
UNLISTED: Final = {4: STRANGER, 6: "fd00:198:51:100::10"}
DOCUMENT: Final = "nonMasqueradeCIDRs: [11.11.248.0/21, 'fd00:11:11:250::/64']\n"


@dataclass(frozen=True, slots=True)
class Site:
    """Two nodes with flannel, a pod on each; no daemon yet."""

    cluster: Cluster
    mode: Mode
    flannels: tuple[Flannel, Flannel]
    pod: Pod
    remote: Pod

    @property
    def place(self) -> NodePlace:
        return self.flannels[0].place

    def own(self, version: int) -> str:
        return self.place.address if version == 4 else self.place.address6

    def is_seen_by_pod(self, version: int, source: str) -> bool:
        """Whether the other node's pod sees `source` when ours dials it."""
        remote = self.remote
        return source_seen(self.pod.namespace, remote.namespace, remote.addresses[version], timeout_s=0.5) == source

    def seen(self, address: str) -> str | None:
        """The address that the outside sees when the pod dials `address`."""
        return source_seen(self.pod.namespace, self.cluster.fabric.outside, address)


@pytest.fixture(params=MODES, ids=lambda mode: mode.name)
def site(request: pytest.FixtureRequest, cluster: Cluster, control_plane_binaries: Path) -> Iterator[Site]:
    reason = missing("iptables", "nft", str(PLUGINS / "bridge"))
    if reason is not None:
        pytest.skip(reason)
    mode: Mode = request.param
    places = cluster.fabric.nodes[:2]
    for place in places:
        cluster.make(place, *place.pod_cidrs)
    fabric = cluster.fabric
    fabric.outside.ip(f"addr replace {UNLISTED[6]}/128 dev lo")
    fabric.fabric.add_route(f"{UNLISTED[6]}/128", via=LISTED[6])
    flannels = [Flannel(cluster, place, control_plane_binaries, mode) for place in places]
    pods = []
    for number, flannel in enumerate(flannels):
        flannel.start()
        leases = fabric.lab.directory / f"leases-{mode.name}-{number}"
        pods.append(add_pod(flannel.place, f"pod{number}-{mode.name}", flannel.plugin(leases)))
    yield Site(cluster, mode, (flannels[0], flannels[1]), *pods)
    for flannel, pod in zip(flannels, pods, strict=True):
        flannel.stop()
        flannel.place.namespace.run(["nft", "flush", "ruleset"])
        flannel.place.namespace.ip("link delete cni0")
        fabric.lab.remove(pod.namespace)
    for place in places:
        with contextlib.suppress(ApiError):  # the daemon's end takes its Node with it
            cluster.unmake(place)


def test_the_list_decides_whatever_else_masquerades(site: Site) -> None:
    """flannel's rules alone hide the pod from all outside; the daemon's come first, and leave them as they are."""
    for version in (4, 6):
        client = site.pod.addresses[version] if site.mode.ip_masq else site.own(version)
        # by the routes that flannel makes
        poll(partial(site.is_seen_by_pod, version, client), READY_S, site.flannels[0].log)
        assert site.seen(LISTED[version]) == site.seen(UNLISTED[version]) == site.own(version)
    before = ruleset(site.place, ours=False)
    write_document(site.cluster, DOCUMENT)
    with masquerading_node(site.cluster, site.place, ipv6=True) as node:
        node.start()
        node.wait_healthy()
        ours = ruleset(site.place, ours=True)
        for _ in range(2):
            for version in (4, 6):
                assert site.seen(LISTED[version]) == site.pod.addresses[version]
                assert site.is_seen_by_pod(version, site.pod.addresses[version])
                assert site.seen(UNLISTED[version]) == site.own(version)
            assert ruleset(site.place, ours=False) == before
            assert ruleset(site.place, ours=True) == ours
            site.flannels[0].start()  # puts all of its rules in place again
