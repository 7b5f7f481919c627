"""What the programs at a parent of macvlans say of a frame: headers that lie, and whose they are."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import pytest

from bgpd.datapath import features, layout
from bgpd.datapath.layout import Peer, PolicyVerdict, StationFlag
from bgpd.datapath.loader import Installed
from bgpd.policy import parents
from tests.bpf.conftest import emptied
from tests.bpf.fill import clear
from tests.bpf.packets import ICMPV6, SOURCE_V4, SOURCE_V6, TCP, ipv4, ipv6
from tests.bpf.program import run
from tests.fabric.rules_by_hand import verdicts

LOOPBACK = 1  # the interface that a test run says a packet is at
NEXT, SHOT = 0xFFFFFFFF, 2  # TC_ACT_UNSPEC, TC_ACT_SHOT
RECEIVER, SENDER = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"  # as `packets` has them
V4, V6 = ip_address("10.244.1.3"), ip_address("2001:db8:244::3")
HTTP = struct.pack("!HH", 40000, 80) + bytes(9) + b"\x02" + bytes(6)
FRAMES = {4: ipv4(V4, HTTP, protocol=TCP), 6: ipv6(V6, HTTP, next_header=TCP)}  # type: ignore[arg-type]
HEADERS = {b"\x08\x00": 34, b"\x86\xdd": 54}  # with less the kernel makes no packet of it
both = pytest.mark.parametrize("version", [4, 6])
ingress, egress = "macvlan_ingress", "macvlan_egress_v6_6"


@pytest.fixture(scope="module")
def shared_macvlan(shared_policy: Installed, shared: Path) -> Installed:
    """Its maps are those of the policy's object too."""
    assert shared_policy
    return parents.install(shared)


@pytest.fixture
def macvlan(shared_macvlan: Installed) -> Installed:
    return emptied(shared_macvlan)


@pytest.fixture
def policed(macvlan: Installed) -> Installed:
    """Sender and receiver are pods, in bridge mode: ingress has their frames from the kernel."""
    station(macvlan, SENDER, SOURCE_V4, SOURCE_V6, flags=StationFlag.BRIDGE)
    station(macvlan, RECEIVER, V4, V6, flags=StationFlag.BRIDGE)
    return macvlan


def station(macvlan: Installed, mac: bytes, *addresses: object, flags: int = 0, alias: bytes = b"") -> None:
    v4, v6 = (layout.policy_address(each) for each in addresses) if addresses else (bytes(16), bytes(16))  # type: ignore[arg-type]
    key = layout.STATION_KEY.pack(LOOPBACK, alias or mac, bytes(2))
    macvlan.maps["macvlan_stations"].update({key: layout.STATION.pack(v4, v6, 0, mac, flags)})
    owned = (layout.ADDRESS_KEY.pack(LOOPBACK, each) for each in (v4, v6) if addresses)
    macvlan.maps["macvlan_addresses"].update(dict.fromkeys(owned, layout.OWNER.pack(mac, bytes(2))))


def isolate(macvlan: Installed, *addresses: object, peer: Peer) -> None:
    keys = [layout.policy_address(each) for each in addresses]  # type: ignore[arg-type]
    macvlan.maps["policy_peers"].update(dict.fromkeys(keys, layout.PEER.pack(*peer)))


def said(macvlan: Installed, frame: bytes, name: str = ingress) -> PolicyVerdict:
    """The one verdict that this frame has added."""
    before = verdicts(macvlan.maps["policy_verdicts"])
    program = macvlan.programs.get(name) or macvlan.programs["macvlan_egress"]
    value = run(program.pin, frame).value
    ((verdict, _),) = verdicts(macvlan.maps["policy_verdicts"]).items() - before.items()
    assert value == (SHOT if verdict >= PolicyVerdict.DENIED_EGRESS else NEXT)
    return verdict


def test_one_program_for_egress_is_put_into_the_kernel(macvlan: Installed) -> None:
    fit = "macvlan_egress" if features.can_tell_netns() else "macvlan_egress_v6_6"
    assert macvlan.programs.keys() == {fit, "macvlan_ingress"}
    assert set(parents.programs(macvlan).values()) == set(macvlan.programs.values())


@both
def test_what_is_not_for_a_pod_and_not_from_one_is_the_node_s(macvlan: Installed, version: int) -> None:
    assert said(macvlan, FRAMES[version]) is PolicyVerdict.NOT_ISOLATED


@both
def test_a_pod_sends_from_its_addresses(policed: Installed, version: int) -> None:
    frame = FRAMES[version]
    assert said(policed, frame) is PolicyVerdict.NOT_ISOLATED
    assert said(policed, frame, egress) is PolicyVerdict.NOT_ISOLATED
    clear(policed.maps["macvlan_addresses"])
    assert said(policed, frame) is PolicyVerdict.SPOOFED
    assert said(policed, frame, egress) is PolicyVerdict.SPOOFED


@both
def test_nobody_else_sends_from_a_pod_s_address(policed: Installed, version: int) -> None:
    frame = FRAMES[version][:6] + b"\x02\0\0\0\0\x09" + FRAMES[version][12:]
    assert said(policed, frame) is PolicyVerdict.SPOOFED
    assert said(policed, frame, egress) is PolicyVerdict.STRANGER
    station(policed, b"\x02\0\0\0\0\x09", flags=StationFlag.NODE)
    assert said(policed, frame, egress) is PolicyVerdict.SPOOFED


@both
def test_a_pod_whose_frames_all_leave_has_sent_none_that_comes_in(policed: Installed, version: int) -> None:
    """But those that egress gives back; a switch may give back all it is sent, and anybody may forge some."""
    station(policed, SENDER, SOURCE_V4, SOURCE_V6, flags=StationFlag.VEPA)
    assert said(policed, FRAMES[version]) is PolicyVerdict.SPOOFED
    station(policed, SENDER, SOURCE_V4, SOURCE_V6)
    assert said(policed, FRAMES[version]) is PolicyVerdict.SPOOFED


@both
def test_rules_are_asked_at_both_hooks(policed: Installed, version: int) -> None:
    isolate(policed, SOURCE_V4, SOURCE_V6, peer=Peer(1, egress_set=99))
    assert said(policed, FRAMES[version]) is PolicyVerdict.DENIED_EGRESS
    assert said(policed, FRAMES[version], egress) is PolicyVerdict.DENIED_EGRESS
    isolate(policed, SOURCE_V4, SOURCE_V6, peer=Peer(1))
    isolate(policed, V4, V6, peer=Peer(2, ingress_set=99))
    assert said(policed, FRAMES[version]) is PolicyVerdict.DENIED_INGRESS


@both
def test_the_pod_of_a_passthru_parent_has_whatever_comes(macvlan: Installed, version: int) -> None:
    """By any MAC address: the kernel gives it all of it."""
    other = b"\x02\0\0\0\0\x07"
    station(macvlan, other, V4, V6, flags=StationFlag.PASSTHRU)
    isolate(macvlan, V4, V6, peer=Peer(2, ingress_set=99))
    assert said(macvlan, FRAMES[version]) is PolicyVerdict.NOT_ISOLATED
    station(macvlan, other, V4, V6, flags=StationFlag.PASSTHRU, alias=bytes(6))
    assert said(macvlan, FRAMES[version]) is PolicyVerdict.DENIED_INGRESS
    assert said(macvlan, b"\xff" * 6 + FRAMES[version][6:]) is PolicyVerdict.DENIED_INGRESS


@pytest.mark.parametrize("kind", [134, 137])
def test_pods_are_no_routers(policed: Installed, kind: int) -> None:
    frame = ipv6(V6, struct.pack("!BBHI", kind, 0, 0, 0) + bytes(40), next_header=ICMPV6)  # type: ignore[arg-type]
    assert said(policed, frame) is said(policed, frame, egress) is PolicyVerdict.SPOOFED


def cut(frame: bytes) -> Iterable[bytes]:
    return (frame[:length] for length in range(HEADERS[frame[12:14]], len(frame)))


@both
def test_what_is_cut_off_is_never_taken_for_a_pod_s(policed: Installed, version: int) -> None:
    clear(policed.maps["macvlan_addresses"])
    assert all(said(policed, each) >= PolicyVerdict.DENIED_EGRESS for each in cut(FRAMES[version]))
