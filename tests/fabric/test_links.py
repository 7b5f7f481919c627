"""What the kernel says of pods' interfaces: a veth on a bridge, one on a cable of its own, a macvlan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from bgpd.netlink.links import LinkError, gone, inside, look, look_inside
from tests.fabric.netns import NETNS_DIR, Lab

WAIT_S = 10.0


class Site:
    """A node with a bridge and an uplink, and one pod of each kind."""

    def __init__(self, lab: Lab) -> None:
        self.node, self.pod, self.outside = (lab.namespace(name) for name in ("node", "pod", "outside"))
        lab.bridge(self.node, "cni0")
        lab.link(self.node, "veth1", self.pod, "eth0")
        lab.link(self.node, "uplink", self.outside, "eth0")
        self.node.ip("link set veth1 master cni0", "link add net1 link uplink type macvlan mode bridge")
        self.node.ip(f"link set net1 netns {self.pod.netns_name}")
        self.pod.add_address("eth0", "10.1.0.2/24", "fd01::2/64")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab:
        yield Site(lab)


def test_both_ends_of_a_veth_name_each_other(site: Site) -> None:
    pod = site.node.call(lambda: look_inside(site.pod.path, "eth0"))
    assert (pod.name, pod.kind, pod.elsewhere, pod.master) == ("eth0", "veth", True, None)
    assert set(pod.addresses) == {ip_address("10.1.0.2"), ip_address("fd01::2")}
    assert pod.other is not None
    end, bridge = site.node.call(lambda: (look(pod.other or 0), look("cni0")))
    assert (end.name, end.kind, end.other, end.master) == ("veth1", "veth", pod.index, bridge.index)
    assert (bridge.kind, bridge.other, bridge.elsewhere, bridge.addresses) == ("bridge", None, False, ())
    assert end.mac != pod.mac


def test_a_macvlan_names_its_parent(site: Site) -> None:
    pod = site.node.call(lambda: look_inside(site.pod.path, "net1"))
    assert (pod.kind, pod.elsewhere) == ("macvlan", True)
    assert pod.other == site.node.call(lambda: look("uplink")).index


@pytest.mark.parametrize(
    ("find", "said"),
    [
        pytest.param(lambda site: look("eth7"), "there is no interface eth7", id="name"),
        pytest.param(lambda site: look(10_000), "there is no interface 10000", id="index"),
        pytest.param(
            lambda site: look_inside(site.pod.path, "eth7"), "{netns}: there is no interface eth7", id="pod"
        ),
        pytest.param(
            lambda site: look_inside(NETNS_DIR / "bgpdt-none", "eth0"),
            "there is no network namespace /run/netns/bgpdt-none",
            id="namespace",
        ),
    ],
)
def test_what_is_not_there_is_named(site: Site, find: Callable[[Site], object], said: str) -> None:
    with pytest.raises(LinkError) as raised:
        site.node.call(lambda: find(site))
    assert str(raised.value) == said.format(netns=site.pod.path)


def test_a_file_that_is_no_namespace_is_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        inside(NETNS_DIR.parent / "../etc/hostname", lambda: None)


def test_interfaces_that_go_are_told(site: Site) -> None:
    """Deleted or moved to a pod; one that only leaves its bridge is still there."""
    node = site.node

    async def listen(moved: int, deleted: int) -> list[int]:
        told: list[int] = []
        async with asyncio.timeout(WAIT_S), contextlib.aclosing(gone()) as news:
            first = asyncio.ensure_future(anext(news))
            while not first.done():  # from when on it listens, nobody says
                await asyncio.to_thread(node.ip, "link add probe1 type veth peer name probe2", "link del probe1")
                await asyncio.wait([first], timeout=0.05)
            leave = ("link set old1 nomaster", "link set old1 master cni0")
            move = f"link set old2 netns {site.pod.netns_name}"
            await asyncio.to_thread(node.ip, *leave, move, "link del old1")
            while not {moved, deleted} <= set(told):
                told.append(await anext(news))
        return told

    def scenario() -> None:
        node.ip("link add old1 type veth peer name old2", "link set old1 master cni0")
        deleted, moved = look("old1").index, look("old2").index
        told = asyncio.run(listen(moved, deleted))
        assert told.index(moved) < told.index(deleted)

    node.call(scenario)
