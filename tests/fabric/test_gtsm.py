"""TTL security (RFC 5082) at the one listening socket that all peers of a local address dial.

Both ToRs dial the node's one address and are not dialled. A ToR is `guarded` when it demands a TTL that only a
sender of 255 has; whether the node demands that of it is `ttlSecurity`. Each kind of speaker is tried alone in
`test_options_transport`.
"""

from __future__ import annotations

import pytest

from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.observe import BgpCapture
from tests.fabric.peer import FAMILIES, Neighbor
from tests.fabric.test_options_lab import wait_counter
from tests.fabric.topology import CABLE, TorPlace, TwoTorFabric

pytestmark = pytest.mark.needs("bird")

UP_S = 40


def dialled(lab: Lab, *demands: bool) -> tuple[TwoTorFabric, BgpdNode]:
    """The node demands TTL security of each ToR or not, in their order, and waits for all of them to dial."""
    fabric = TwoTorFabric(lab, neighbor=Neighbor(address="", asn=0, families=FAMILIES, multihop=2)).start()
    bgp = two_tor_bgp(fabric, passive=True)
    for peer, demand in zip(bgp["peers"], demands, strict=True):
        peer["ttlSecurity"] = demand
    return fabric, BgpdNode.at(fabric.nodes[0], bgp).start()


def guard(fabric: TwoTorFabric, tor: TorPlace) -> None:
    tor.speaker.reconfigure_neighbor(fabric.nodes[0].address, ttl_security=True)


def wait_unanswered(tor: TorPlace) -> None:
    """Waits until this ToR has dialled the node twice in vain. The other nodes run nothing and refuse at once."""
    wait_counter(tor.namespace, "TCPSynRetrans", at_least=2)


def accepted(node: BgpdNode, tor: TorPlace) -> list[str]:
    """What the node's kernel has of this ToR, in whatever state."""
    return node.namespace.run(["ss", "-H", "-t", "-n", "-a", "dst", tor.loopback]).stdout.splitlines()


def wait_up(fabric: TwoTorFabric, tor: TorPlace) -> None:
    """Established, and the route has come: both directions have gone on past the handshake."""
    tor.speaker.wait_established(fabric.nodes[0].address, UP_S)
    tor.speaker.wait_route(fabric.nodes[0].pod_cidrs[0], UP_S, where=lambda route: not route.stale)


def test_a_peer_with_ttl_security_and_one_without_dial_the_same_address(lab: Lab) -> None:
    """Both sessions come up."""
    fabric, _ = dialled(lab, True, False)
    guard(fabric, fabric.tors[0])
    for tor in fabric.tors:
        wait_up(fabric, tor)


def test_a_demand_holds_although_the_socket_is_shared(lab: Lab) -> None:
    """The ToR that is to have TTL security and has not is told nothing, the other is up; guarded, it comes up."""
    fabric, node = dialled(lab, True, False)
    a, b = fabric.tors
    wait_up(fabric, b)
    with BgpCapture(fabric.nodes[0].namespace, CABLE) as capture:
        capture.wait(lambda it: it.src == a.loopback)
    assert [str(it) for it in capture.messages(dst=a.loopback)] == []
    assert node.peer("tor-a")["state"] == "down"
    guard(fabric, a)
    wait_up(fabric, a)


def test_a_demand_that_is_given_up_counts_at_once(lab: Lab) -> None:
    """Neither ToR has TTL security: they get no answer while the node demands it of both, and then they do."""
    fabric, node = dialled(lab, True, True)
    for tor in fabric.tors:
        wait_unanswered(tor)
        assert accepted(node, tor) == []
    for peer in node.config["bgp"]["peers"]:
        del peer["ttlSecurity"]
    node.write_config()
    node.bgpd("reload")
    for tor in fabric.tors:
        wait_up(fabric, tor)
