"""NetworkPolicy beside a real kube-proxy: judged on what the packet really goes to, and on who really sends it.

Two nodes; the first has the daemon, which masquerades as well, kube-proxy and four pods: a and b on a bridge, c and d
on cables of their own. The second has the pod `far`. Every test runs with kube-proxy in iptables and in nftables
mode, and asks in IPv4 and in IPv6. Whatever is denied is dropped silently: the probes see to that.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_network
from itertools import product
from pathlib import Path

import pytest

from bgpd.policy.table import NAME
from tests.fabric.masq_node import alone, speaks
from tests.fabric.netns import Namespace, missing
from tests.fabric.node import BgpdNode
from tests.fabric.policy_site import Object, namespace, peers, pod, policy
from tests.fabric.probes import SILENCE_S, End, How, Probe, Prober
from tests.fabric.process import poll
from tests.fabric.topology import HEALTH_CHECKER, STRANGER, NodePlace
from tests.fabric.traffic import Allowed, traffic

from .controlplane import SERVICE_RANGE_V4, SERVICE_RANGE_V6
from .kubeproxy import KubeProxy, Service, give_endpoints, make_service
from .masq import masquerading_node, write_document
from .node import Cluster, announcing
from .pods import BRIDGE, PLUGINS, PTP, Pod, add_pod, host_local
from .policies import Policies, show_pod, to_ports

HERE = ("a", "b", "c", "d")
CLIENTS = ("a", "c")
SERVERS = ("b", "d", "far")
SERVERS_HERE = SERVERS[:2]
SERVICE_PORT, TARGET_PORT = 80, 8080
OTHER_SERVICE_PORT, OTHER_TARGET_PORT = 81, 8081
PORTS = [
    {"name": "http", "port": SERVICE_PORT, "targetPort": TARGET_PORT, "protocol": "TCP"},
    {"name": "other", "port": OTHER_SERVICE_PORT, "targetPort": OTHER_TARGET_PORT, "protocol": "TCP"},
    {"name": "datagrams", "port": SERVICE_PORT, "targetPort": TARGET_PORT, "protocol": "UDP"},
]
OUTSIDER = {4: STRANGER, 6: "fd00:198:51:100::10"}
LISTED6 = "fd00:11:11:250::12"
DOCUMENT = f"nonMasqueradeCIDRs: [{HEALTH_CHECKER}/32, '{LISTED6}/128']\n"
SYNCED_S = 15.0
FLIPS = 20
RATE = 100  # connections a second
CONNECTIONS = 20


@dataclass(frozen=True, slots=True)
class Site:
    """`services` by the pod that is behind them, all dual stack; `local` of them leave outsiders their addresses."""

    cluster: Cluster
    place: NodePlace
    node: BgpdNode
    policies: Policies
    pods: dict[str, Pod]
    services: dict[str, Service]
    local: dict[str, Service]
    prober: Prober

    def gateways(self) -> list[str]:
        """The node's addresses on the interfaces to its pods, as host-local has it."""
        return [str(ip_network(each)[1]) for half in halves(self.place) for each in half]

    def passing(self, *clients: str, how: How = How.TCP) -> set[tuple[str, str]]:
        """Which of these pods get through to which server: by its Service, and by its port of their own node.

        The outsider dials the node's ports, of which one hides it from the server and one does not. AssertionError:
        one way passes and another does not, or one family.
        """
        ways = {(client, server): self._ways(client, server, how) for client in clients for server in SERVERS}
        found = self.prober.passing(each for probes in ways.values() for each in probes)
        by_pair = {pair: {each in found for each in probes} for pair, probes in ways.items() if probes}
        assert all(len(each) == 1 for each in by_pair.values()), f"only some of {ways}: {found}"
        return {pair for pair, each in by_pair.items() if each == {True}}

    def _ways(self, client: str, server: str, how: How) -> list[Probe]:
        behind = self.services[server]
        asked = [(f"service {server}", SERVICE_PORT)]
        if how is How.TCP:
            asked.append(("node", behind.node_port))
        if client == "outsider":
            asked = [("node", each[server].node_port) for each in (self.services, self.local) if server in HERE]
        return [Probe(client, front, how, port, version) for front, port in asked for version in (4, 6)]


def halves(place: NodePlace) -> Iterator[tuple[str, ...]]:
    """The pod CIDRs of what is on the bridge, and of what is routed."""
    yield from zip(*(map(str, ip_network(each).subnets()) for each in place.pod_cidrs), strict=True)


def make_pods(cluster: Cluster) -> dict[str, Pod]:
    """In the namespace x of the cluster, each labelled with its name."""
    place, other = cluster.fabric.nodes[:2]
    directory = cluster.fabric.lab.directory
    leases = directory / "leases"
    bridged, routed = ({"ipam": host_local(replace(place, pod_cidrs=each), leases)} for each in halves(place))
    pods = {name: add_pod(place, name, {**BRIDGE, **bridged}) for name in HERE[:2]}
    pods |= {name: add_pod(place, name, {**PTP, **routed}) for name in HERE[2:]}
    pods["far"] = add_pod(other, "far", {**BRIDGE, "ipam": host_local(other, directory / "other-leases")})
    show = partial(show_pod, cluster)
    cluster.control_plane.admin.create("/api/v1/namespaces", namespace("x"))
    for name, each in pods.items():
        show(pod("x", name, each.addresses.values(), node=place.name if name in HERE else other.name))
    return pods


def route(cluster: Cluster) -> None:
    """The nodes to each other's pods, as a CNI without an overlay does it, and the outsider to them."""
    place, other = cluster.fabric.nodes[:2]
    for here, there in ((place, other), (other, place)):
        for cidr, hop in zip(there.pod_cidrs, (there.address, there.address6), strict=True):
            here.namespace.add_route(cidr, via=hop)
    cluster.fabric.outside.add_address("lo", alone(OUTSIDER[6]))
    cluster.fabric.fabric.add_route(alone(OUTSIDER[6]), via=LISTED6)
    for prefix, hop in ((SERVICE_RANGE_V4, place.address), (SERVICE_RANGE_V6, place.address6)):
        cluster.fabric.fabric.add_route(prefix, via=hop)


def make_services(cluster: Cluster, pods: dict[str, Pod], kind: str, **spec: str) -> dict[str, Service]:
    """One in front of each server."""
    place, other = cluster.fabric.nodes[:2]
    made = {name: make_service(cluster, f"{kind}-{name}", ports=PORTS, **spec) for name in SERVERS}
    for name, service in made.items():
        node = place if name in HERE else other
        give_endpoints(cluster, service, node.name, list(pods[name].addresses.values()))
    return made


@pytest.fixture(scope="module")
def site(cluster: Cluster) -> Iterator[Site]:
    reason = missing("iptables", "nft", "conntrack", str(PLUGINS / "bridge"), str(PLUGINS / "ptp"))
    if reason is not None:
        pytest.skip(reason)
    place, fabric = cluster.fabric.nodes[0], cluster.fabric
    pods = make_pods(cluster)
    route(cluster)
    services = make_services(cluster, pods, "to")
    local = make_services(cluster, pods, "local", externalTrafficPolicy="Local")
    own = {4: place.address, 6: place.address6}
    ends = {name: End(each.namespace, each.addresses) for name, each in pods.items()}
    ends |= {f"service {name}": End(None, each.addresses) for name, each in services.items()}
    ends |= {"outsider": End(fabric.outside, OUTSIDER), "near": End(place.namespace, own), "node": End(None, own)}
    write_document(cluster, DOCUMENT)
    with (
        contextlib.closing(Prober(ends, [TARGET_PORT], [How.TCP, How.UDP])) as prober,
        masquerading_node(cluster, place, ipv6=True) as node,
    ):
        node.config["policy"] = {"enabled": True}
        node.write_config()
        announcing(cluster, node, place)
        policies = Policies(cluster, node, Path(node.config["paths"]["bpf"]))
        yield Site(cluster, place, node, policies, pods, services, local, prober)


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def proxy(request: pytest.FixtureRequest, site: Site, control_plane_binaries: Path) -> Iterator[KubeProxy]:
    """One kube-proxy for the tests of one mode, with all Services in force."""
    made = KubeProxy(site.cluster, site.place, control_plane_binaries, request.param)
    made.start()
    wait_served(site, made)
    yield made
    made.clean_up()


def wait_served(site: Site, proxy: KubeProxy) -> None:
    """Until the node itself, which no policy is for, gets to every Service."""
    for service in site.services.values():
        for address in service.addresses.values():
            poll(partial(answers, site.place.namespace, address), SYNCED_S, proxy.log)


def answers(client: Namespace, address: str) -> bool:
    """kube-proxy refuses what it knows no endpoint of yet."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(client.socket(family, socket.SOCK_STREAM)) as dialer:
        dialer.settimeout(SILENCE_S)
        return dialer.connect_ex((address, SERVICE_PORT)) == 0


@pytest.fixture(autouse=True)
def nothing_denied(site: Site, proxy: KubeProxy) -> None:
    """Every test begins without a policy."""
    site.policies.set()
    assert site.passing(*CLIENTS) == pairs(CLIENTS, SERVERS)


def pairs(clients: Iterable[str], servers: Iterable[str]) -> set[tuple[str, str]]:
    return set(product(clients, servers))


def named(*names: str) -> Object:
    """Selects the pods of these names."""
    return {"matchExpressions": [{"key": "pod", "operator": "In", "values": list(names)}]}


def blocks(*addresses: str) -> list[Object]:
    """Peers that are these addresses and no other."""
    return [{"ipBlock": {"cidr": alone(each)}} for each in addresses]


def test_egress_is_judged_on_where_the_packet_goes(site: Site) -> None:
    """To the endpoint and its port: not to the Service, nor to the node whose port was asked."""
    fronts = [address for each in site.services.values() for address in each.addresses.values()]
    behind = [address for name in SERVERS for address in site.pods[name].addresses.values()]
    for to, port, allowed in (
        ([peers(*SERVERS)], SERVICE_PORT, ()),
        ([peers("a")], TARGET_PORT, ()),
        (blocks(*fronts, site.place.address, site.place.address6), TARGET_PORT, ()),
        ([peers("b", "far")], TARGET_PORT, ("b", "far")),
        (blocks(*behind), TARGET_PORT, SERVERS),
    ):
        egress = [{"to": to, "ports": to_ports(port)}]
        of_a = policy("x", "p", named("a"), types=["Egress"], egress=egress)
        site.policies.set(of_a, policy("x", "q", named("c"), types=["Egress"]))
        assert site.passing(*CLIENTS) == pairs(["a"], allowed)


def test_ingress_is_judged_on_who_sends(site: Site) -> None:
    """Pods and outsiders by their own addresses, and by none that they are given on the way to the pod."""
    given = [site.place.address, site.place.address6, *site.gateways()]
    for come_from, port, allowed in (
        ([peers("a")], TARGET_PORT, ["a"]),
        ([peers("a")], SERVICE_PORT, []),
        (blocks(*OUTSIDER.values()), TARGET_PORT, ["outsider"]),
        (blocks(*given), TARGET_PORT, []),
    ):
        ingress = [{"from": come_from, "ports": to_ports(port)}]
        site.policies.set(policy("x", "p", named(*SERVERS_HERE), ingress=ingress))
        elsewhere = pairs(CLIENTS, ["far"])  # whose node has no daemon
        assert site.passing(*CLIENTS, "outsider") == pairs(allowed, SERVERS_HERE) | elsewhere


def test_datagrams_are_judged_on_both_ends_of_the_way(site: Site) -> None:
    """Their flow has been known since the first round: it is judged anew with every policy."""
    assert site.passing(*CLIENTS, how=How.UDP) == pairs(CLIENTS, SERVERS)
    for protocol, port, allowed in (
        ("TCP", TARGET_PORT, ()),
        ("UDP", SERVICE_PORT, ()),
        ("UDP", TARGET_PORT, ("b",)),
    ):
        ports = [{"protocol": protocol, "port": port}]
        egress = [{"to": [peers("b")], "ports": ports}]
        site.policies.set(policy("x", "p", named(*CLIENTS), types=["Egress"], egress=egress))
        assert site.passing(*CLIENTS, how=How.UDP) == pairs(CLIENTS, allowed)
        ingress = [{"from": [peers("a")], "ports": ports}]
        site.policies.set(policy("x", "p", named(*SERVERS_HERE), ingress=ingress))
        from_a = pairs(["a"], SERVERS_HERE if allowed else ())
        assert site.passing(*CLIENTS, how=How.UDP) == from_a | pairs(CLIENTS, ["far"])


def test_what_kube_proxy_masquerades_is_judged_as_it_was_sent(site: Site, proxy: KubeProxy) -> None:
    """Told to hide every client from every endpoint, it does so after us."""
    proxy.start(masquerade_all=True)
    try:
        poll(partial(is_hidden, site), SYNCED_S, proxy.log)
        from_a = policy("x", "p", named(*SERVERS_HERE), ingress=[{"from": [peers("a")]}])
        to_here = policy("x", "q", named("a"), types=["Egress"], egress=[{"to": [peers(*SERVERS_HERE)]}])
        site.policies.set(from_a, to_here)
        assert site.passing(*CLIENTS) == pairs(["a"], SERVERS_HERE) | {("c", "far")}
    finally:
        proxy.start()
        site.policies.set()
        poll(lambda: not is_hidden(site), SYNCED_S, proxy.log)


def is_hidden(site: Site) -> bool:
    """Whether d takes c for somebody else."""
    with opened(site, "c", "d", 4) as (_, accepted):
        return bool(accepted.getpeername()[0] != site.pods["c"].addresses[4])


def test_a_pod_reaches_itself_through_its_service(site: Site) -> None:
    """kube-proxy masquerades that; it passes where nothing else does, but for what the node itself sends."""
    site.policies.set(policy("x", "p", types=["Ingress", "Egress"]))
    assert site.passing(*HERE, "outsider") == {(name, name) for name in SERVERS_HERE}
    for name in SERVERS_HERE:
        for address in site.services[name].addresses.values():
            assert answers(site.place.namespace, address)


# --- from one policy to the next ------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(site: Site, client: str, server: str, version: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection through the Service, by both of its ends."""
    here, there = site.pods[client].namespace, site.pods[server].namespace
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with contextlib.closing(here.socket(family, socket.SOCK_STREAM)) as dialer:
        with contextlib.closing(there.socket(family, socket.SOCK_STREAM)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((site.pods[server].addresses[version], OTHER_TARGET_PORT))
            listener.listen(1)
            for each in (listener, dialer):
                each.settimeout(2.0)
            dialer.connect((site.services[server].addresses[version], OTHER_SERVICE_PORT))
            accepted, _ = listener.accept()
        with contextlib.closing(accepted):
            accepted.settimeout(2.0)
            yield dialer, accepted


def test_a_connection_stops_when_it_is_revoked_and_goes_on_when_it_is_allowed(site: Site) -> None:
    """Neither end hears of it, in either direction; the connections of somebody else do not notice."""
    with contextlib.ExitStack() as stack:
        revoked, allowed = (
            [stack.enter_context(opened(site, client, *each)) for each in product(SERVERS, (4, 6))]
            for client in CLIENTS
        )
        assert all(speaks(*each) for each in revoked)
        to_a = policy("x", "p", named("a"), types=["Egress"])
        site.policies.set(to_a, policy("x", "q", named(*SERVERS), ingress=[{"from": [peers("c")]}]))
        ends = [each for one, other in revoked for each in (one, other)]
        for each in ends:
            each.send(b"!")
        assert select.select(ends, [], [], SILENCE_S)[0] == []
        assert all(speaks(*each) for each in allowed)
        site.policies.set()
        for each in ends:
            each.settimeout(SYNCED_S)
            assert each.recv(1) == b"!"
        assert all(speaks(*each) for each in revoked)


def test_flows_through_services_do_not_notice_policies_that_allow_them(site: Site) -> None:
    """One after the other, with nothing in common but what they allow; nothing else passes meanwhile."""
    site.policies.set(*rules(site, 0))
    ends = [("a", "b"), ("c", "d"), ("a", "far")]
    with contextlib.ExitStack() as stack:
        flows = [stack.enter_context(flowing(site, *each, version)) for each in ends for version in (4, 6)]
        for turn in range(FLIPS):
            site.policies.set(*rules(site, turn))
        for each in flows:
            each.wait_more(CONNECTIONS)


def flowing(site: Site, client: str, server: str, version: int) -> contextlib.AbstractContextManager[Allowed]:
    """To one port of the Service, and at the same time, without success, to the other."""
    here, there, virtual = site.pods[client], site.pods[server], site.services[server].addresses[version]
    return traffic(
        here.namespace,
        there.namespace,
        here.addresses[version],
        there.addresses[version],
        OTHER_TARGET_PORT,
        TARGET_PORT,
        RATE,
        through={OTHER_TARGET_PORT: (virtual, OTHER_SERVICE_PORT), TARGET_PORT: (virtual, SERVICE_PORT)},
    )


def rules(site: Site, turn: int) -> list[Object]:
    """Two ways to allow all clients the one port of all servers."""
    if turn % 2:
        ports = [{"protocol": "TCP", "port": OTHER_TARGET_PORT, "endPort": OTHER_TARGET_PORT + 1}]
        to, come_from = blocks(*(each for name in SERVERS for each in site.pods[name].addresses.values())), []
    else:
        ports = to_ports(OTHER_TARGET_PORT)
        to, come_from = [peers(*SERVERS)], [peers("a", "c")]
    return [
        policy("x", "p", named(*CLIENTS), types=["Egress"], egress=[{"to": to, "ports": ports}]),
        policy("x", "q", named(*SERVERS), ingress=[{"from": come_from, "ports": ports}]),
    ]


# --- and neither takes the other's rules away -----------------------------------------------------------------------


def test_kube_proxy_leaves_our_tables_alone(site: Site, proxy: KubeProxy) -> None:
    """Whatever it does: a restart, a clean-up."""
    before = tables(site)
    proxy.start()
    wait_served(site, proxy)
    assert tables(site) == before
    proxy.clean_up()
    assert tables(site) == before
    proxy.start()
    wait_served(site, proxy)
    assert tables(site) == before


def tables(site: Site) -> str:
    """Ours, with everything in them but what counts."""
    named = (("inet", NAME), ("bridge", NAME))
    return "".join(site.place.namespace.run(["nft", "list", "table", *each]).stdout for each in named)
