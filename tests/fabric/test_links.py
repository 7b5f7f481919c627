"""What the kernel says of pods' interfaces, and when: a veth on a bridge, a macvlan, cables that a pod lays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgpd.netlink.link import PodLink
from bgpd.netlink.links import LinkError, Links, News, NoNamespaceError, Watch
from tests.fabric.netns import NETNS_DIR, Lab, Namespace

WAIT_S = 10.0
NO_NAMESPACE = "there is no network namespace {netns}"
NO_MOUNT = (
    "{netns} is no network namespace; "
    "does bgpd run in a mount namespace that the container runtime's mounts do not reach?"
)


class Site:
    """A node with a bridge and an uplink, and one pod of each kind."""

    def __init__(self, lab: Lab) -> None:
        self.node, self.pod, self.outside = (lab.namespace(name) for name in ("node", "pod", "outside"))
        lab.bridge(self.node, "cni0")
        lab.link(self.node, "veth1", self.pod, "eth0")
        lab.link(self.node, "uplink", self.outside, "eth0")
        self.node.ip("link set veth1 master cni0", "link add net1 link uplink type macvlan mode private")
        self.node.ip(f"link set net1 netns {self.pod.netns_name}")

    def look(self, name: str, pod: Namespace | None = None) -> PodLink:
        return self.node.call(lambda: _look((pod or self.pod).path, name))


def _look(netns: Path, name: str) -> PodLink:
    with Links() as links:
        return links.pod(netns, name)


def _index(name: str) -> int:
    with Links() as links:
        found = links.here(name)
        assert found is not None
        return found.index


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab:
        yield Site(lab)


def test_both_ends_of_a_veth_name_each_other(site: Site) -> None:
    found = site.look("eth0")
    inside, outside = found.inside, found.outside
    assert outside is not None and found.master is not None
    assert (inside.name, inside.kind, inside.other, inside.master) == ("eth0", "veth", outside.index, None)
    assert (outside.name, outside.kind, outside.other, outside.other_netns) == (
        "veth1",
        "veth",
        inside.index,
        found.netns,
    )
    assert (found.master.name, found.master.kind, found.master.index) == ("cni0", "bridge", outside.master)
    assert f"link/ether {inside.mac} " in site.pod.run(["ip", "link", "show", "eth0"]).stdout
    assert outside.mac != inside.mac


def test_a_macvlan_names_its_parent(site: Site) -> None:
    found = site.look("net1")
    assert found.outside is not None
    assert (found.inside.kind, found.inside.mode, found.master) == ("macvlan", 1, None)
    assert (found.outside.name, found.outside.index) == ("uplink", found.inside.other)


def test_ends_that_have_the_same_number(site: Site) -> None:
    """Each namespace counts for itself."""
    peer = f"name same index 7777 netns {site.pod.netns_name}"
    site.node.ip(f"link add same index 7777 type veth peer {peer}")
    found = site.look("same")
    assert found.outside is not None
    assert (found.inside.other, found.outside.index, found.outside.other) == (7777, 7777, 7777)


def test_all_interfaces_of_a_pod(site: Site) -> None:
    def all_of_them() -> list[PodLink]:
        with Links() as links:
            return links.pods(links.number(site.pod.path))

    found = {each.inside.name: each for each in site.node.call(all_of_them)}
    assert {"lo", "eth0", "net1"} <= found.keys()
    assert (found["eth0"], found["net1"]) == (site.look("eth0"), site.look("net1"))
    assert found["lo"].outside is None


def test_a_cable_that_a_pod_lays_itself_leads_nowhere_here(site: Site) -> None:
    """Whatever numbers it gives the ends: here those of another pod's cable."""
    victim = site.look("eth0")
    assert victim.outside is not None
    lab = site.node.lab
    evil, inner = lab.namespace("evil"), lab.namespace("inner")
    peer = f"name eth1 index {victim.outside.index} netns {inner.netns_name}"
    evil.ip(f"link add eth0 index {victim.inside.index} type veth peer {peer}")
    found = site.look("eth0", evil)
    assert (found.inside.other, found.inside.kind) == (victim.outside.index, "veth")
    assert (found.outside, found.master) == (None, None)
    evil.ip("link add mv0 link eth0 type macvlan", "link add br0 type bridge")
    assert [site.look(each, evil).outside for each in ("mv0", "br0")] == [None, None]


@pytest.mark.parametrize(
    ("netns", "name", "kind", "said"),
    [
        pytest.param(None, "eth7", LinkError, "{netns}: there is no interface eth7", id="interface"),
        pytest.param(NETNS_DIR / "bgpdt-none", "eth0", NoNamespaceError, NO_NAMESPACE, id="namespace"),
        pytest.param(Path("/etc/hostname/x"), "eth0", NoNamespaceError, NO_NAMESPACE, id="path"),
        pytest.param(Path("/etc/hostname"), "eth0", LinkError, NO_MOUNT, id="file"),
        pytest.param(Path("/proc/self/ns/mnt"), "eth0", LinkError, NO_MOUNT, id="another namespace"),
        pytest.param(
            Path("/run") / ("x" * 256),
            "eth0",
            LinkError,
            "the network namespace {netns} cannot be opened: File name too long",
            id="name too long",
        ),
    ],
)
def test_what_is_not_there_is_named(
    site: Site, netns: Path | None, name: str, kind: type[LinkError], said: str
) -> None:
    place = netns or site.pod.path
    with pytest.raises(LinkError) as raised:
        site.node.call(lambda: _look(place, name))
    assert type(raised.value) is kind
    assert str(raised.value) == said.format(netns=place)


def test_no_more_is_needed_than_the_unit_leaves_us(site: Site) -> None:
    """Namespaces are not entered: that would take CAP_SYS_ADMIN."""
    code = (
        "import sys; from pathlib import Path; from bgpd.netlink.links import Links\n"
        "with Links() as links: print(links.pod(Path(sys.argv[1]), 'net1').outside.name)"
    )
    lab, pod = site.node.lab, site.node.lab.namespace("confined")
    site.node.ip("link add net1 link uplink type macvlan", f"link set net1 netns {pod.netns_name}")
    confined = ["setpriv", "--bounding-set", "-all,+dac_override,+net_admin", "--inh-caps", "-all"]
    done = site.node.run([*confined, sys.executable, "-c", code, str(pod.path)])
    assert done.stdout.strip() == "uplink"
    path = f"/proc/{os.getpid()}/ns/net"
    refused = site.node.run([*confined, sys.executable, "-c", code, path], check=False)
    assert f"LinkError: bgpd may not open the network namespace {path}; let the container runtime" in refused.stderr
    lab.remove(pod)


def test_to_hear_of_changes_takes_no_capability(site: Site) -> None:
    """A daemon that only finds its peers by them, as one for a lab may be, goes on without."""
    code = "from bgpd.netlink.rtsocket import GROUP_LINK, RtWatch; RtWatch((GROUP_LINK,)).close(); print('heard')"
    confined = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    assert site.node.run([*confined, sys.executable, "-c", code]).stdout.strip() == "heard"


# --- news -------------------------------------------------------------------------------------------------


def hear(node: Namespace, act: Callable[[], object], enough: Callable[[News], bool]) -> News:
    """Everything that was told because of `act`, until it is enough."""

    async def listen() -> News:
        watch = Watch()
        with contextlib.closing(watch):
            await asyncio.to_thread(act)
            heard = News()
            async with asyncio.timeout(WAIT_S):
                while not enough(heard):
                    more = await watch.news()
                    heard = News(
                        heard.links | more.links, heard.namespaces | more.namespaces, heard.lost or more.lost
                    )
            return heard

    return node.call(lambda: asyncio.run(listen()))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("link del {name}", id="deleted"),
        pytest.param("link set {name} netns {pod}", id="moved to a pod"),
        pytest.param("link set {name} master cni0", id="plugged into a bridge"),
        pytest.param("link set {name} name other1", id="renamed"),
    ],
)
def test_a_change_of_an_interface_is_told(site: Site, command: str) -> None:
    node = site.node
    node.ip("link add probe1 type veth peer name probe2")
    wanted = node.call(lambda: _index("probe1"))
    heard = hear(
        node,
        lambda: node.ip(command.format(name="probe1", pod=site.pod.netns_name)),
        lambda heard: wanted in heard.links,
    )
    assert not heard.lost
    for each in (node, site.pod):
        for name in ("probe1", "other1", "probe2"):
            each.run(["ip", "link", "del", name], check=False)


def test_the_end_of_a_namespace_is_told(site: Site) -> None:
    """Of one that has been looked at: that gave it a number. No interface of the node goes with it."""
    node, lab = site.node, site.node.lab
    pod = lab.namespace("short-lived")
    node.ip("link add net1 link uplink type macvlan", f"link set net1 netns {pod.netns_name}")
    number = site.look("net1", pod).netns
    assert number != site.look("net1").netns
    hear(node, lambda: lab.remove(pod), lambda heard: number in heard.namespaces)

    def is_alive() -> bool:
        with Links() as links:
            return links.is_alive(number)

    assert node.call(is_alive) is False


def test_more_news_than_there_is_room_for(site: Site) -> None:
    """Are told as lost, and what comes then is told again."""
    node = site.node
    wanted = node.call(lambda: _index("uplink"))

    async def listen() -> News:
        watch = Watch(room=4096)
        with contextlib.closing(watch):
            await asyncio.to_thread(node.ip, *(f"link set uplink mtu {1400 + number}" for number in range(30)))
            async with asyncio.timeout(WAIT_S):
                while not (await watch.news()).lost:
                    pass
                await asyncio.to_thread(node.ip, "link set uplink mtu 1500")
                return await watch.news()

    assert wanted in node.call(lambda: asyncio.run(listen())).links
