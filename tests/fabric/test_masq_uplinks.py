"""A node with two uplinks of which one goes down: which flows go on depends on the address that they were given.

With `uplink` each flow has the address of the interface that it left by, and the kernel forgets these translations
with the interface. An address of the node itself, as `InternalIP` or written out, is not bound to any.
"""

from __future__ import annotations

import json

import pytest

from tests.fabric.masq_node import IPV4, PLANS, Plan, alone, speaks, tcp_stream
from tests.fabric.masq_site import MasqSite

pytestmark = pytest.mark.needs("nft", "mount")

SECOND = {IPV4: ("192.0.3.1", "192.0.3.2", "/24"), PLANS[1]: ("fd9a::1", "fd9a::2", "/64")}


@pytest.fixture
def site(masq_site: MasqSite) -> MasqSite:
    """Not started. The second uplink is there and not used."""
    place = masq_site.place
    place.lab.link(place.node, "eth1", place.outside, "eth1")
    for here, there, length in SECOND.values():
        place.node.add_address("eth1", here + length)
        place.outside.add_address("eth1", there + length)
    return masq_site


def lose_the_first(site: MasqSite) -> None:
    """As a routing daemon has it on both ends."""
    site.place.node.link_down("eth0")
    for plan, (here, there, _) in SECOND.items():
        for far in (plan.listed, plan.unlisted):
            site.place.node.add_route(alone(far), via=there)
        for near in (plan.pods, alone(plan.loopback)):
            site.place.outside.add_route(near, via=here)


@pytest.mark.parametrize("plan", PLANS, ids=["ipv4", "ipv6"])
def test_with_an_address_of_the_node_open_flows_change_uplinks(site: MasqSite, plan: Plan) -> None:
    """Nobody at the other end notices; the new ones get it too."""
    section = site.node.config["masquerade"]
    section["snatAddress"] = {f"ipv{each.version}": each.loopback for each in PLANS}
    site.node.write_config()
    site.write(*(each.listed for each in PLANS))
    site.node.start_daemon()
    site.wait_seen(plan.loopback, plan.unlisted)
    with tcp_stream(site.place.pod_a, site.place.outside, plan.unlisted) as stream:
        lose_the_first(site)
        assert speaks(*stream)
        assert stream[1].getpeername()[0] == plan.loopback
    assert (site.seen(plan.unlisted), site.seen(plan.listed)) == (plan.loopback, plan.pod_a)


def test_an_address_that_the_node_does_not_have_is_doubted(site: MasqSite) -> None:
    """Not refused: a fabric may route to the node what no interface of it has."""
    site.node.config["masquerade"]["snatAddress"] = {"ipv4": IPV4.loopback, "ipv6": "2001:db8::bad"}
    site.node.write_config()
    told = json.loads(site.node.bgpd("doctor", "-o", "json", check=False))
    (doubted,) = [row for row in told if "snatAddress" in row["what"]]
    assert (doubted["what"], doubted["state"]) == ("masquerade: snatAddress.ipv6", "warn")
    assert "2001:db8::bad is not on this node" in doubted["text"]


@pytest.mark.parametrize("plan", PLANS, ids=["ipv4", "ipv6"])
def test_with_the_address_of_the_uplink_open_flows_end_with_it(site: MasqSite, plan: Plan) -> None:
    """What is kept goes on, for it has no address of the node; new flows get the other uplink's."""
    site.start()
    place = site.place
    with (
        tcp_stream(place.pod_a, place.outside, plan.unlisted) as masqueraded,
        tcp_stream(place.pod_a, place.outside, plan.listed) as kept,
    ):
        assert masqueraded[1].getpeername()[0] == plan.node
        lose_the_first(site)
        assert not speaks(*masqueraded)
        assert speaks(*kept)
    assert (site.seen(plan.unlisted), site.seen(plan.listed)) == (SECOND[plan][0], plan.pod_a)
