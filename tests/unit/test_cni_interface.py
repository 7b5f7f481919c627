"""What an interface is to enforcement, which one an attachment means, and what has become of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations
from pathlib import Path

import pytest

from bgpd.cni.interface import RefusedError, adopted, assign, attached, differences, endpoint_link, is_there
from bgpd.model.attachment import Attachment, AttachmentKey, ChainingMode, InterfaceKind, PodName
from bgpd.model.endpoint import Endpoint, EndpointLink, IpvlanLink, IpvlanMode, MacvlanLink, MacvlanMode, VethLink
from bgpd.netlink.link import Link, PodLink

MAC, OTHER_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
NODE, POD = 1, 2  # numbers of namespaces
CNI0 = Link(4, "cni0", "bridge")
UPLINK = Link(2, "enp1s0")
HOST_END = Link(7, "veth3f", "veth", "02:00:00:00:00:02", 3, POD, CNI0.index)
VETH = PodLink(POD, Link(3, "eth0", "veth", MAC, HOST_END.index, NODE), HOST_END, CNI0)
ROUTED = replace(VETH, outside=replace(HOST_END, master=None), master=None)
MACVLAN = PodLink(POD, Link(5, "eth0", "macvlan", MAC, UPLINK.index, NODE, mode=4), UPLINK, None)
IPVLAN = PodLink(POD, Link(5, "eth0", "ipvlan", MAC, UPLINK.index, NODE, mode=0), UPLINK, None, cookie=9)
LOOPBACK = PodLink(POD, Link(1, "lo", "", "00:00:00:00:00:00"), None, None)


def attachment(interface: str = "eth0", mac: str = MAC, network: str = "cluster", **changes: object) -> Attachment:
    key = AttachmentKey(network, "6f0f2a", interface)
    pod = PodName("shop", "web-0")
    usual = Attachment(key, "/run/netns/x", pod, ChainingMode.AUTO, mac, (ip_address("10.244.1.7"),), ())
    return replace(usual, **changes)  # type: ignore[arg-type]


def renamed(seen: PodLink, name: str, mac: str = MAC, index: int | None = None) -> PodLink:
    inside = seen.inside
    return replace(seen, inside=replace(inside, name=name, mac=mac, index=inside.index if index is None else index))


# --- what it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "link", "kind"),
    [
        pytest.param(VETH, VethLink(7, "veth3f", 4), InterfaceKind.VETH, id="bridged"),
        pytest.param(ROUTED, VethLink(7, "veth3f", None), InterfaceKind.VETH, id="routed"),
        pytest.param(MACVLAN, MacvlanLink(2, "enp1s0", MacvlanMode.BRIDGE), InterfaceKind.MACVLAN, id="macvlan"),
        pytest.param(
            IPVLAN,
            IpvlanLink(2, "enp1s0", IpvlanMode.L2, Path("/run/netns/x"), 5, 9),
            InterfaceKind.IPVLAN,
            id="ipvlan",
        ),
        pytest.param(
            replace(IPVLAN, inside=replace(IPVLAN.inside, mode=2, flags=2)),
            IpvlanLink(2, "enp1s0", IpvlanMode.L3S, Path("/run/netns/x"), 5, 9, reflecting=True),
            InterfaceKind.IPVLAN,
            id="ipvlan with flag vepa",
        ),
    ],
)
def test_where_traffic_is_seen(seen: PodLink, link: EndpointLink, kind: InterfaceKind) -> None:
    given = attachment()
    assert attached(given, seen) == Endpoint(given.key, given.pod, MAC, given.addresses, link)
    assert attached(given, seen).link.kind is kind


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        pytest.param(
            PodLink(POD, Link(3, "eth0", "tun"), None, None),
            "eth0 is of kind tun: traffic can be judged of veth, macvlan and ipvlan only", id="kind",
        ),
        pytest.param(
            replace(IPVLAN, inside=replace(IPVLAN.inside, mode=3)),
            "eth0 is an ipvlan of mode 3, which is not known here", id="ipvlan mode",
        ),
        pytest.param(
            PodLink(POD, Link(3, "eth0"), None, None),
            "eth0 is hardware: traffic can be judged of veth, macvlan and ipvlan only", id="hardware",
        ),
        pytest.param(
            replace(VETH, outside=None, master=None),
            "eth0 is a veth whose other end is not in the node's network namespace", id="elsewhere",
        ),
        pytest.param(
            replace(MACVLAN, outside=None),
            "eth0 is a macvlan whose parent is not in the node's network namespace", id="parent elsewhere",
        ),
        pytest.param(
            replace(VETH, master=Link(4, "ovs-system", "openvswitch")),
            "veth3f is a port of ovs-system, which is of kind openvswitch: "
            "traffic can be judged on bridges, and of what is routed",
            id="open vswitch",
        ),
        pytest.param(
            replace(MACVLAN, inside=replace(MACVLAN.inside, mode=32)),
            "eth0 is a macvlan of mode 32, which is not known here", id="mode",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_by_name(seen: PodLink, text: str) -> None:
    for make in (attached, adopted):
        with pytest.raises(RefusedError) as raised:
            make(attachment(), seen)
        assert str(raised.value) == text


@pytest.mark.parametrize(
    ("mode", "seen", "fits"),
    [
        (ChainingMode.GENERIC_VETH, VETH, True),
        (ChainingMode.GENERIC_VETH, MACVLAN, False),
        (ChainingMode.CBR0, MACVLAN, False),
        (ChainingMode.PORTMAP, VETH, True),
        (ChainingMode.MACVLAN, MACVLAN, True),
        (ChainingMode.MACVLAN, VETH, False),
        (ChainingMode.IPVLAN, VETH, False),
        (ChainingMode.IPVLAN, IPVLAN, True),
        (ChainingMode.MACVLAN, IPVLAN, False),
        (ChainingMode.TERWAY_CHAINER, IPVLAN, True),
        (ChainingMode.TERWAY_CHAINER, MACVLAN, True),
        (ChainingMode.SPIDERNET_CHAINER, VETH, True),
    ],
)
def test_the_chaining_mode_must_be_what_is_there(mode: ChainingMode, seen: PodLink, fits: bool) -> None:
    """At an ADD. A pod that runs is there, whatever the mode says."""
    given = attachment(mode=mode, network=mode.value)
    assert adopted(given, seen).link == endpoint_link(given, seen)
    if fits:
        assert attached(given, seen).link == endpoint_link(given, seen)
        return
    with pytest.raises(RefusedError) as raised:
        attached(given, seen)
    assert str(raised.value).startswith(
        f'chaining-mode "{mode}" is for {mode.kind}, and eth0 is a {seen.inside.kind}: set'
    )


@pytest.mark.parametrize("network", ["spidernet-chainer", "ipvlan-ens192"])
def test_a_network_has_the_name_of_its_mode_where_chaining_goes_by_names(network: str) -> None:
    """As cilium-chaining wants it; a pod that runs is there, whatever they say."""
    given = attachment(mode=ChainingMode.TERWAY_CHAINER, network=network)
    with pytest.raises(RefusedError) as raised:
        attached(given, IPVLAN)
    assert str(raised.value) == (
        f'the network is named "{network}" and has chaining-mode "terway-chainer": give both the same'
    )
    assert adopted(given, IPVLAN).link.kind is InterfaceKind.IPVLAN
    same = attachment(mode=ChainingMode.TERWAY_CHAINER, network="terway-chainer")
    assert attached(same, IPVLAN).link.kind is InterfaceKind.IPVLAN


def test_an_add_whose_result_lies_is_refused() -> None:
    with pytest.raises(RefusedError) as raised:
        attached(attachment(mac=OTHER_MAC), VETH)
    assert str(raised.value) == (
        f"eth0 has the MAC address {MAC}, and prevResult says {OTHER_MAC}: "
        "a plugin of the chain changed it without saying so"
    )


def test_a_pod_that_runs_is_what_it_was_given() -> None:
    """Whatever address it has given itself."""
    assert adopted(attachment(mac=OTHER_MAC), VETH).mac == OTHER_MAC


@pytest.mark.parametrize("make", [attached, adopted])
def test_where_the_result_names_no_mac_the_kernel_s_counts(make: object) -> None:
    assert make(attachment(mac=""), VETH).mac == MAC  # type: ignore[operator]


# --- what became of it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        pytest.param(VETH, VETH, (), id="nothing"),
        pytest.param(VETH, replace(VETH, outside=replace(HOST_END, name="other")), (), id="the node's end renamed"),
        pytest.param(VETH, None, ("interface eth0 is gone",), id="gone"),
        pytest.param(
            VETH, renamed(VETH, "eth0", index=9),
            ("interface eth0 is another than the one that was attached",), id="made anew",
        ),
        pytest.param(
            VETH, replace(VETH, netns=8),
            ("interface eth0 is another than the one that was attached",), id="another namespace at the path",
        ),
        pytest.param(
            VETH, renamed(VETH, "eth1", OTHER_MAC),
            ("its name: was eth0, is eth1", f"the MAC address of eth0: was {MAC}, is {OTHER_MAC}"), id="renamed",
        ),
        pytest.param(
            VETH, replace(VETH, master=Link(9, "br1", "bridge")),
            ("what veth3f is a port of: was cni0, is br1",), id="another bridge",
        ),
        pytest.param(
            VETH, ROUTED, ("what veth3f is a port of: was cni0, is nothing on this node",), id="no bridge any more",
        ),
        pytest.param(
            ROUTED, replace(ROUTED, outside=None),
            ("what eth0 leads to: was veth3f, is nothing on this node",), id="the node's end moved away",
        ),
        pytest.param(
            MACVLAN, replace(MACVLAN, inside=replace(MACVLAN.inside, mode=1)),
            ("the mode of eth0: was bridge, is private",), id="mode",
        ),
    ],
)  # fmt: skip
def test_what_differs(then: PodLink, now: PodLink | None, told: tuple[str, ...]) -> None:
    assert differences(attached(attachment(), then), then, now) == told


@pytest.mark.parametrize(
    ("then", "outside", "there"),
    [
        pytest.param(VETH, HOST_END, True, id="as it was"),
        pytest.param(VETH, replace(HOST_END, name="x", mac=OTHER_MAC, master=None), True, id="renamed and moved"),
        pytest.param(VETH, None, False, id="gone"),
        pytest.param(VETH, replace(HOST_END, other=8), False, id="leads to another interface"),
        pytest.param(VETH, replace(HOST_END, other_netns=9), False, id="leads to another namespace"),
        pytest.param(VETH, Link(7, "veth3f", "bridge"), False, id="another kind"),
        pytest.param(MACVLAN, UPLINK, True, id="parent"),
        pytest.param(MACVLAN, None, False, id="parent gone"),
    ],
)
def test_whether_it_is_there(then: PodLink, outside: Link | None, there: bool) -> None:
    assert is_there(then, outside) is there


# --- which one it is --------------------------------------------------------------------------------------


SECOND = PodLink(POD, Link(9, "net1", "macvlan", OTHER_MAC, UPLINK.index, NODE, mode=4), UPLINK, None)
INNER = PodLink(POD, Link(11, "eth0", "veth", MAC, 12, 6), None, None)  # a cable that the pod laid itself


@pytest.mark.parametrize(
    ("claims", "links", "found"),
    [
        pytest.param([attachment()], [LOOPBACK, VETH], {"eth0": 3}, id="as it was left"),
        pytest.param([attachment(), attachment("net1", OTHER_MAC)], [SECOND, VETH], {"eth0": 3, "net1": 9}, id="two"),
        pytest.param([attachment()], [renamed(VETH, "x")], {"eth0": 3}, id="renamed"),
        pytest.param([attachment()], [renamed(VETH, "eth0", OTHER_MAC)], {"eth0": 3}, id="another MAC"),
        pytest.param([attachment()], [renamed(VETH, "x"), INNER], {"eth0": 3}, id="renamed, and a decoy"),
        pytest.param(
            [attachment(host_interfaces=("cni0", "veth3f"))], [renamed(VETH, "x", OTHER_MAC), INNER], {"eth0": 3},
            id="renamed, another MAC, a decoy",
        ),
        pytest.param(
            [attachment()], [renamed(MACVLAN, "x", "02:00:00:00:00:0c", 8)], {"eth0": 8}, id="a sibling left alone",
        ),
        pytest.param(
            [attachment(), attachment("net1", OTHER_MAC)],
            [renamed(VETH, "net1"), renamed(SECOND, "eth0", OTHER_MAC)],
            {"eth0": 3, "net1": 9}, id="names exchanged",
        ),
        pytest.param(
            [attachment(), attachment("net1", OTHER_MAC)], [renamed(MACVLAN, "x")], {"eth0": 5},
            id="no interface is two",
        ),
        pytest.param(
            [attachment()], [renamed(MACVLAN, "eth0", OTHER_MAC, 8), renamed(MACVLAN, "s", "02:00:00:00:00:0c", 6)],
            {"eth0": 8}, id="another MAC, beside a sibling",
        ),
        pytest.param(
            [attachment(host_interfaces=("enp1s0",)), attachment("net1", OTHER_MAC, host_interfaces=("enp1s0",))],
            [MACVLAN, SECOND], {"eth0": 5, "net1": 9}, id="a result that names the parent",
        ),
        pytest.param(
            [attachment(), attachment(mac=OTHER_MAC, network="before"), attachment("net1", OTHER_MAC)],
            [MACVLAN, SECOND], {"eth0": 5, "net1": 9}, id="a pod that had the path before, with the other's MAC",
        ),
        pytest.param([attachment("net1", "")], [VETH, SECOND], {"net1": 9}, id="no MAC known"),
        pytest.param([attachment()], [INNER], {"eth0": 11}, id="nothing but a cable of its own, to be refused"),
        pytest.param([attachment()], [LOOPBACK], {}, id="nothing"),
        pytest.param([attachment("net1", OTHER_MAC)], [VETH], {}, id="a veth of another name is somebody else's"),
    ],
)  # fmt: skip
def test_which_interface_is_meant(claims: list[Attachment], links: list[PodLink], found: dict[str, int]) -> None:
    for order in permutations(links):
        assigned = assign(claims, order)
        assert {key.interface: link.inside.index for key, link in assigned.items()} == found


def test_runtime_and_multus_may_both_remember_one() -> None:
    claims = [attachment(network="multus-cni-network"), attachment(network="cbr0")]
    assert {key.network: link for key, link in assign(claims, [VETH]).items()} == {
        "multus-cni-network": VETH,
        "cbr0": VETH,
    }


def test_a_pod_that_had_the_path_before_is_not_this_one() -> None:
    """Where another attachment has the right MAC address."""
    stale = attachment(mac=OTHER_MAC, network="before")
    assert list(assign([stale, attachment()], [VETH])) == [attachment().key]
    assert list(assign([stale], [VETH])) == [stale.key]
