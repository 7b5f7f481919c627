"""Who is behind the parents of ipvlans, as the programs there and in the pods are told."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.datapath import layout
from bgpd.datapath.layout import OwnerFlag
from bgpd.model.attachment import AttachmentKey
from bgpd.model.endpoint import Endpoint, IpvlanLink, IpvlanMode, VethLink
from bgpd.netlink.link import Link as Interface
from bgpd.policy import parents
from bgpd.policy.behind import left_out
from bgpd.policy.ipvlans import Own, entries, number_of, parents_of, places, refusal
from bgpd.policy.ondemand import heed
from bgpd.policy.parents import vlans_among
from bgpd.policy.podhooks import Meddling, Place

PARENT, OTHER = 2, 3
NODE, BESIDE = ip_address("192.0.2.1"), ip_address("192.0.2.9")
OWN = Own({PARENT: frozenset({BESIDE})}, (NODE, BESIDE), frozenset({PARENT, OTHER}), netns=77)
VETH = Endpoint(AttachmentKey("net", "v", "eth0"), None, "02:00:00:00:00:0b", (NODE,), VethLink(9, "veth9", None))


def pod(*addresses: str, parent: int = PARENT, mode: IpvlanMode = IpvlanMode.L2, index: int = 5) -> Endpoint:
    link = IpvlanLink(parent, "eth0", mode, Path(f"/run/netns/{addresses[0]}"), index, netns=8)
    key = AttachmentKey("net", addresses[0], "eth0")
    return Endpoint(key, None, "02:00:00:00:00:0a", tuple(map(ip_address, addresses)), link)


def number(endpoint: Endpoint) -> int:
    assert isinstance(endpoint.link, IpvlanLink)
    return number_of(endpoint, endpoint.link)


def owner(found: dict[tuple[str, bytes], bytes], address: str, parent: int = PARENT) -> tuple[int, int, int]:
    key = layout.IPVLAN_ADDRESS_KEY.pack(parent, layout.policy_address(ip_address(address)))
    pod, netns, flags, _ = layout.IPVLAN_OWNER.unpack(found["ipvlan_addresses", key])
    return pod, netns, flags


def test_addresses_are_the_pod_s_and_the_node_s() -> None:
    """The node's are everywhere; by an ipvlan of its own it can send to pods of that parent."""
    one = pod("198.51.100.10", "fd50::10")
    found = entries([one, VETH], OWN, [PARENT, OTHER])
    assert owner(found, "198.51.100.10") == owner(found, "fd50::10") == (number(one), 8, 0)
    assert owner(found, "192.0.2.1") == owner(found, "192.0.2.1", OTHER) == (0, 77, 0)
    assert owner(found, "192.0.2.9") == (0, 77, OwnerFlag.BESIDE)
    assert owner(found, "192.0.2.9", OTHER) == owner(found, "::") == (0, 77, 0)
    v4, v6, parent, _ = layout.IPVLAN_POD.unpack(found["ipvlan_pods", layout.POD_NUMBER.pack(number(one))])
    assert (v4, v6) == tuple(map(layout.policy_address, one.addresses))
    assert parent == PARENT


def test_a_pod_s_address_is_not_the_node_s() -> None:
    """Whoever has given it to both."""
    found = entries([pod("192.0.2.1")], OWN, [PARENT])
    assert owner(found, "192.0.2.1") == (number(pod("192.0.2.1")), 8, 0)


def test_what_the_node_sends_from_without_having_it() -> None:
    """IPv4 as addresses of both families have it."""
    found = entries([], OWN, [PARENT], foreign=[ip_network("203.0.113.0/28"), ip_network("2001:db8::/64")])
    prefixes = {key for name, key in found if name == "ipvlan_foreign"}
    v4 = struct.pack("=I", 96 + 28) + bytes(10) + b"\xff\xff" + ip_network("203.0.113.0/28").network_address.packed
    assert prefixes == {v4, struct.pack("=I", 64) + ip_network("2001:db8::/64").network_address.packed}


def test_the_ports_of_tunnels_are_told() -> None:
    """Of macvlans too. As headers have them."""
    assert entries([], OWN, [], tunnels=[4789]) == {("ipvlan_tunnels", b"\x12\xb5"): layout.PRESENT}
    told = parents.entries([], parents.Own({}, 0), [], tunnels=[4789])
    assert told == {("macvlan_tunnels", b"\x12\xb5"): layout.PRESENT}


@pytest.mark.parametrize("mode", list(IpvlanMode))
def test_a_parent_whose_pods_send_by_the_node_s_stack_is_told(mode: IpvlanMode) -> None:
    """All pods of a parent are in one mode."""
    found = entries([pod("198.51.100.10", mode=mode)], OWN, [PARENT, OTHER])
    assert owner(found, "::")[2] == (0 if mode is IpvlanMode.L2 else OwnerFlag.STACK)
    assert owner(found, "::", OTHER)[2] == 0


@pytest.mark.parametrize(
    ("mode", "flag"), [(IpvlanMode.L2, 0), (IpvlanMode.L3, 0), (IpvlanMode.L3S, OwnerFlag.STACK)]
)
def test_what_is_special_of_a_pod_is_told(mode: IpvlanMode, flag: int) -> None:
    one = pod("198.51.100.10", mode=mode)
    assert owner(entries([one], OWN, [PARENT]), "198.51.100.10")[2] == flag
    assert owner(entries([one], OWN, [PARENT], [number(one)]), "198.51.100.10")[2] == flag | OwnerFlag.CLOSED


def test_a_pod_is_where_its_interface_is() -> None:
    """Other kinds of interfaces are nobody's here."""
    pods = [pod("198.51.100.10"), pod("198.51.100.11", index=6), VETH]
    assert places(pods) == {
        number(pods[0]): Place(Path("/run/netns/198.51.100.10"), 5),
        number(pods[1]): Place(Path("/run/netns/198.51.100.11"), 6),
    }
    assert parents_of(pods) == {PARENT}


def test_the_node_s_vlans_are_told_where_a_parent_is_below_them() -> None:
    """And which of them are parents too, where their frames have been judged."""
    tag = (100, b"\x81\x00")
    vlan = Interface(OTHER, "eth0.100", "vlan", other=PARENT, vlan=tag)
    strangers = [Interface(8, "eth9.100", "vlan", other=7, vlan=tag), Interface(PARENT, "eth0", other=None)]
    own = replace(OWN, vlans=vlans_among([vlan, *strangers, replace(vlan, index=9, other_netns=4)]))
    key = "ipvlan_vlans", layout.VLAN_KEY.pack(PARENT, *tag)
    for at, above in (([PARENT], 0), ([PARENT, OTHER], OTHER)):
        told = {entry: value for entry, value in entries([], own, at).items() if entry[0] == "ipvlan_vlans"}
        assert told == {key: layout.VLAN.pack(above)}
    assert not [name for name, _ in entries([], own, [OTHER]) if name == "ipvlan_vlans"]
    stations = parents.entries([], parents.Own({}, 0, own.vlans), [PARENT])
    assert stations == {("macvlan_vlans", key[1]): layout.VLAN.pack(0)}


def test_there_is_room_for_pods_before_the_node_s_addresses() -> None:
    """And for those of its first interfaces before those of the last, which is where IPVS puts every Service's."""
    room = layout.MAPS["ipvlan_addresses"].max_entries
    first = ip_network("10.0.0.0/8").network_address
    node = (NODE, *(first + offset for offset in range(room)))
    own = Own({PARENT: frozenset({first})}, node, frozenset({PARENT}), netns=77)
    want = entries([pod("198.51.100.10")], own, [PARENT])
    out = left_out(want)
    assert len(want) - len(out) == room + 1  # and the pod itself, in a map of its own
    kept = [key for key in want if key not in out]
    for told in ("198.51.100.10", "192.0.2.1", "10.0.0.0", "10.0.0.1"):
        assert ("ipvlan_addresses", address_key(told)) in kept
    assert ("ipvlan_addresses", address_key(str(node[-1]))) in out
    assert left_out(entries([pod("198.51.100.10")], OWN, [PARENT])) == frozenset()


def address_key(address: str, parent: int = PARENT) -> bytes:
    return layout.IPVLAN_ADDRESS_KEY.pack(parent, layout.policy_address(ip_address(address)))


class Flood:
    """There is always news."""

    def __init__(self) -> None:
        self.told, self.closed = 0, False

    async def news(self) -> None:
        await asyncio.sleep(0)
        self.told += 1

    def close(self) -> None:
        self.closed = True


def heeded(flood: Flood, pause_s: float) -> list[int]:
    """What had been told at each look, for a while."""
    looks: list[int] = []

    async def scenario() -> None:
        task = asyncio.create_task(heed(flood, lambda: looks.append(flood.told), pause_s=pause_s))
        for _ in range(100):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    return looks


def test_a_pod_that_changes_something_all_the_time_is_looked_at_now_and_then() -> None:
    """The first news at once."""
    flood = Flood()
    assert (heeded(flood, pause_s=3600), flood.closed) == ([1], True)


def test_news_while_nobody_looks_are_looked_at_later() -> None:
    assert heeded(Flood(), pause_s=0)[:3] == [1, 2, 3]


ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6, network="2001:db8::/32")


@given(st.lists(ADDRESSES, min_size=2, max_size=9, unique=True))
def test_a_pod_has_its_number_for_its_addresses(addresses: list[object]) -> None:
    """In whatever order they are told, and no other pod has it; nor is it the node's."""
    texts = list(map(str, addresses))
    assert number(pod(*texts)) == number(pod(*reversed(texts))) != 0
    assert len({number(pod(each)) for each in texts} | {number(pod(texts[0], parent=OTHER))}) == len(texts) + 1


def test_what_a_switch_is_to_give_back_is_refused() -> None:
    link = pod("198.51.100.10").link
    assert isinstance(link, IpvlanLink)
    assert refusal(link) == ""
    reflecting = IpvlanLink(link.parent, link.name, link.mode, link.place, link.index, reflecting=True)
    assert refusal(reflecting).startswith("an ipvlan with the flag vepa")


def test_who_has_meddled_is_not_who_has_its_addresses_next() -> None:
    """One of a StatefulSet comes back with the address of the one before it."""
    meddling, before = Meddling(), {1: Place(Path("/run/netns/a"), 2), 7: Place(Path("/run/netns/b"), 2)}
    meddling.note([1, 9], before)
    assert meddling.among(before) == {1}
    after = {1: Place(Path("/run/netns/c"), 2)}
    assert meddling.among(after) == frozenset()
    meddling.forget_gone(before)
    assert meddling.among(before) == {1}
    meddling.forget_gone(after)
    assert meddling.among(before) == frozenset()
