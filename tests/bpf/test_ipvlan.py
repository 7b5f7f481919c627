"""What the program at a parent of ipvlans says of a frame that leaves: whose address may be sent from there."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from bgpd.datapath import features, layout, loader
from bgpd.datapath.layout import ORIGIN_STACK, OwnerFlag, Peer, PolicyVerdict
from bgpd.datapath.links import Hook
from bgpd.datapath.loader import Installed
from bgpd.netlink.links import own_cookie
from bgpd.policy import ipvlans, parents
from bgpd.policy.podhooks import FILTER
from tests.bpf.conftest import emptied
from tests.bpf.program import run
from tests.fabric import frames
from tests.fabric.frames import EVERYBODY
from tests.fabric.rules_by_hand import verdicts

LOOPBACK = 1  # the interface that a test run says a packet is at
POD = 77
MAC, GATEWAY = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
ABROAD = {4: "192.0.2.1", 6: "2001:db8:ffff::1"}
FURTHER = {4: "203.0.113.7", 6: "2001:db8:7::7"}  # nobody was attached with it
POOLS = [ip_network("203.0.113.0/28"), ip_network("2001:db8:7::/64")]
BESIDE = {4: "203.0.113.16", 6: "2001:db8:8::7"}  # of no pool, by one bit
EGRESS = ipvlans.KIND.names[Hook.EGRESS]
both = pytest.mark.parametrize("version", [4, 6])


def claims(version: int, address: str) -> list[bytes]:
    """A datagram from this address, and what tells others of it."""
    to = ABROAD[version]
    if version == 4:
        return [frames.udp(GATEWAY, MAC, address, to), frames.arp(EVERYBODY, MAC, MAC, address, address)]
    return [frames.udp(GATEWAY, MAC, address, to), frames.advertisement(GATEWAY, MAC, address, to, address)]


def said(installed: Installed, version: int, address: str, priority: int = 0) -> set[PolicyVerdict]:
    return {verdict_on(installed, frame, priority) for frame in claims(version, address)}


def verdict_on(installed: Installed, frame: bytes, priority: int = 0) -> PolicyVerdict:
    before = verdicts(installed.maps["policy_verdicts"])
    run(parents.program(installed, EGRESS).pin, frame, priority=priority)
    ((verdict, _),) = verdicts(installed.maps["policy_verdicts"]).items() - before.items()
    return verdict


def own(installed: Installed, address: str, *, pod: int = 0, netns: int = 0, flags: int = 0) -> None:
    key = layout.IPVLAN_ADDRESS_KEY.pack(LOOPBACK, layout.policy_address(ip_address(address)))
    installed.maps["ipvlan_addresses"].update({key: layout.IPVLAN_OWNER.pack(pod, netns, flags, 0)})


def permit(installed: Installed) -> None:
    keys = map(layout.policy_prefix, POOLS)
    installed.maps["ipvlan_foreign"].update(dict.fromkeys(keys, layout.PRESENT))


@pytest.fixture(scope="module")
def shared_before(shared_policy: Installed, shared: Path) -> Installed:
    """With the programs for kernels that do not say where a packet comes from."""
    assert shared_policy
    return loader.install(loader.shipped("ipvlan"), shared, without=[EGRESS, FILTER])


@pytest.fixture
def before(shared_before: Installed) -> Installed:
    return emptied(shared_before)


@both
def test_whatever_address_the_node_has_may_be_sent_from(before: Installed, version: int) -> None:
    assert said(before, version, FURTHER[version]) == {PolicyVerdict.SPOOFED}
    own(before, FURTHER[version])
    assert said(before, version, FURTHER[version]) == {PolicyVerdict.NOT_ISOLATED}


@both
def test_what_is_configured_to_be_foreign_may_be_sent_from_without_being_had(before: Installed, version: int) -> None:
    permit(before)
    assert said(before, version, FURTHER[version]) == {PolicyVerdict.NOT_ISOLATED}
    assert said(before, version, BESIDE[version]) == {PolicyVerdict.SPOOFED}


@both
def test_a_pod_is_judged_whose_address_is_configured_to_be_foreign(before: Installed, version: int) -> None:
    permit(before)
    own(before, FURTHER[version], pod=POD)
    isolated = layout.PEER.pack(*Peer(7, egress_set=1))
    before.maps["policy_peers"].update({layout.policy_address(ip_address(FURTHER[version])): isolated})
    assert said(before, version, FURTHER[version]) == {PolicyVerdict.DENIED_EGRESS, PolicyVerdict.NEIGHBOR}
    own(before, FURTHER[version], pod=POD, flags=OwnerFlag.CLOSED)
    assert said(before, version, FURTHER[version]) == {PolicyVerdict.STRANGER}


@both
def test_where_the_kernel_says_who_sends_the_node_s_addresses_are_the_node_s(directory: Path, version: int) -> None:
    """All that it may have, and nobody else's; what is configured changes nothing."""
    if not features.can_tell_netns():
        pytest.skip("this kernel does not tell a program where a packet was sent: Linux 6.15 does")
    loader.install(loader.shipped("policy"), directory)
    installed = parents.install(directory, ipvlans.KIND)
    own(installed, "::", netns=own_cookie())
    tagged = frames.udp(GATEWAY, MAC, FURTHER[version], ABROAD[version], vlan=5)
    assert said(installed, version, FURTHER[version]) == {PolicyVerdict.NOT_ISOLATED}
    assert verdict_on(installed, tagged) is PolicyVerdict.NOT_ISOLATED
    own(installed, "::", netns=own_cookie() + 1)
    permit(installed)
    assert said(installed, version, FURTHER[version]) == {PolicyVerdict.SPOOFED}
    assert verdict_on(installed, tagged) is PolicyVerdict.NOT_IP


@both
@pytest.mark.parametrize("tag", [b"\x81\x00", b"\x88\xa8"], ids=["802.1Q", "802.1ad"])
def test_a_tag_in_the_frame_itself_is_nobody_s_where_nobody_tells_who_sends(
    before: Installed, version: int, tag: bytes
) -> None:
    """What is behind it would leave unseen. Of other frames that are not IP, nobody knows that a pod sends them."""
    own(before, "::", netns=own_cookie())
    frame = frames.udp(GATEWAY, MAC, FURTHER[version], ABROAD[version], vlan=5)
    assert verdict_on(before, frame[:12] + tag + frame[14:]) is PolicyVerdict.NOT_IP
    assert verdict_on(before, frames.ethernet(GATEWAY, MAC, 0x88CC, bytes(46))) is PolicyVerdict.NOT_ISOLATED


@both
def test_what_the_table_has_judged_leaves_whatever_it_was_masqueraded_to(before: Installed, version: int) -> None:
    """But from no pod's address without its rules; and in mode L2 whoever sends can say that it was judged."""
    own(before, "::")
    assert said(before, version, FURTHER[version], ORIGIN_STACK) == {PolicyVerdict.SPOOFED}
    own(before, "::", flags=OwnerFlag.STACK)
    assert said(before, version, FURTHER[version]) == {PolicyVerdict.SPOOFED}
    assert said(before, version, FURTHER[version], ORIGIN_STACK) == {PolicyVerdict.NOT_ISOLATED}
    own(before, FURTHER[version], pod=POD, flags=OwnerFlag.CLOSED)
    assert said(before, version, FURTHER[version], ORIGIN_STACK) == {PolicyVerdict.STRANGER}
