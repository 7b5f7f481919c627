"""NetworkPolicy on a bridge with `vlan_filtering`, which gives frames tags and takes them off, on whichever kernel.

br_netfilter hands over what has no tag, both where it comes in and where it leaves, unless it is told to look below
tags. `a` is behind an access port of the bridge's VLAN and `b` on a trunk, so every frame between them has a tag on
one side only. `b` is nobody whose link is known. One node for all tests: see `test_policy_kernels`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpd.policy import bridges
from tests.fabric import frames
from tests.fabric.conftest import mounted_bpffs
from tests.fabric.netns import Lab, missing
from tests.fabric.policy_node import BRIDGE_NF, PLANS, Plan, PolicyNode, link
from tests.fabric.test_policy_kernels import ANSWER_S, DROPPED, NOBODY, PASSES, SILENCE_S, reached
from tests.fabric.test_veth_escapes import gets

VLAN = 1  # the one that every port is in which is not told otherwise
NOTICED_S = 10.0
PRIORITY = 0  # IEEE 802.1Q: a tag of no VLAN
A_ONLY = 8  # a set that allows `a`
DISCARD = 9  # where `frames.udp` sends to
OTHER = {"802.1Q": 0x88A8, "802.1ad": frames.VLAN}  # the kind of tag that a bridge of the protocol takes for payload
TAGGED = "net/bridge/bridge-nf-filter-vlan-tagged", "net/bridge/bridge-nf-pass-vlan-input-dev"
SETTINGS = {
    "bridge alone": ("0", "0", "0", "0"),
    "br_netfilter": ("1", "1", "0", "0"),
    "below tags": ("1", "1", "1", "0"),
    "below tags, by the interface in the VLAN": ("1", "1", "1", "1"),
}
ways = pytest.mark.parametrize(("client", "server"), [("a", "b"), ("b", "a")], ids=["to the trunk", "from the trunk"])


def load_br_netfilter() -> None:
    subprocess.run(["modprobe", "--quiet", "br_netfilter"], check=False)  # it may be built in: its settings tell


@pytest.fixture(scope="module")
def made() -> Iterator[PolicyNode]:
    if reason := missing("nft", "mount", "bridge", "modprobe"):
        pytest.skip(reason)
    subprocess.run(["modprobe", "--quiet", "br_netfilter"], check=False)  # it may be built in: see `bridge`
    with Lab() as lab, mounted_bpffs(lab) as bpffs, contextlib.closing(PolicyNode(lab, bpffs)) as node:
        filters = ["ip", "link", "set", "cni0", "type", "bridge", "vlan_filtering", "1"]
        if reason := node.node.run(filters, check=False).stderr:
            pytest.skip(f"bridges of this kernel have no vlan_filtering: {reason.strip()}")
        node.node.ip(f"link add link cni0 name in-vlan type vlan id {VLAN}", "link set in-vlan up")
        node.pods["b"].ip(f"link add link eth0 name in-vlan type vlan id {VLAN}", "link set in-vlan up")
        for plan in PLANS:
            address = f"{plan.b}/{plan.bridge.partition('/')[2]}"
            node.pods["b"].ip(f"addr del {address} dev eth0")
            node.pods["b"].add_address("in-vlan", address)
        node.judged = (4, 6)
        yield node


@pytest.fixture(scope="module", params=SETTINGS)
def bridge(made: PolicyNode, request: pytest.FixtureRequest) -> PolicyNode:
    wanted = dict(zip((*BRIDGE_NF, *TAGGED), SETTINGS[request.param], strict=True))
    made.node.sysctl(wanted)
    assert made.node.call(lambda: {name: Path("/proc/sys", name).read_text().strip() for name in wanted}) == wanted
    made.apply(made.wanted(bridged=("a",)))
    trunk(made)
    return made


@pytest.fixture
def node(bridge: PolicyNode) -> PolicyNode:
    bridge.open()
    return bridge


def trunk(node: PolicyNode) -> None:
    node.node.run(["bridge", "vlan", "add", "dev", "port-b", "vid", str(VLAN)])


def access(node: PolicyNode) -> None:
    node.node.run(["bridge", "vlan", "add", "dev", "port-b", "vid", str(VLAN), "pvid", "untagged"])


@ways
def test_an_isolated_pod_is_reached_by_nobody_and_reaches_others(node: PolicyNode, client: str, server: str) -> None:
    """And is found by ARP and neighbor discovery."""
    node.pods["a"].ip("neigh flush dev eth0")
    node.pods["b"].ip("neigh flush dev in-vlan")
    node.isolate(server, ingress=NOBODY)
    assert reached(node, socket.IPPROTO_UDP, client, server, SILENCE_S) == DROPPED
    assert reached(node, socket.IPPROTO_UDP, server, client, ANSWER_S) == PASSES


@ways
def test_a_pod_isolated_for_egress_reaches_nobody_and_is_reached(node: PolicyNode, client: str, server: str) -> None:
    node.isolate(client, egress=NOBODY)
    assert reached(node, socket.IPPROTO_UDP, client, server, SILENCE_S) == DROPPED
    assert reached(node, socket.IPPROTO_UDP, server, client, ANSWER_S) == PASSES


@ways
def test_a_rule_allows_its_port(node: PolicyNode, client: str, server: str) -> None:
    node.isolate(server, ingress=7)
    node.allow(7, client, ports=[(socket.IPPROTO_TCP, 8080)])
    assert reached(node, socket.IPPROTO_TCP, client, server, ANSWER_S) == PASSES
    assert reached(node, socket.IPPROTO_UDP, client, server, SILENCE_S) == DROPPED


@pytest.fixture
def behind_access_ports(node: PolicyNode) -> Iterator[PolicyNode]:
    access(node)
    yield node
    trunk(node)
    node.apply(node.wanted(bridged=("a",)))


@pytest.mark.parametrize("tag", [VLAN, PRIORITY])
def test_a_pod_on_an_access_port_gets_past_no_rule_by_a_tag(behind_access_ports: PolicyNode, tag: int) -> None:
    """The bridge takes it off. A pod whose link is known sends none at all."""
    node = behind_access_ports
    node.apply(node.wanted(bridged=()))
    assert all(gets(node, "b", "a", plan, vlans=[tag]) for plan in PLANS)
    node.isolate("b", ingress=NOBODY)
    assert not any(gets(node, "b", "a", plan, vlans=[tag]) for plan in PLANS)
    node.isolate("b")
    node.apply(node.wanted(bridged=("a",)))
    assert not any(gets(node, "b", "a", plan, vlans=[tag]) for plan in PLANS)
    assert all(gets(node, "b", "a", plan) for plan in PLANS)


def understood(node: PolicyNode, plan: Plan, kind: int) -> bool:
    """Whether a socket of `b` gets a datagram of `a` that has such a tag of no VLAN: the kernel took it off."""
    family = socket.AF_INET if plan.version == 4 else socket.AF_INET6
    to, sender = (link(node.namespace(name), "eth0")[1] for name in ("b", "a"))
    frame = frames.udp(to, sender, plan.a, plan.b, DISCARD)
    with contextlib.closing(node.namespace("b").socket(family, socket.SOCK_DGRAM)) as server:
        server.bind((plan.b, DISCARD))
        server.settimeout(SILENCE_S)
        frames.send(node.namespace("a"), "eth0", frames.tagged(frame, PRIORITY, kind=kind))
        with contextlib.suppress(TimeoutError):
            return server.recv(100) == frames.MARK
    return False


@pytest.fixture(params=[("802.1Q", trunk), ("802.1Q", access), ("802.1ad", access)], ids=lambda each: each[0])
def other_kind(node: PolicyNode, request: pytest.FixtureRequest) -> Iterator[int]:
    """Of a tag, than the bridge's own. `b` is behind a port of either kind."""
    protocol, port = request.param
    node.apply(node.wanted(bridged=()))
    node.node.ip(f"link set cni0 type bridge vlan_protocol {protocol}")
    port(node)
    yield OTHER[protocol]
    trunk(node)
    node.node.ip("link set cni0 type bridge vlan_protocol 802.1Q")
    node.apply(node.wanted(bridged=("a",)))


def test_a_tag_of_the_other_protocol_hides_nothing(node: PolicyNode, other_kind: int) -> None:
    """The bridge leaves it in the frame, and the kernel of `b` takes it off. Nobody's link is known.

    If br_netfilter looks below one of 802.1Q, it takes the bridge's word for where that is, and drops all of them.
    """
    looked_below = other_kind == frames.VLAN and node.node.call(Path("/proc/sys", TAGGED[0]).read_text) == "1\n"
    passes = DROPPED if looked_below else PASSES

    def found() -> list[bool]:
        return [understood(node, plan, other_kind) for plan in PLANS]

    assert found() == passes
    node.isolate("b", ingress=NOBODY)
    assert found() == DROPPED
    node.isolate("b", ingress=A_ONLY)
    node.allow(A_ONLY, "a")
    assert found() == passes
    node.isolate("a", egress=NOBODY)
    assert found() == DROPPED


def test_a_bridge_that_begins_to_filter_is_noticed(made: PolicyNode) -> None:
    """And one that ceases to."""
    made.node.sysctl(dict.fromkeys(BRIDGE_NF, "1"))

    def filters(value: int) -> None:
        made.node.ip(f"link set cni0 type bridge vlan_filtering {value}")

    async def heard() -> list[tuple[int, ...]]:
        told: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
        following = asyncio.create_task(bridges.follow(told.put_nowait))
        found = [await told.get()]
        for value in (0, 1):
            await asyncio.to_thread(filters, value)
            async with asyncio.timeout(NOTICED_S):
                found.append(await told.get())
        following.cancel()
        return found

    assert made.node.call(lambda: asyncio.run(heard())) == [(4, 6), (), (4, 6)]


def test_while_the_kernel_cannot_be_asked_bridges_are_watched_on(lab: Lab) -> None:
    """There is no file descriptor that is free; nobody tells when there is."""
    load_br_netfilter()
    node = lab.namespace("asking")
    node.sysctl(dict.fromkeys(BRIDGE_NF, "1"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def heard() -> list[tuple[int, ...]]:
        told: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
        following = asyncio.create_task(bridges.follow(told.put_nowait))
        async with asyncio.timeout(NOTICED_S):
            found = [await told.get()]
            changing = subprocess.Popen(["sh", "-c", "read go; ip link set lo mtu 1500"], stdin=subprocess.PIPE)  # noqa: ASYNC220
            assert changing.stdin is not None
            lowest = os.dup(0)  # that is free
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            changing.communicate()  # lets it go on, and waits
            found.append(await told.get())
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            found.append(await told.get())
            assert not following.done()
        following.cancel()
        return found

    try:
        assert node.call(lambda: asyncio.run(heard())) == [(), (4, 6), ()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
