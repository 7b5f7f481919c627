"""The kernel as node routes' target: 1,000 nodes beside 20,000 routes of somebody else, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from ipaddress import ip_address, ip_network
from typing import TypeVar

import pytest

from bgpd.config.schema import NodeRoutes, Vxlan
from bgpd.model.node import Node
from bgpd.model.noderoute import DEVICE, Device, DeviceKey, Key, Route, RouteKey, Value
from bgpd.model.outcome import DONE, Blocked, Retry
from bgpd.model.prefix import Prefix
from bgpd.noderoutes.plan import plan
from bgpd.noderoutes.target import Target, clear
from bgpd.runtime.diff import Change, diff
from tests.fabric.netns import Lab, Namespace

OWN = Node("own", (ip_network("10.240.0.0/24"),), (ip_address("192.168.0.1"), ip_address("fd00::1")))
FOREIGN = 20_000
T = TypeVar("T")


@pytest.fixture
def place(lab: Lab) -> Namespace:
    """A namespace with an uplink."""
    place, far = lab.namespace("place"), lab.namespace("far")
    lab.link(place, "eth0", far, "eth0")
    place.add_address("eth0", "192.168.0.1/20", "fd00::1/64")
    return place


def _nodes(count: int) -> dict[str, Node]:
    """Every third behind a router."""
    others = []
    for number in range(1, count + 1):
        cidrs = ip_network((int(ip_address("10.0.0.0")) + (number << 8), 24)), ip_network(f"fd10:0:{number:x}::/64")
        third, fourth = divmod(number + 1, 250)
        address = f"{'172.16' if number % 3 == 0 else '192.168'}.{third}.{fourth + 1}"
        others.append(Node(f"n{number}", cidrs, (ip_address(address), ip_address(f"fd00::{number + 1:x}"))))
    return {node.name: node for node in (OWN, *others)}


def _target(nodes: Mapping[str, Node]) -> Target:
    prefixes = frozenset[Prefix](prefix for node in nodes.values() if node is not OWN for prefix in node.pod_cidrs)
    return Target(lambda: prefixes, lambda: ())


def _changes(want: Mapping[Key, Value], have: Mapping[Key, Value]) -> list[Change[Key, Value]]:
    return diff(want, have, lambda key: key.order, prune=True)


def test_a_thousand_nodes_beside_twenty_thousand_foreign_routes(lab: Lab, place: Namespace) -> None:
    """All are made, twice over without harm, read back as wanted, and taken out; no foreign one is touched."""
    first = ip_address("100.64.0.0")
    place.ip(*(f"route add {first + number}/32 dev eth0 proto bird" for number in range(FOREIGN)))
    place.ip("route add 10.0.1.0/24 dev eth0 proto static metric 7")
    foreign = len(place.routes())
    nodes = _nodes(1000)

    async def work(target: Target) -> None:
        have = await target.observe()
        planned = plan(NodeRoutes.AUTO, Vxlan(), OWN, nodes, target.seen.host)
        assert list(planned.held) == [ip_network("10.0.1.0/24")]
        assert "proto static metric 7" in planned.held[ip_network("10.0.1.0/24")]
        changes = _changes(planned.want, have)
        outcomes = await target.apply(changes)
        assert set(outcomes) == {DONE}
        again = {type(outcome) for outcome in await target.apply(changes)}
        assert again <= {type(DONE), Retry}, "a route that is there already is nobody's to overwrite"
        have = await target.observe()
        assert _changes(planned.want, have) == []

    place.call(lambda: _run(_target(nodes), work))
    assert len(place.routes()) == foreign + 999
    place.call(lambda: clear(lab.directory))
    assert len(place.routes()) == foreign


def test_a_foreign_route_that_nobody_looked_for(place: Namespace) -> None:
    """It is found when ours is to be made, at whatever metric."""
    place.ip("route add 10.0.1.0/24 dev eth0 proto bird metric 32", "route add blackhole 10.0.2.0/24 metric 9")

    async def work(target: Target) -> list[object]:
        await target.observe()
        route = Route(ip_address("192.168.0.2"), "eth0")
        keys = [RouteKey.of(ip_network(f"10.0.{number}.0/24")) for number in (1, 2, 3)]
        return list(await target.apply([Change(key, route, None) for key in keys]))

    first, second, third = place.call(lambda: _run(_target({}), work))
    assert isinstance(first, Retry)
    assert isinstance(second, Retry)
    assert third == DONE
    assert [route for route in place.routes() if "proto 179" in route] == [
        "10.0.3.0/24 via 192.168.0.2 dev eth0 proto 179 "
    ]


@pytest.mark.parametrize("meanwhile", ["nothing", "replaced", "deleted"])
def test_a_route_that_is_another_since_the_look(place: Namespace, meanwhile: str) -> None:
    """A node's new address: one route for another, in both families. But not for what somebody else has put in
    its place since, nor where somebody has taken ours away: that is for the next look to find."""
    prefixes = ip_network("10.7.7.0/24"), ip_network("fd10:7::/64")
    old, new = ("192.168.0.7", "fd00::7"), ("192.168.0.8", "fd00::8")

    def wanted(addresses: tuple[str, str]) -> dict[Key, Value]:
        hops = zip(prefixes, addresses, strict=True)
        return {RouteKey.of(prefix): Route(ip_address(hop), "eth0") for prefix, hop in hops}

    def shown() -> list[str]:
        return [
            line for version in (4, 6) for line in place.routes(version) if "7.7.0/24" in line or "fd10:7" in line
        ]

    async def work(target: Target) -> None:
        await target.observe()
        await target.apply(_changes(wanted(old), {}))
        have = await target.observe()
        if meanwhile == "replaced":
            place.ip("route replace 10.7.7.0/24 via 192.168.0.9 proto static metric 0")
            place.ip("route replace fd10:7::/64 via fd00::9 proto static metric 1024")
        elif meanwhile == "deleted":
            place.ip("route del 10.7.7.0/24", "route del fd10:7::/64")
        before = shown()
        outcomes = await target.apply(_changes(wanted(new), have))
        if meanwhile == "nothing":
            assert set(outcomes) == {DONE}
            assert await target.observe() == wanted(new)
            assert len(shown()) == 2
        else:
            assert {type(outcome) for outcome in outcomes} == {Retry}
            assert shown() == before

    place.call(lambda: _run(_target({}), work))


def test_an_interface_with_our_name(place: Namespace) -> None:
    """It is not ours, stays, and is named."""
    place.ip(f"link add {DEVICE} type bridge")

    async def work(target: Target) -> object:
        have = await target.observe()
        want = Device(179, 4789, ip_address("192.168.0.1"), "02:00:00:00:00:01", 1450)
        (outcome,) = await target.apply([Change(DeviceKey(), want, have[DeviceKey()])])
        return outcome

    outcome = place.call(lambda: _run(_target({}), work))
    assert isinstance(outcome, Blocked)
    assert "of kind bridge" in outcome.reason


@pytest.mark.parametrize("vxlan", [Vxlan(port=8472), Vxlan(vni=77)], ids=["port", "vni"])
def test_a_device_made_anew_has_all_that_the_old_one_had(place: Namespace, vxlan: Vxlan) -> None:
    """Addresses, forwarding entries, neighbors and routes lie on it before anybody looks again."""
    nodes = _nodes(30)

    async def work(target: Target) -> None:
        have = await target.observe()
        before = plan(NodeRoutes.VXLAN, Vxlan(), OWN, nodes, target.seen.host).want
        assert set(await target.apply(_changes(before, have))) == {DONE}
        index = target.seen.indexes[DEVICE]
        have = await target.observe()
        after = plan(NodeRoutes.VXLAN, vxlan, OWN, nodes, target.seen.host).want
        (outcome,) = await target.apply(_changes(after, have))
        assert isinstance(outcome, Retry), "what is on it has to be read again all the same"
        assert await target.observe() == after
        assert target.seen.indexes[DEVICE] != index

    place.call(lambda: _run(_target(nodes), work))


def _run(target: Target, work: Callable[[Target], Coroutine[None, None, T]]) -> T:
    with contextlib.closing(target):
        return asyncio.run(work(target))
