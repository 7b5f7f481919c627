"""Whether the lab tells the truth: real speakers, real packets, ExaBGP alone as the node's end.

Each test states one fact the tests of the daemon rely on. Nothing here is about the daemon.
"""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from tests.fabric import exabgp
from tests.fabric.bgp_wire import BgpType
from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.gobgp import Gobgp
from tests.fabric.netns import Lab, Namespace
from tests.fabric.observe import BgpCapture, RouteSampler
from tests.fabric.peer import FAMILIES, IPV4, IPV6, Neighbor, Options, Speaker, many_prefixes
from tests.fabric.process import Process, poll
from tests.fabric.reach import ping, source_seen
from tests.fabric.topology import HEALTH_CHECKER, STRANGER, TwoTorFabric

TOR, NODE = "10.0.0.1", "10.0.0.2"
NODE6 = "fd00::2"
ASN = 64512
V4 = "188.188.0.0/24"
V6 = "2001:db8::/64"
ROUTES = (
    f"route {V4} next-hop {NODE} community [64512:100 no-export] large-community [64512:1:2]"
    " med 5 local-preference 200 as-path [65001 4200000001]",
    f"route {V6} next-hop {NODE6} community [64512:100]",
)
needs_exabgp = pytest.mark.needs(str(exabgp.PROGRAM))
each_speaker = pytest.mark.parametrize(
    "kind",
    [pytest.param(it, id=it.kind, marks=pytest.mark.needs(*it.programs)) for it in (Bird, Frr, Gobgp)],
)


@pytest.fixture
def pair(lab: Lab) -> tuple[Namespace, Namespace]:
    """A ToR and a node on one cable."""
    tor, node = lab.namespace("tor"), lab.namespace("node")
    lab.link(tor, "eth0", node, "eth0")
    tor.add_address("eth0", f"{TOR}/24", "fd00::1/64")
    node.add_address("eth0", f"{NODE}/24", f"{NODE6}/64")
    return tor, node


def tor_options(**neighbor: object) -> Options:
    told = Neighbor(**{"address": NODE, "asn": ASN, "families": FAMILIES, **neighbor})  # type: ignore[arg-type]
    return Options(asn=ASN, router_id=TOR, neighbors=(told,))


def start_node(node: Namespace, *, session: str = "hold-time 9;", name: str = "exabgp") -> Process:
    text = exabgp.configuration(
        local_address=NODE, router_id=NODE, asn=ASN, peers=[(TOR, ASN)], routes=ROUTES, session=session
    )
    return exabgp.start(node, text, name)


# --- each speaker


@needs_exabgp
@each_speaker
def test_a_speaker_reports_what_it_received(kind: type[Speaker], pair: tuple[Namespace, Namespace]) -> None:
    """Both families, communities, large community, MED, local preference, AS path; and the session."""
    tor, node = pair
    speaker = kind(tor, tor_options()).start()
    start_node(node)
    session = speaker.wait_established(NODE)
    route, route6 = speaker.wait_route(V4), speaker.wait_route(V6)
    assert (route.peer, route.next_hop, route.origin) == (NODE, NODE, "igp")
    assert route.as_path == (65001, 4200000001)
    assert (route.local_pref, route.med) == (200, 5)
    assert set(route.communities) == {"64512:100", "65535:65281"}
    assert route.large_communities == ("64512:1:2",)
    assert (route.best, route.usable, route.stale) == (True, True, False)
    assert (route6.next_hop, route6.communities) == (NODE6, ("64512:100",))
    assert set(speaker.routes(NODE)) == set(speaker.routes()) == {V4, V6}
    assert speaker.route_count(NODE) == 2
    assert (session.hold_time_s, session.keepalive_s, session.remote_id) == (9, 3, NODE)
    assert session.capabilities.families == {IPV4, IPV6}
    assert session.capabilities.four_octet_asn
    assert session.capabilities.graceful_restart
    assert session.capabilities.restart_time_s == 120
    assert session.capabilities.restart_families == {IPV4, IPV6}
    assert session.uptime_s is not None


@each_speaker
def test_a_speaker_takes_every_option(kind: type[Speaker], pair: tuple[Namespace, Namespace]) -> None:
    """None is refused at the start or later, alone or together with the others that make sense beside it."""
    near = Neighbor(
        address=NODE,
        asn=65000,
        port=1790,
        local_address=TOR,
        password="secret-1",
        multihop=3,
        passive=True,
        families=FAMILIES,
        restart_time_s=60,
        long_lived_s=600,
        extended_next_hop=True,
    )
    guarded = Neighbor(address="10.0.0.3", asn=65000, ttl_security=True, graceful_restart=False)
    internal = Neighbor(address="10.0.0.4", asn=ASN, multihop=4, password="secret-2")
    options = Options(
        asn=ASN, router_id=TOR, neighbors=(near, guarded, internal), originate=(V4, V6), listen_port=1179
    )
    speaker = kind(pair[0], options).start()
    speaker.reconfigure_neighbor(NODE, password="other", hold_time_s=30, keepalive_s=10, multihop=None)
    speaker.reconfigure(neighbors=(guarded,), originate=())
    assert not speaker.session("10.0.0.3").established
    with pytest.raises(KeyError):
        speaker.session(NODE)


@needs_exabgp
@each_speaker
def test_a_speaker_keeps_stale_routes_of_a_node_that_died(
    kind: type[Speaker], pair: tuple[Namespace, Namespace]
) -> None:
    """With graceful restart: stale after SIGKILL, fresh again when the node is back."""
    tor, node = pair
    speaker = kind(tor, tor_options()).start()
    process = start_node(node)
    speaker.wait_route(V4)
    process.kill()
    speaker.wait_down(NODE)
    assert speaker.wait_route(V4, where=lambda it: it.stale).stale
    start_node(node, name="again")
    speaker.wait_established(NODE)
    assert not speaker.wait_route(V4, where=lambda it: not it.stale).stale


@needs_exabgp
@each_speaker
def test_a_speaker_says_its_notification_when_it_is_stopped(
    kind: type[Speaker], pair: tuple[Namespace, Namespace]
) -> None:
    """6/2 or 6/3. (FRR leaves by a bare FIN where graceful restart was negotiated.)"""
    tor, node = pair
    speaker = kind(tor, tor_options(graceful_restart=False)).start()
    with BgpCapture(tor, "eth0") as capture:
        start_node(node)
        speaker.wait_route(V4)
        speaker.stop()
        capture.wait(lambda it: it.type is BgpType.NOTIFICATION and it.src == TOR, what="NOTIFICATION")
    assert capture.notifications()[0] in ((6, 2), (6, 3))
    assert capture.dropped == 0


@needs_exabgp
@each_speaker
def test_a_paused_node_is_told_that_its_hold_timer_expired(
    kind: type[Speaker], pair: tuple[Namespace, Namespace]
) -> None:
    tor, node = pair
    speaker = kind(tor, tor_options(hold_time_s=3, keepalive_s=1, graceful_restart=False)).start()
    with BgpCapture(tor, "eth0") as capture:
        process = start_node(node, session="hold-time 3;")
        speaker.wait_route(V4)
        process.pause()
        session = speaker.wait_down(NODE, 10.0)
        capture.wait(lambda it: it.notification == (4, 0), what="hold timer NOTIFICATION")
    assert session.notification in ((4, 0), None)  # GoBGP does not tell what it sent
    speaker.wait_no_route(V4)


@needs_exabgp
@each_speaker
@pytest.mark.parametrize(
    ("told", "session"),
    [
        pytest.param({"password": "secret-1"}, 'md5-password "secret-1";', id="md5"),
        pytest.param({"ttl_security": True}, "outgoing-ttl 255; incoming-ttl 255;", id="gtsm"),
        pytest.param({"port": 1790, "passive": True}, "hold-time 9;", id="passive"),
        pytest.param({"asn": 65000}, "hold-time 9; local-as 65000;", id="external"),
    ],
)
def test_a_speaker_does_what_its_neighbor_asks_for(
    kind: type[Speaker], told: dict[str, object], session: str, pair: tuple[Namespace, Namespace]
) -> None:
    tor, node = pair
    speaker = kind(tor, tor_options(**told)).start()
    if "asn" in told:
        text = exabgp.configuration(
            local_address=NODE,
            router_id=NODE,
            asn=65000,
            peers=[(TOR, ASN)],
            routes=[f"route {V4} next-hop {NODE}"],
        )
        exabgp.start(node, text)
    else:
        start_node(node, session=session)
    assert speaker.wait_route(V4).peer == NODE


@pytest.mark.needs(*Bird.programs)
@each_speaker
def test_a_changed_configuration_leaves_the_other_sessions_alone(
    kind: type[Speaker], pair: tuple[Namespace, Namespace]
) -> None:
    """Originated routes come and go, neighbors come and go, nothing but what changed is on the wire."""
    tor, node = pair
    speaker = kind(tor, tor_options(families=(IPV4,))).start()
    back = Neighbor(address=TOR, asn=ASN)
    far = Bird(node, Options(asn=ASN, router_id=NODE, neighbors=(back,), originate=(V4,))).start()
    speaker.wait_route(V4)
    with BgpCapture(tor, "eth0") as capture:
        speaker.reconfigure(neighbors=(*speaker.options.neighbors, Neighbor(address="10.0.0.9", asn=65009)))
        assert not speaker.session("10.0.0.9").established
        speaker.reconfigure(originate=("203.0.113.0/24", "198.51.100.0/24"))
        assert far.wait_route("203.0.113.0/24").next_hop == TOR
        speaker.reconfigure(originate=("198.51.100.0/24",), neighbors=speaker.options.neighbors[:1])
        far.wait_no_route("203.0.113.0/24")
    assert "198.51.100.0/24" in far.routes()
    assert set(capture.counts()) <= {"UPDATE", "KEEPALIVE"}
    assert far.session(TOR).established


@pytest.mark.needs(*Bird.programs)
@each_speaker
def test_a_hundred_thousand_routes_arrive(kind: type[Speaker], pair: tuple[Namespace, Namespace]) -> None:
    tor, node = pair
    far = Bird(node, Options(asn=ASN, router_id=NODE, neighbors=(Neighbor(address=TOR, asn=ASN),))).start()
    speaker = kind(tor, tor_options(families=(IPV4,)))
    speaker.options = Options(
        asn=ASN, router_id=TOR, neighbors=speaker.options.neighbors, originate=tuple(many_prefixes(100_000))
    )
    speaker.start()
    far.wait_route_count(TOR, 100_000)


# --- observing


@needs_exabgp
@pytest.mark.needs(*Bird.programs)
def test_the_capture_sees_a_whole_session_and_then_silence(pair: tuple[Namespace, Namespace]) -> None:
    """Two OPENs, the updates, and in a quiet second after End-of-RIB nothing but KEEPALIVEs."""
    tor, node = pair
    speaker = Bird(tor, tor_options(hold_time_s=3, keepalive_s=1)).start()
    with BgpCapture(tor, "eth0") as capture:
        start_node(node, session="hold-time 3;")
        speaker.wait_route(V6)
        for family in ("ipv4", "ipv6"):
            capture.wait(lambda it: it.end_of_rib and it.src == NODE, what=f"End-of-RIB for {family}")
        assert capture.counts()["OPEN"] == 2
        assert len(capture.messages(BgpType.UPDATE, src=NODE)) >= 2
    with BgpCapture(tor, "eth0") as quiet:
        poll(lambda: len(quiet.messages(BgpType.KEEPALIVE)) >= 3, 10.0, lambda: "no keepalives")
    assert quiet.besides_keepalives() == []
    assert quiet.dropped == 0


@needs_exabgp
@pytest.mark.needs(*Bird.programs)
def test_the_capture_outlives_a_cut_cable(pair: tuple[Namespace, Namespace]) -> None:
    """The hold timer expires while the cable is cut; what is said after it was mended is seen."""
    tor, node = pair
    speaker = Bird(tor, tor_options(hold_time_s=3, keepalive_s=1)).start()
    with BgpCapture(tor, "eth0") as capture:
        start_node(node, session="hold-time 3;")
        speaker.wait_established(NODE)
        tor.link_down("eth0")
        speaker.wait_down(NODE)
        tor.link_up("eth0")
        seen = len(capture.messages())
        speaker.wait_established(NODE, 30.0)
        capture.wait(
            lambda it: it in capture.messages(BgpType.OPEN)[2:], what="OPEN after the cable was mended"
        )
    assert len(capture.messages()) > seen


@needs_exabgp
@pytest.mark.needs(*Bird.programs)
def test_the_sampler_sees_no_loss_in_peace_and_a_loss_when_the_session_is_cut(
    pair: tuple[Namespace, Namespace],
) -> None:
    tor, node = pair
    bird = Bird(tor, tor_options(graceful_restart=False)).start()
    process = start_node(node)
    bird.wait_route(V6)
    with RouteSampler(bird.control_path, [V4, V6]) as sampler:
        sampler.wait_samples(50)
        assert sampler.result().losses == 0
        process.kill()
        bird.wait_no_route(V4)
        start_node(node, name="again")
        bird.wait_route(V4)
        bird.wait_route(V6)
        sampler.wait_samples()
    seen = sampler.result()
    assert (seen.losses, seen.lost) == (2, frozenset())
    assert 50 < seen.longest_loss_ms < 10_000
    assert seen.longest_blind_ms < 500


@needs_exabgp
@pytest.mark.needs(*Bird.programs)
def test_the_sampler_counts_a_route_that_stays_away(pair: tuple[Namespace, Namespace]) -> None:
    tor, node = pair
    bird = Bird(tor, tor_options(graceful_restart=False)).start()
    process = start_node(node)
    bird.wait_route(V6)
    with RouteSampler(bird.control_path, [V4, V6, "192.0.2.0/24"]) as sampler:
        sampler.wait_samples()
        process.kill()
        bird.wait_no_route(V6)
        sampler.wait_samples()
    assert sampler.result().lost == {V4, V6}


# --- the two-ToR fabric


@needs_exabgp
@pytest.mark.parametrize(
    "kind", [pytest.param(it, id=it.kind, marks=pytest.mark.needs(*it.programs)) for it in (Bird, Frr)]
)
def test_packets_reach_pods_through_the_routes_the_tors_learned(kind: type[Speaker], lab: Lab) -> None:
    """Three nodes, two ToRs, both families; each side sees the other's own address."""
    fabric = TwoTorFabric(lab, speakers=(kind, kind)).start()
    tors = [(tor.loopback, fabric.tor_asn) for tor in fabric.tors]
    for node in fabric.nodes:
        hops = (node.address, node.address6)
        routes = [f"route {cidr} next-hop {hop}" for cidr, hop in zip(node.pod_cidrs, hops, strict=True)]
        text = exabgp.configuration(
            local_address=node.address, router_id=node.address, asn=fabric.node_asn, peers=tors, routes=routes
        )
        exabgp.start(node.namespace, text)
    pod = fabric.add_pod(fabric.nodes[0], "188.188.0.10", "pod4")
    pod6 = fabric.add_pod(fabric.nodes[1], "fd00:188:188:1::10", "pod6")
    for tor in fabric.tors:
        for node in fabric.nodes:
            for cidr in node.pod_cidrs:
                assert tor.speaker.wait_route(cidr).peer == node.address
    for tor in fabric.tors:  # learned is not yet installed: FRR hands its routes to zebra, and zebra to the kernel
        for cidr in (str(ip_network(text)) for node in fabric.nodes for text in node.pod_cidrs):
            family = 6 if ":" in cidr else 4
            poll(
                lambda tor=tor, cidr=cidr, family=family: any(  # type: ignore[misc]
                    line.startswith(cidr) for line in tor.namespace.routes(family)
                ),
                10.0,
                lambda cidr=cidr: f"{cidr} is not in the kernel",  # type: ignore[misc]
            )
    poll(lambda: ping(fabric.outside, "188.188.0.10", timeout_s=0.2), 5.0, lambda: "no way to the pod")
    poll(lambda: ping(pod6, "fd00:11:11:250::12", timeout_s=0.2), 5.0, lambda: "no way from the v6 pod")
    assert source_seen(pod, fabric.outside, HEALTH_CHECKER) == "188.188.0.10"
    assert source_seen(fabric.outside, pod, "188.188.0.10", source=STRANGER) == STRANGER
    assert source_seen(fabric.add_f5(), pod, "188.188.0.10") == "11.8.37.4"


@needs_exabgp
@pytest.mark.needs(*Bird.programs)
def test_a_broken_path_to_one_tor_leaves_the_other_session_up(lab: Lab) -> None:
    fabric = TwoTorFabric(lab, neighbor=Neighbor(address="", asn=ASN, hold_time_s=3, keepalive_s=1)).start()
    node, (first, second) = fabric.nodes[0], fabric.tors
    text = exabgp.configuration(
        local_address=node.address,
        router_id=node.address,
        asn=fabric.node_asn,
        peers=[(tor.loopback, fabric.tor_asn) for tor in fabric.tors],
        routes=[f"route {node.pod_cidrs[0]} next-hop {node.address}"],
        session="hold-time 3;",
    )
    exabgp.start(node.namespace, text)
    for tor in fabric.tors:
        tor.speaker.wait_established(node.address)
    fabric.blackhole(node, first)
    first.speaker.wait_down(node.address)
    assert second.speaker.session(node.address).established
    fabric.heal(node, first)
    first.speaker.wait_established(node.address)
