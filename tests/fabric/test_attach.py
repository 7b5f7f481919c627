"""Pods' interfaces attached, checked, changed behind the daemon's back, and gone, with real links."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import pytest

from bgpd.cni.attach import Cause
from bgpd.model.endpoint import MacvlanLink, MacvlanMode, VethLink
from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.netlink.links import Links, News
from tests.fabric.attach_site import Attaching, Node, add_of, key_of
from tests.fabric.netns import Lab, Namespace

T = TypeVar("T")


@pytest.fixture
def node(lab: Lab) -> Node:
    return Node(lab)


async def shell(node: Namespace, *commands: str) -> None:
    await asyncio.to_thread(node.ip, *commands)


# --- attached ---------------------------------------------------------------------------------------------


def test_each_kind_is_found_where_the_node_sees_it(node: Node) -> None:
    pods = [node.bridged("a"), node.routed("b"), node.macvlan("c")]

    async def scenario(at: Attaching) -> None:
        given = [await at.add(pod) for pod in pods]
        bridged, routed, macvlan = (at.endpoint(each) for each in given)
        assert bridged and routed and macvlan
        assert bridged.link == VethLink(node.link("veth-a").index, "veth-a", node.link("cni0").index)
        assert routed.link == VethLink(node.link("veth-b").index, "veth-b", None)
        with Links() as links:
            cookie = links.pod(pods[2].path, "eth0").cookie
        assert macvlan.link == MacvlanLink(node.link("uplink").index, "uplink", MacvlanMode.BRIDGE, cookie)
        assert [str(each) for each in (bridged, routed, macvlan)] == ["shop/a eth0", "shop/b eth0", "shop/c eth0"]
        assert [(each.mac, each.addresses) for each in (bridged, routed, macvlan)] == [
            (each.mac, each.addresses) for each in given
        ]
        assert at.asked == [bridged, routed, macvlan]
        assert [await at.attacher.check(each) for each in given] == [(), (), ()]
        for each in given:
            assert await at.attacher.detach(each.key, each) == await at.attacher.detach(each.key, None) == DONE
        assert (at.endpoints, sum(at.attacher.ended.values())) == ({}, 0)

    node.run(scenario)


def test_a_pod_with_two_interfaces_is_two_endpoints(node: Node) -> None:
    pod = node.bridged("a")
    node.ip("link add net1 link uplink type macvlan", f"link set net1 netns {pod.netns_name}")

    async def scenario(at: Attaching) -> None:
        first, second = await at.add(pod), await at.add(pod, interface="net1", network="storage")
        assert {key: each.link.kind for key, each in at.endpoints.items()} == {
            first.key: "veth",
            second.key: "macvlan",
        }
        await at.attacher.detach(second.key, second)
        assert list(at.endpoints) == [first.key]
        assert await at.attacher.check(second) == (
            "no policy is enforced on it: its interface, or its network namespace, went before",
        )

    node.run(scenario)


def attach_once(node: Node, pod: Namespace, **changes: str) -> Outcome:
    async def scenario(at: Attaching) -> Outcome:
        outcome = await at.attacher.attach(add_of(node, pod, **changes)[1])
        assert (at.endpoints, at.asked) == ({}, [])
        return outcome

    return node.run(scenario)


JUDGED = "traffic can be judged of veth, macvlan and ipvlan only"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("link add eth0 type bridge", f"eth0 is of kind bridge: {JUDGED}"),
        ("tuntap add eth0 mode tun", f"eth0 is of kind tun: {JUDGED}"),
        (
            "link add eth0 type veth peer name eth1",
            "eth0 is a veth whose other end is not in the node's network namespace",
        ),
        ("link set lo up", "{netns}: there is no interface eth0"),
    ],
)
def test_anything_else_is_refused_by_its_kind(node: Node, make: str, said: str) -> None:
    pod = node.lab.namespace("pod")
    pod.ip(make)
    assert attach_once(node, pod) == Blocked(said.format(netns=pod.path))


def test_a_cable_to_another_pod_is_refused(node: Node) -> None:
    """With the numbers of that pod's own cable."""
    victim, evil = node.bridged("victim"), node.lab.namespace("evil")
    with_index = f"index {node.link('veth-victim').index} netns {victim.netns_name}"
    evil.ip(f"link add eth0 index {node.link('veth-victim').other} type veth peer name mine {with_index}")
    assert attach_once(node, evil) == Blocked("eth0 is a veth whose other end is not in the node's network namespace")


def test_a_chaining_mode_that_contradicts_is_refused(node: Node) -> None:
    outcome = attach_once(node, node.macvlan("a"), mode="generic-veth")
    assert isinstance(outcome, Blocked)
    assert outcome.reason.startswith('chaining-mode "generic-veth" is for veth, and eth0 is a macvlan: ')


def test_a_result_that_lies_is_refused(node: Node) -> None:
    outcome = attach_once(node, node.bridged("a"), mac="02:00:00:00:00:77")
    assert isinstance(outcome, Blocked)
    assert "prevResult says 02:00:00:00:00:77" in outcome.reason


# --- gone at every step -----------------------------------------------------------------------------------


def test_gone_before_it_is_attached(node: Node) -> None:
    pod = node.bridged("a")
    _, given = add_of(node, pod)
    node.lab.remove(pod)

    async def scenario(at: Attaching) -> None:
        assert await at.attacher.attach(given) == Retry(f"there is no network namespace {pod.path}")
        assert at.endpoints == {}

    node.run(scenario)


@pytest.mark.parametrize("kind", ["bridged", "macvlan"])
def test_gone_while_its_policy_is_being_enforced(node: Node, kind: str) -> None:
    pod: Namespace = getattr(node, kind)("a")

    async def scenario(at: Attaching) -> None:
        async def go() -> None:
            await asyncio.to_thread(node.lab.remove, pod)
            await at.until(lambda endpoints: not endpoints)

        at.meanwhile = go
        assert await at.attacher.attach(add_of(node, pod)[1]) == Retry("eth0 went while it was being attached")

    node.run(scenario)


@pytest.mark.parametrize("kind", ["bridged", "macvlan"])
def test_a_namespace_that_ends_without_a_del(node: Node, kind: str) -> None:
    """The endpoint ends with it, is counted, and forgotten. CHECK and DEL come afterwards, or never."""
    pod, stays = getattr(node, kind)("a"), node.bridged("b")

    async def scenario(at: Attaching) -> None:
        given, other = await at.add(pod), await at.add(stays)
        await asyncio.to_thread(node.lab.remove, pod)
        await at.until(lambda endpoints: list(endpoints) == [other.key])
        assert at.attacher.ended == {Cause.NAMESPACE: 1}
        assert list(at.journal.attachments) == [other.key]
        assert len(await at.attacher.check(given)) == 1
        assert await at.attacher.detach(given.key, None) == DONE

    node.run(scenario)


def test_the_number_of_a_namespace_is_another_s_at_once(node: Node) -> None:
    """The kernel gives the lowest one that is free, and news may come late."""
    before = node.macvlan("before")

    def number(pod: Namespace) -> int:
        def look() -> int:
            with Links() as links:
                return links.pod(pod.path, "eth0").netns

        return node.namespace.call(look)

    async def scenario(at: Attaching) -> None:
        given = [await at.add(before)]
        await at.deafen()
        old = number(before)
        await asyncio.to_thread(node.lab.remove, before)
        for attempt in range(50):
            pod = await asyncio.to_thread(node.macvlan, f"p{attempt}")
            given.append(await at.add(pod))
            if number(pod) == old:
                break
        else:
            pytest.fail("the number was not given again")
        assert given[0].key in at.endpoints
        await at.attacher.take(News(namespaces=frozenset([old])))
        assert set(at.endpoints) == {each.key for each in given[1:]}

    node.run(scenario)


def test_a_namespace_lives_longer_than_its_path(node: Node) -> None:
    """It counts as long as it lives; what has its path then is another, of which the kernel tells nothing."""
    pod = node.macvlan("a")

    async def scenario(at: Attaching) -> None:
        given = await at.add(pod)
        with pod.path.open("rb"):
            await asyncio.to_thread(node.lab.remove, pod)
            await at.attacher.take(News(lost=True))
            assert list(at.endpoints) == [given.key]
            await asyncio.to_thread(node.macvlan, "a")
            await at.until(lambda endpoints: not endpoints)
        assert at.attacher.ended == {Cause.NAMESPACE: 1}

    node.run(scenario, resync_s=0.1)


def test_an_interface_of_the_node_with_a_number_from_before(node: Node) -> None:
    pod, outside = node.bridged("a"), node.lab.namespaces["outside"]

    async def scenario(at: Attaching) -> None:
        await at.add(pod)
        await at.deafen()
        index = node.link("veth-a").index
        peer = f"peer name other netns {outside.netns_name}"
        await shell(node.namespace, "link del veth-a", f"link add veth-a index {index} type veth {peer}")
        await at.attacher.take(News(links=frozenset([index])))
        assert (at.endpoints, at.attacher.ended) == ({}, {Cause.LINK: 1})

    node.run(scenario)


def test_gone_before_it_is_published(node: Node) -> None:
    """The news came when it had been looked at, and nobody knew of the endpoint yet."""
    pod = node.bridged("a")
    index = node.link("veth-a").index

    async def scenario(at: Attaching) -> None:
        await at.until_adopted()
        await at.deafen()
        looks = Threads()
        asyncio.get_running_loop().set_default_executor(looks)
        attaching = asyncio.create_task(at.attacher.attach(add_of(node, pod)[1]))
        await asyncio.sleep(0)
        wait([looks.newest])  # it goes on when this lets it
        node.namespace.run(["ip", "link", "del", "veth-a"])
        await at.attacher.take(News(links=frozenset([index])))
        assert at.endpoints == {}
        assert await attaching == Retry("eth0 went while it was being attached")

    node.run(scenario)


class Threads(ThreadPoolExecutor):
    """`newest` is what was last given to one."""

    newest: Future[Any]

    def submit(self, function: Callable[..., T], /, *given: Any, **named: Any) -> Future[T]:
        self.newest = super().submit(function, *given, **named)
        return self.newest


# --- changed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "there"),
    [
        pytest.param("link del veth-a", "", id="on the node"),
        pytest.param("link set veth-a netns {outside}", "", id="moved away"),
        pytest.param("link del eth0", "pod", id="by the pod"),
    ],
)
def test_a_veth_that_goes_ends_its_endpoint(node: Node, command: str, there: str) -> None:
    """A pod that makes an interface of the same name is not trusted."""
    pod = node.bridged("a")

    async def scenario(at: Attaching) -> None:
        given = await at.add(pod)
        outside = node.lab.namespaces["outside"].netns_name
        await shell(pod if there else node.namespace, command.format(outside=outside))
        await at.until(lambda endpoints: not endpoints)
        assert at.attacher.ended == {Cause.LINK: 1}
        if there:
            await shell(pod, f"link add eth0 address {given.mac} type bridge", "link set eth0 up")
        assert len(await at.attacher.check(given)) == 1
        assert list(at.journal.attachments) == [given.key]  # its DEL will come

    node.run(scenario)


def test_the_parent_of_macvlans_goes_with_all_of_them(node: Node) -> None:
    pods = [node.macvlan("a"), node.macvlan("b"), node.bridged("c")]

    async def scenario(at: Attaching) -> None:
        given = [await at.add(pod) for pod in pods]
        await shell(node.namespace, "link del uplink")
        await at.until(lambda endpoints: list(endpoints) == [given[2].key])
        assert at.attacher.ended == {Cause.LINK: 2}

    node.run(scenario)


def test_a_veth_is_followed_to_another_bridge_and_to_none(node: Node) -> None:
    """And under another name. CHECK says that it is not where the ADD found it."""
    pod = node.bridged("a")

    async def scenario(at: Attaching) -> None:
        given = await at.add(pod)
        index, bridges = node.link("veth-a").index, {name: node.link(name).index for name in ("cni0", "br1")}
        await shell(node.namespace, "link set veth-a master br1")
        moved = VethLink(index, "veth-a", bridges["br1"])
        await at.until(lambda endpoints: endpoints[given.key].link == moved)
        assert await at.attacher.check(given) == ("what veth-a is a port of: was cni0, is br1",)
        await shell(node.namespace, "link set veth-a nomaster")
        await at.until(lambda endpoints: endpoints[given.key].link == VethLink(index, "veth-a", None))
        await shell(node.namespace, "link set veth-a master cni0", "link set veth-a name other")
        await at.until(lambda endpoints: endpoints[given.key].link == VethLink(index, "other", bridges["cni0"]))
        assert (await at.attacher.check(given), at.attacher.ended) == ((), {})

    node.run(scenario)


@pytest.mark.parametrize(
    ("kind", "commands", "told"),
    [
        pytest.param(
            "bridged", ("link set eth0 down", "link set eth0 name x", "link set x up"),
            "its name: was eth0, is x", id="renamed",
        ),
        pytest.param(
            "bridged", ("link set eth0 address 02:00:00:00:00:99",),
            "the MAC address of eth0: was {mac}, is 02:00:00:00:00:99", id="MAC",
        ),
        pytest.param(
            "bridged", ("link set eth0 down", "link set eth0 name x", "link add eth0 type bridge"),
            "its name: was eth0, is x", id="renamed, with a decoy",
        ),
        pytest.param("macvlan", ("link del eth0",), "interface eth0 is gone", id="macvlan deleted"),
        pytest.param(
            "macvlan", ("link add s link eth0 type macvlan", "link del eth0", "link set s name eth0"),
            "interface eth0 is another than the one that was attached", id="macvlan replaced by a sibling",
        ),
        pytest.param(
            "macvlan", ("link set eth0 type macvlan mode private",),
            "the mode of eth0: was bridge, is private", id="macvlan mode",
        ),
    ],
)  # fmt: skip
def test_what_a_pod_does_to_its_interface_changes_nothing(
    node: Node, kind: str, commands: tuple[str, ...], told: str
) -> None:
    """Of what is enforced. CHECK tells it."""
    pod: Namespace = getattr(node, kind)("a")

    async def scenario(at: Attaching) -> None:
        given = await at.add(pod)
        before = at.endpoints
        await shell(pod, *commands)
        assert await at.attacher.check(given) == (told.format(mac=given.mac),)
        await at.attacher.take(News(lost=True))
        assert (at.endpoints, at.attacher.ended) == (before, {})

    node.run(scenario)


# --- requests of the server -------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Blocked("it does not fit"), Retry("the tables are not there")])
def test_what_is_not_enforced_is_not_attached(node: Node, outcome: Outcome) -> None:
    pod = node.bridged("a")

    async def scenario(at: Attaching) -> None:
        at.outcome = outcome
        _, given = add_of(node, pod)
        assert await at.attacher.attach(given) == outcome
        await at.attacher.detach(given.key, given)  # as the server then does
        assert at.endpoints == {}

    node.run(scenario)


def test_collecting_leaves_only_what_is_kept(node: Node) -> None:
    pods = [node.bridged("a"), node.routed("b")]

    async def scenario(at: Attaching) -> None:
        first, second = [await at.add(pod) for pod in pods]
        assert await at.attacher.collect({second.key, key_of(pods[0], "other")}) == DONE
        assert (list(at.endpoints), at.attacher.ended) == ([second.key], {})
        assert first.key not in at.endpoints

    node.run(scenario)


def test_status_is_that_of_whoever_enforces(node: Node) -> None:
    async def scenario(at: Attaching) -> None:
        assert at.attacher.status() == "bgpd is still looking for the pods that run already"
        assert not at.store.newest.synced
        await at.until_adopted()
        assert at.attacher.status() == ""
        at.unready = "the API server has not listed the policies yet"
        assert at.attacher.status() == at.unready

    node.run(scenario)


def test_forty_pods_at_once(node: Node) -> None:
    """Each with the interface that is its own."""
    pods = [node.bridged(f"p{number}") for number in range(40)]

    async def scenario(at: Attaching) -> None:
        await asyncio.gather(*(at.add(pod) for pod in pods))
        assert {key.container: each.link for key, each in at.endpoints.items()} == {
            pod.name: VethLink(node.link(f"veth-{pod.name}").index, f"veth-{pod.name}", node.link("cni0").index)
            for pod in pods
        }

    node.run(scenario)
