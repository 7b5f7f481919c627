"""Pods on a macvlan of the node's uplink whose way out leads through the node: they are pods like all others.

A pod's packets on a macvlan meet the host's stack only where the pod's routes say so. Two such ways are in use: an
interface of the node on the same macvlan, which is the pods' gateway, and a cable (veth) beside the macvlan, as
Spiderpool's coordinator lays it, with the default route moved to it. What leaves by the macvlan itself goes straight
to the wire, past every table of the node, and keeps its address: nothing on the node can translate it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from ipaddress import ip_interface

import pytest

from tests.fabric.masq_node import IPV4, IPV6, PLANS, MasqPlace, Plan, alone, datagram_seen, echo_request_seen
from tests.fabric.masq_site import MasqSite
from tests.fabric.netns import Namespace
from tests.fabric.reach import source_seen

pytestmark = pytest.mark.needs("nft", "mount")

GATEWAY: Mapping[Plan, str] = {IPV4: "10.244.1.193/28", IPV6: "fd44:1::b:1/124"}
POD: Mapping[Plan, str] = {IPV4: "10.244.1.194/28", IPV6: "fd44:1::b:2/124"}
WAYS_OF_SEEING = (source_seen, datagram_seen, echo_request_seen)  # TCP, UDP, ICMP


def macvlan(place: MasqPlace, owner: Namespace, name: str) -> None:
    """An interface of `owner` on the node's uplink, in bridge mode."""
    place.node.ip(
        "link add link eth0 name macvlan type macvlan mode bridge",
        f"link set macvlan netns {owner.netns_name} name {name}",
    )
    owner.link_up(name)


def by_a_gateway(place: MasqPlace) -> Namespace:
    """The node has an interface on the macvlan, which is the pod's default gateway."""
    pod = place.lab.namespace("pod-macvlan")
    macvlan(place, place.node, "shim")
    macvlan(place, pod, "eth0")
    for plan in PLANS:
        place.node.add_address("shim", GATEWAY[plan])
        pod.add_address("eth0", POD[plan])
        pod.add_route("default", via=address(GATEWAY, plan))
    return pod


def by_a_cable(place: MasqPlace) -> Namespace:
    """A cable to the node that has no addresses of its own: routes and neighbors are entered by hand on both ends."""
    pod = place.lab.namespace("pod-macvlan")
    macvlan(place, pod, "eth0")
    place.lab.link(pod, "veth0", place.node, "veth-pod")
    for plan in PLANS:
        pod.add_address("eth0", alone(address(POD, plan)))
        pod.ip(
            f"neigh add {plan.node} lladdr {hardware_address(place.node, 'veth-pod')} dev veth0",
            f"route add {alone(plan.node)} dev veth0",
            f"route add default via {plan.node} dev veth0 src {address(POD, plan)}",
        )
        place.node.ip(
            f"neigh add {address(POD, plan)} lladdr {hardware_address(pod, 'veth0')} dev veth-pod",
            f"route add {alone(address(POD, plan))} dev veth-pod",
        )
    return pod


def address(where: Mapping[Plan, str], plan: Plan) -> str:
    return str(ip_interface(where[plan]).ip)


def hardware_address(namespace: Namespace, interface: str) -> str:
    (shown,) = json.loads(namespace.run(["ip", "-json", "link", "show", interface]).stdout)
    return str(shown["address"])


@pytest.mark.parametrize("through_the_node", [by_a_gateway, by_a_cable])
def test_what_goes_through_the_node_follows_the_list(
    masquerading: MasqSite, through_the_node: Callable[[MasqPlace], Namespace]
) -> None:
    """In both families, with TCP, UDP and ICMP; towards pods, the node, and from outside nothing is translated."""
    place = masquerading.place
    pod = through_the_node(place)
    for plan in PLANS:
        own = address(POD, plan)
        for seen in WAYS_OF_SEEING:
            assert seen(pod, place.outside, plan.listed) == own
            assert seen(pod, place.outside, plan.unlisted) == plan.node
            assert seen(pod, place.outside, plan.remote_pod) == own
            assert seen(pod, place.pod_c, plan.pod_c) == own
            assert seen(pod, place.node, plan.loopback) == own
            assert seen(place.outside, pod, own) == plan.outside


def test_what_leaves_by_the_macvlan_itself_keeps_its_address(masquerading: MasqSite) -> None:
    """Though the list does not name its destination; the same pod's other traffic is translated."""
    place = masquerading.place
    pod = by_a_cable(place)
    for plan in PLANS:
        own = address(POD, plan)
        assert source_seen(pod, place.outside, plan.unlisted) == plan.node
        pod.add_route(alone(plan.outside), dev="eth0")
        pod.add_route(alone(plan.unlisted), via=plan.outside)
        place.outside.add_route(alone(own), dev="eth0")
        for seen in WAYS_OF_SEEING:
            assert seen(pod, place.outside, plan.unlisted) == own
