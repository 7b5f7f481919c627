"""Masquerade beside a real kube-proxy on the same node: neither breaks what the other is there for.

Two nodes; the first has the daemon, kube-proxy and two pods on a bridge, the second a pod. Every test runs with
kube-proxy in iptables and in nftables mode, in IPv4 and in IPv6.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.fabric.masq_node import speaks
from tests.fabric.netns import Namespace, missing
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.reach import source_seen
from tests.fabric.topology import HEALTH_CHECKER, STRANGER, NodePlace

from .controlplane import SERVICE_RANGE_V4, SERVICE_RANGE_V6
from .kubeproxy import PORT, KubeProxy, Service, give_endpoints, make_service, ruleset
from .masq import masquerading_node, write_document
from .node import Cluster, announcing
from .pods import BRIDGE, PLUGINS, Pod, add_pod, host_local

LISTED = {4: HEALTH_CHECKER, 6: "fd00:11:11:250::12"}
UNLISTED = {4: STRANGER, 6: "fd00:198:51:100::10"}
DOCUMENT = "nonMasqueradeCIDRs: [11.11.248.0/21, 'fd00:11:11:250::/64']\n"
SYNCED_S = 15.0

both_families = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


@dataclass(frozen=True, slots=True)
class Site:
    """The first node with all that runs there. `remote` is the pod of the second.

    `service` has the usual policy, `local` leaves outsiders their addresses and serves them on the node only.
    """

    cluster: Cluster
    place: NodePlace
    node: BgpdNode
    service: Service
    local: Service
    first: Pod
    second: Pod
    remote: Pod

    @property
    def outside(self) -> Namespace:
        return self.cluster.fabric.outside

    def own(self, version: int) -> str:
        """The node's address on its uplink."""
        return self.place.address if version == 4 else self.place.address6

    def gateway(self, version: int) -> str:
        """The node's address on the pods' bridge: the first of each pod CIDR, as host-local has it."""
        return str(ip_network(self.place.pod_cidrs[0 if version == 4 else 1])[1])


@pytest.fixture(scope="module")
def site(cluster: Cluster) -> Iterator[Site]:
    reason = missing("iptables", "nft", "conntrack", str(PLUGINS / "bridge"))
    if reason is not None:
        pytest.skip(reason)
    place, other = cluster.fabric.nodes[:2]
    fabric, directory = cluster.fabric, cluster.fabric.lab.directory
    plugin = {**BRIDGE, "ipam": host_local(place, directory / "leases")}
    first, second = (add_pod(place, name, plugin) for name in ("first", "second"))
    remote = add_pod(other, "remote", {**BRIDGE, "ipam": host_local(other, directory / "other-leases")})
    for here, there in ((place, other), (other, place)):  # as a CNI without an overlay does it
        for cidr, hop in zip(there.pod_cidrs, (there.address, there.address6), strict=True):
            here.namespace.add_route(cidr, via=hop)
    fabric.outside.add_address("lo", f"{UNLISTED[6]}/128")
    fabric.fabric.add_route(f"{UNLISTED[6]}/128", via=LISTED[6])
    for prefix, hop in ((SERVICE_RANGE_V4, place.address), (SERVICE_RANGE_V6, place.address6)):
        fabric.fabric.add_route(prefix, via=hop)
    write_document(cluster, DOCUMENT)
    services = make_service(cluster, "echo"), make_service(cluster, "local", externalTrafficPolicy="Local")
    with masquerading_node(cluster, place, ipv6=True) as node:
        announcing(cluster, node, place)
        yield Site(cluster, place, node, *services, first, second, remote)


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def installed(request: pytest.FixtureRequest, site: Site, control_plane_binaries: Path) -> Iterator[KubeProxy]:
    """One kube-proxy for the tests of one mode."""
    made = KubeProxy(site.cluster, site.place, control_plane_binaries, request.param)
    made.start()
    yield made
    made.clean_up()


@pytest.fixture
def proxy(installed: KubeProxy, site: Site) -> KubeProxy:
    """With the second pod of the node as the only endpoint of each family."""
    serve(site, installed, site.second, site.place)
    return installed


def serve(site: Site, proxy: KubeProxy, pod: Pod, place: NodePlace, service: Service | None = None) -> None:
    """Makes this pod the only endpoint of a Service, and waits until the node sends there."""
    service = service or site.service
    give_endpoints(site.cluster, service, place.name, list(pod.addresses.values()))
    for version, address in pod.addresses.items():
        virtual = service.addresses[version]
        poll(partial(seen_through, site.place.namespace, virtual, pod.namespace, address), SYNCED_S, proxy.log)


def seen_through(
    client: Namespace, virtual: str, server: Namespace, endpoint: str, port: int = PORT, source: str = ""
) -> str | None:
    """The address that `endpoint` sees when `client` dials `virtual` from `source`; None: it does not get there."""
    family = socket.AF_INET6 if ":" in virtual else socket.AF_INET
    with (
        contextlib.closing(server.socket(family, socket.SOCK_STREAM)) as listener,
        contextlib.closing(client.socket(family, socket.SOCK_STREAM)) as dialer,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((endpoint, PORT))
        listener.listen(1)
        listener.settimeout(0.5)
        dialer.settimeout(0.5)
        if source:
            dialer.bind((source, 0))
        try:
            dialer.connect((virtual, port))
            accepted, seen = listener.accept()
        except OSError:
            return None
        accepted.close()
        return str(seen[0])


# --- both do what they are there for --------------------------------------------------------------------------------


@both_families
def test_outside_a_pod_is_seen_by_the_list(site: Site, proxy: KubeProxy, version: int) -> None:
    assert source_seen(site.first.namespace, site.outside, LISTED[version]) == site.first.addresses[version]
    assert source_seen(site.first.namespace, site.outside, UNLISTED[version]) == site.own(version)
    remote = site.remote.addresses[version]
    assert source_seen(site.first.namespace, site.remote.namespace, remote) == site.first.addresses[version]


@both_families
def test_a_pod_is_seen_through_a_service(site: Site, proxy: KubeProxy, version: int) -> None:
    """By an endpoint on its own node and on another; its own address, as without a service."""
    client, virtual = site.first, site.service.addresses[version]
    for pod, place in ((site.second, site.place), (site.remote, site.cluster.fabric.nodes[1])):
        serve(site, proxy, pod, place)
        seen = seen_through(client.namespace, virtual, pod.namespace, pod.addresses[version])
        assert seen == client.addresses[version]


@both_families
def test_a_pod_reaches_itself_through_a_service(site: Site, proxy: KubeProxy, version: int) -> None:
    """kube-proxy has to masquerade that, and does."""
    pod = site.second
    virtual = site.service.addresses[version]
    seen = seen_through(pod.namespace, virtual, pod.namespace, pod.addresses[version])
    assert seen == site.gateway(version)


@both_families
def test_a_service_in_front_of_an_outsider_goes_by_the_list(site: Site, proxy: KubeProxy, version: int) -> None:
    """The endpoint decides, not the Service's address."""
    virtual = site.service.addresses[version]
    for address, expected in ((LISTED, site.first.addresses[version]), (UNLISTED, site.own(version))):
        outsider = Pod(site.outside, {version: address[version]})
        serve(site, proxy, outsider, site.place)
        assert seen_through(site.first.namespace, virtual, site.outside, address[version]) == expected


@both_families
def test_outsiders_reach_a_node_port(site: Site, proxy: KubeProxy, version: int) -> None:
    """At a pod of this node and of another one; kube-proxy masquerades them, listed or not."""
    for pod, place, expected in (
        (site.second, site.place, site.gateway(version)),
        (site.remote, site.cluster.fabric.nodes[1], site.own(version)),
    ):
        serve(site, proxy, pod, place)
        address = pod.addresses[version]
        port = site.service.node_port
        assert seen_through(site.outside, site.own(version), pod.namespace, address, port) == expected


@both_families
def test_outsiders_keep_their_address_where_the_service_says_so(site: Site, proxy: KubeProxy, version: int) -> None:
    """`externalTrafficPolicy: Local`: the reply to one who is not listed is not taken for a flow of the pod."""
    serve(site, proxy, site.second, site.place, site.local)
    namespace, address = site.second.namespace, site.second.addresses[version]
    outsider = UNLISTED[version]
    seen = seen_through(site.outside, site.own(version), namespace, address, site.local.node_port, outsider)
    assert seen == outsider


@both_families
def test_outsiders_reach_a_service(site: Site, proxy: KubeProxy, version: int) -> None:
    """Who is not of the cluster's CIDRs is masqueraded on the way to another node, so that the reply comes back."""
    serve(site, proxy, site.remote, site.cluster.fabric.nodes[1])
    virtual, address = site.service.addresses[version], site.remote.addresses[version]
    assert seen_through(site.outside, virtual, site.remote.namespace, address) == site.own(version)


@both_families
def test_masquerade_all_wins(site: Site, proxy: KubeProxy, version: int) -> None:
    """Told to hide pods from endpoints, kube-proxy hides them; what goes by no service still goes by the list."""
    proxy.start(masquerade_all=True)
    try:
        place = site.cluster.fabric.nodes[1]
        give_endpoints(site.cluster, site.service, place.name, list(site.remote.addresses.values()))
        virtual, address = site.service.addresses[version], site.remote.addresses[version]
        poll(
            lambda: seen_through(site.first.namespace, virtual, site.remote.namespace, address) == site.own(version),
            SYNCED_S,
            proxy.log,
        )
        assert source_seen(site.first.namespace, site.outside, LISTED[version]) == site.first.addresses[version]
    finally:
        proxy.start()


# --- and neither takes the other's rules away -----------------------------------------------------------------------


def test_kube_proxy_leaves_our_table_alone(site: Site, proxy: KubeProxy) -> None:
    """Whatever it does: a new endpoint, a restart, a clean-up."""
    before = ruleset(site.place, ours=True)
    assert "decide4" in before
    serve(site, proxy, site.remote, site.cluster.fabric.nodes[1])
    proxy.start()
    serve(site, proxy, site.second, site.place)
    proxy.clean_up()
    assert ruleset(site.place, ours=True) == before
    assert not seen_through(
        site.first.namespace, site.service.addresses[4], site.second.namespace, site.second.addresses[4]
    )
    proxy.start()
    serve(site, proxy, site.second, site.place)
    assert ruleset(site.place, ours=True) == before


def test_we_leave_its_rules_alone(site: Site, proxy: KubeProxy) -> None:
    """An edit of the list, everything taken out and put back."""
    assert site.node.daemon is not None
    before = ruleset(site.place, ours=False)
    assert site.service.addresses[4] in before
    write_document(site.cluster, DOCUMENT.replace("]", ", 203.0.113.0/24]"))
    poll(lambda: "203.0.113.0/24" in site.node.bgpd("masq", "list"), 10, lambda: "the edit does not count")
    write_document(site.cluster, DOCUMENT)
    site.node.daemon.stop()
    site.node.bgpd("masq", "clear")
    assert ruleset(site.place, ours=False) == before
    assert ruleset(site.place, ours=True) == ""
    site.node.start_daemon()
    site.node.wait_healthy()
    assert ruleset(site.place, ours=False) == before


def test_an_open_flow_outlives_both(site: Site, proxy: KubeProxy) -> None:
    """One through a Service to another node: kube-proxy's restart, the daemon's, and the endpoint taken out."""
    serve(site, proxy, site.remote, site.cluster.fabric.nodes[1])
    server, client = site.remote.namespace, site.first.namespace
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(server.socket(socket.AF_INET, socket.SOCK_STREAM)))
        dialer = stack.enter_context(contextlib.closing(client.socket(socket.AF_INET, socket.SOCK_STREAM)))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((site.remote.addresses[4], PORT))
        listener.listen(1)
        for each in (listener, dialer):
            each.settimeout(2.0)
        dialer.connect((site.service.addresses[4], PORT))
        accepted, seen = listener.accept()
        with contextlib.closing(accepted):
            accepted.settimeout(2.0)
            assert seen[0] == site.first.addresses[4]
            proxy.start()
            site.node.restart_daemon()
            site.node.wait_healthy()
            assert speaks(dialer, accepted)
