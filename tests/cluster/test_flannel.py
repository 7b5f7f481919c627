"""Masquerade beside a real flannel: host-gw between two nodes, its pods attached by the bridge plugin.

flannel's own masquerade is on, with iptables or with nf_tables, or off, and then the bridge plugin's is on: that is
what the flannel CNI plugin asks of its delegate. All three hide pods from everybody outside, the bridge plugin's from
pods of other nodes too; with the daemon it is the list that says who sees a pod, whatever else is on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.fabric.netns import missing
from tests.fabric.process import Process, poll
from tests.fabric.reach import source_seen
from tests.fabric.topology import CABLE, HEALTH_CHECKER, POD_SUPERNETS, STRANGER, NodePlace

from .kubeproxy import ruleset
from .masq import masquerading_node, write_document
from .node import NODES, Cluster
from .pods import BRIDGE, PLUGINS, Pod, add_pod, host_local
from .rest import ApiError

LISTED: Final = {4: HEALTH_CHECKER, 6: "fd00:11:11:250::12"}
UNLISTED: Final = {4: STRANGER, 6: "fd00:198:51:100::10"}
DOCUMENT: Final = "nonMasqueradeCIDRs: [11.11.248.0/21, 'fd00:11:11:250::/64']\n"
READY_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Mode:
    """Who masquerades besides: flannel (with nf_tables or iptables), or its bridge plugin."""

    name: str
    ip_masq: bool
    nf_tables: bool


MODES: Final = (
    Mode("flannel-iptables", ip_masq=True, nf_tables=False),
    Mode("flannel-nftables", ip_masq=True, nf_tables=True),
    Mode("bridge-plugin", ip_masq=False, nf_tables=False),
)


class Flannel:
    """flanneld on one node, with the kube subnet manager; `environment` is what its CNI plugin reads."""

    def __init__(self, cluster: Cluster, place: NodePlace, binaries: Path, mode: Mode) -> None:
        self.place = place
        directory = cluster.fabric.lab.directory / f"{place.namespace.name}-flannel-{mode.name}"
        directory.mkdir()
        network = {
            "Network": POD_SUPERNETS[0],
            "EnableIPv6": True,
            "IPv6Network": POD_SUPERNETS[1],
            "EnableNFTables": mode.nf_tables,
            "Backend": {"Type": "host-gw"},
        }
        (directory / "net-conf.json").write_text(json.dumps(network))
        self.environment = directory / "subnet.env"
        self._argv = [
            str(binaries / "flanneld"),
            "--kube-subnet-mgr",
            f"--kubeconfig-file={cluster.control_plane.kubeconfig('flannel', 'system:masters')}",
            f"--net-config-path={directory / 'net-conf.json'}",
            f"--subnet-file={self.environment}",
            f"--iface={CABLE}",
            f"--ip-masq={str(mode.ip_masq).lower()}",
            "--iptables-resync=1",
        ]
        self.process: Process | None = None

    def start(self) -> None:
        """Starts it anew, if it is running, and waits until it has read its Node and made its rules."""
        self.stop()
        self.environment.unlink(missing_ok=True)
        environment = {"NODE_NAME": self.place.name, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self.process = self.place.namespace.popen(self._argv, name="flanneld", env=environment)
        poll(self.environment.exists, READY_S, self.process.log_tail)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()

    def log(self) -> str:
        return "(never started)" if self.process is None else self.process.log_tail()

    def plugin(self, leases: Path) -> dict[str, object]:
        """What the flannel CNI plugin makes of its environment for its delegate."""
        settings = dict(line.split("=") for line in self.environment.read_text().splitlines())
        masquerades = settings["FLANNEL_IPMASQ"] == "false"
        return {
            **BRIDGE,
            "ipMasq": masquerades,
            "mtu": int(settings["FLANNEL_MTU"]),
            "ipam": host_local(self.place, leases),
        }


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
        # as every Node has some; flannel panics on one without
        annotations = {"metadata": {"annotations": {"node.alpha.kubernetes.io/ttl": "0"}}}
        cluster.control_plane.admin.patch(f"{NODES}/{place.name}", annotations)
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
