"""Pods on macvlans through all of `bgpd.policy.policing`: attached, adopted, ended, and what the node itself does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import pytest

from bgpd.config.load import Loaded, load
from bgpd.datapath import layout
from bgpd.model.attachment import AttachmentKey, PodName
from bgpd.model.endpoint import Endpoint, Endpoints, IpvlanLink, IpvlanMode, MacvlanLink, MacvlanMode, VethLink
from bgpd.model.labels import Selector
from bgpd.model.node import Node
from bgpd.model.outcome import DONE, Blocked, Retry
from bgpd.model.pod import Namespace as PodNamespace
from bgpd.model.pod import Pod
from bgpd.model.policy import NetworkPolicy
from bgpd.policy import parents
from bgpd.policy.policing import Policing
from bgpd.policy.view import Objects
from bgpd.runtime.store import Store
from tests.fabric import frames, policy_node
from tests.fabric.macvlan_node import MacvlanPlace
from tests.fabric.netns import Lab
from tests.fabric.parent_node import PLANS
from tests.fabric.reach import ping
from tests.unit.config_values import SMALLEST

pytestmark = pytest.mark.needs("mount", "nft")

T = TypeVar("T")
SILENCE_S = 0.25
DEADLINE_S = 20.0  # two cores, and other tests beside this one
CLOSED = {"shop/closed": NetworkPolicy("shop", "closed", "", Selector(), (), None)}


class Daemon:
    """Policing on the node, with what Kubernetes would have told it; without `api_server` no policy yet."""

    def __init__(self, place: MacvlanPlace, directory: Path, *, api_server: bool = True) -> None:
        self.place, self.directory = place, directory
        self.config = _told(self.configured())
        self.endpoints: Store[Endpoints] = Store({})
        self.policies: Store[Mapping[str, NetworkPolicy]] = Store({})
        pods = {f"shop/{name}": Pod("shop", name, node="worker1") for name in place.pods}
        nodes, namespaces = {"worker1": Node("worker1")}, {"shop": PodNamespace("shop")}
        objects = Objects(_told(nodes), _told(pods), _told(namespaces), self.policies)
        if api_server:
            self.policies.publish({})
        self.policing = Policing("worker1", self.config, objects, self.endpoints, lambda done: None)

    def configured(self, **policy: object) -> Loaded:
        file = self.place.lab.directory / "bgpd.yaml"
        values = {"paths": {"bpf": str(self.directory)}, "policy": policy, "cni": {"deadlineSeconds": 1}}
        file.write_text(json.dumps({**SMALLEST, **values}))
        return load(file)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Policing]:
        task = asyncio.create_task(self.policing.run())
        try:
            yield self.policing
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def attached(self, *names: str) -> list[Endpoint]:
        found = [endpoint(self.place, name) for name in names]
        self.publish(*found)
        return found

    def publish(self, *endpoints: Endpoint) -> None:
        self.endpoints.publish({each.key: each for each in endpoints})


def _told(value: T) -> Store[T]:
    store = Store(value)
    store.publish(value)
    return store


def endpoint(place: MacvlanPlace, name: str) -> Endpoint:
    addresses = tuple(ip_address(plan.of(name)) for plan in PLANS)
    link = MacvlanLink(place.parent, "eth0", place.mode)
    return Endpoint(
        AttachmentKey("net", name, "eth0"), PodName("shop", name, ""), place.mac(name).hex(":"), addresses, link
    )


def on_ipvlan(name: str, address: str, netns: Path, index: int) -> Endpoint:
    """Its parent is any interface: nothing is sent there."""
    link = IpvlanLink(1, "lo", IpvlanMode.L2, netns, index)
    return Endpoint(AttachmentKey("net", name, "eth0"), None, "02:00:00:00:00:0b", (ip_address(address),), link)


def inside(place: MacvlanPlace, name: str) -> tuple[Path, int]:
    """Where a pod has its interface."""
    return place.pods[name].path, policy_node.link(place.pods[name], "eth0")[0]


async def soon(true: Callable[[], bool]) -> bool:
    async with asyncio.timeout(DEADLINE_S):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110 - nobody tells of what the kernel does
            await asyncio.sleep(0.05)
    return True


@pytest.fixture
def place(lab: Lab) -> Iterator[MacvlanPlace]:
    """The connection that owns the tables is closed by the end of the process only, else they would go before it:
    here there are several to a process."""
    yield MacvlanPlace(lab)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def reaches(place: MacvlanPlace, client: str, server: str) -> bool:
    return all(ping(place.namespace(client), plan.of(server), timeout_s=SILENCE_S) for plan in PLANS)


def test_a_pod_that_is_attached_is_policed_when_its_add_returns(place: MacvlanPlace, bpffs: Path) -> None:
    """And the node, whose interface it shares, goes on. The next daemon adopts; without pods nothing is left."""
    directory = bpffs / "bgpd"

    async def first() -> None:
        daemon = Daemon(place, directory)
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            daemon.policies.publish(CLOSED)
            for each in daemon.attached("a", "b"):
                assert await policing.enforced(each) == DONE
            assert not reaches(place, "a", "b")
            assert not reaches(place, "outside", "b")
            assert reaches(place, "node", "outside")
            daemon.policies.publish({})
            assert await soon(lambda: reaches(place, "a", "b") and reaches(place, "outside", "b"))
            daemon.policies.publish(CLOSED)
            assert await soon(lambda: not reaches(place, "a", "b"))

    async def second() -> None:
        assert not reaches(place, "a", "b"), "nobody runs"
        daemon = Daemon(place, directory)
        daemon.policies.publish(CLOSED)
        daemon.attached("a", "b")
        pins = {path: path.stat().st_ino for path in directory.glob("macvlan_*_at_*")}
        assert len(pins) == 2
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            assert await soon(lambda: policing.macvlans.parents.settled and bool(policing.macvlans.parents.have))
            assert {path: path.stat().st_ino for path in directory.glob("macvlan_*_at_*")} == pins
            assert not reaches(place, "a", "b")
            daemon.attached("a")
            assert await soon(lambda: policing.macvlans.stations.settled and reaches(place, "node", "outside"))
            daemon.attached()
            assert await soon(lambda: not list(directory.glob("macvlan_*_at_*")))
            assert reaches(place, "node", "outside")

    place.here(first)
    place.here(second)


def test_the_node_keeps_its_uplink_when_the_last_pod_there_went_while_no_daemon_ran(
    place: MacvlanPlace, bpffs: Path
) -> None:
    """And the API server, which may be behind that uplink, does not answer the next one yet."""

    async def run() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            (pod,) = daemon.attached("a")
            assert await policing.enforced(pod) == DONE
        after = Daemon(place, bpffs / "bgpd", api_server=False)
        after.publish()
        async with asyncio.timeout(DEADLINE_S), after.running() as policing:
            assert await soon(lambda: policing.macvlans.parents.have.keys() == {place.parent})
            assert isinstance(pod.link, MacvlanLink)
            its = parents.entries_of(pod, pod.link).keys()
            assert await soon(lambda: its.isdisjoint(policing.macvlans.stations.have))
            assert await asyncio.to_thread(reaches, place, "node", "outside")
            after.policies.publish({})
            assert await soon(lambda: not policing.macvlans.parents.have and not policing.macvlans.stations.have)
            assert await asyncio.to_thread(reaches, place, "node", "outside")

    place.here(run)


def test_an_interface_that_the_node_makes_on_the_parent_may_send(place: MacvlanPlace, bpffs: Path) -> None:
    async def run() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            (pod,) = daemon.attached("a")
            assert await policing.enforced(pod) == DONE
            place.node.ip("link add link eth0 name shim type macvlan mode bridge", "link set shim up")
            place.node.add_address("shim", "198.51.100.50/32")
            place.node.add_route("198.51.100.2/32 src 198.51.100.50", dev="shim")
            assert await soon(lambda: ping(place.node, PLANS[0].outside, timeout_s=SILENCE_S))

    place.here(run)


def test_a_macvlan_of_another_system_may_send_once_the_configuration_names_it(
    place: MacvlanPlace, bpffs: Path
) -> None:
    """As a reload does it. In a pod's name it may not."""
    machine = place.lab.namespace("machine")
    place.macvlan(machine, "bridge")
    mac, to = policy_node.link(machine, "eth0")[1], place.mac("outside")

    def heard(source: str) -> bool:
        with frames.listener(place.outside) as wire:
            frames.send(machine, "eth0", frames.udp(to, mac, source, PLANS[0].outside))
            return frames.marked(wire, SILENCE_S) is not None

    async def run() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            (pod,) = daemon.attached("a")
            assert await policing.enforced(pod) == DONE
            assert not await asyncio.to_thread(heard, PLANS[0].c)
            daemon.config.publish(daemon.configured(foreignMACAddresses=[mac.hex(":")]))
            assert await soon(lambda: heard(PLANS[0].c))
            assert not await asyncio.to_thread(heard, PLANS[0].a)
            daemon.config.publish(daemon.configured())
            assert await soon(lambda: not heard(PLANS[0].c))

    place.here(run)


def test_a_macvlan_that_hears_what_is_for_others_is_refused(place: MacvlanPlace, bpffs: Path) -> None:
    async def run() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        pod = endpoint(place, "a")
        outcome = await daemon.policing.enforced(
            replace(pod, link=MacvlanLink(place.parent, "eth0", MacvlanMode.SOURCE))
        )
        assert isinstance(outcome, Blocked)

    place.here(run)


def test_a_pod_that_cannot_be_entered_is_in_nobody_s_way(place: MacvlanPlace, bpffs: Path) -> None:
    """Be they on ipvlans as well. It does not start itself, and whoever asks is told why."""
    nowhere = place.lab.directory / "netns"
    nowhere.symlink_to(nowhere)
    lost = on_ipvlan("lost", "192.0.2.8", nowhere, 2)
    others = [on_ipvlan(name, f"192.0.2.{at}", *inside(place, name)) for at, name in enumerate(("b", "c"), 9)]

    async def scenario() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            others.extend(daemon.attached("a"))
            for known in ([lost, *others[1:]], [lost, *others]):
                daemon.publish(*known)
                assert {await policing.enforced(each) for each in known[1:]} == {DONE}
            refused = await policing.enforced(lost)
            assert isinstance(refused, Retry)
            assert str(nowhere) in refused.reason
            assert policing.blocked == {lost.key: refused.reason}
            assert policing.unready() == ""
            assert any(refused.reason in each for each in policing.problems())
            daemon.publish(*others)
            assert {await policing.enforced(each) for each in others} == {DONE}
            assert list(policing.problems()) == []

    place.node.call(lambda: asyncio.run(scenario()))


def test_a_pod_that_went_meanwhile_is_not_waited_for(place: MacvlanPlace, bpffs: Path) -> None:
    async def scenario() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            gone = on_ipvlan("b", "192.0.2.9", *inside(place, "b"))
            daemon.publish()
            outcome = await policing.enforced(gone)
            assert isinstance(outcome, Retry)
            assert "net,b,eth0 has gone" in outcome.reason

    place.node.call(lambda: asyncio.run(scenario()))


def test_a_pod_that_kubernetes_does_not_show_is_named(place: MacvlanPlace, bpffs: Path) -> None:
    """Before the ADD is over, which could not say what was waited for; so is one of which an earlier one is shown."""

    async def scenario() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            unknown = on_ipvlan("b", "192.0.2.9", *inside(place, "b"))
            for name, uid, found in (("nobody", "", "nothing of it"), ("b", "2", "only an earlier one")):
                asked = replace(unknown, pod=PodName("shop", name, uid))
                daemon.publish(asked)
                outcome = await policing.enforced(asked)
                assert isinstance(outcome, Retry)
                assert f"has not shown the pod shop/{name} to bgpd yet, {found}" in outcome.reason

    place.node.call(lambda: asyncio.run(scenario()))


def test_what_is_in_the_way_of_one_kind_of_link_is_told_to_its_own_pods(place: MacvlanPlace, bpffs: Path) -> None:
    """Something else is in the place of one of its maps."""
    directory = bpffs / "bgpd"
    for name in ("macvlan_stations", "ipvlan_pods"):
        (directory / name).mkdir(parents=True)
    routed = Endpoint(AttachmentKey("net", "v", "eth0"), None, "02:00:00:00:00:0c", (), VethLink(9, "veth9", None))

    async def scenario() -> None:
        daemon = Daemon(place, directory)
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            (on_macvlan,) = daemon.attached("a")
            other = on_ipvlan("b", "192.0.2.9", *inside(place, "b"))
            daemon.publish(on_macvlan, other, routed)
            assert await policing.enforced(routed) == DONE
            for each, lacking in ((on_macvlan, "macvlan_stations"), (other, "ipvlan_pods")):
                outcome = await policing.enforced(each)
                assert isinstance(outcome, Retry)
                assert str(directory / lacking) in outcome.reason
            assert policing.blocked.keys() == {on_macvlan.key, other.key}

    place.node.call(lambda: asyncio.run(scenario()))


def test_a_macvlan_that_there_is_no_room_for_is_in_nobody_s_way(place: MacvlanPlace, bpffs: Path) -> None:
    """Not of those that came before, and not once there is room."""
    room = layout.MAPS["macvlan_stations"].max_entries
    foreign = [f"06:00:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(room)]

    async def scenario() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            (before,) = daemon.attached("a")
            assert await policing.enforced(before) == DONE
            daemon.config.publish(daemon.configured(foreignMACAddresses=foreign))
            assert await soon(lambda: bool(policing.macvlans.stations.trouble))
            after = replace(before, key=AttachmentKey("net", "z", "eth0"), mac="fe:00:00:00:00:01", addresses=())
            daemon.publish(before, after)
            assert await policing.enforced(before) == DONE
            refused = await policing.enforced(after)
            assert refused == Retry(
                f"policy_stations: writing the map macvlan_stations: it is full, with {room:,} entries"
            )
            assert policing.blocked == {after.key: refused.reason}
            assert policing.unready() == ""
            daemon.config.publish(daemon.configured())
            assert await soon(lambda: not policing.blocked)
            assert await policing.enforced(after) == DONE

    place.here(scenario)


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8:7::7"])
def test_what_address_the_node_gets_or_loses_the_programs_of_ipvlans_know(
    place: MacvlanPlace, bpffs: Path, address: str
) -> None:
    """One that keepalived moves, say: without being asked, and long before anybody looks by himself."""
    one = on_ipvlan("a", "192.0.2.9", *inside(place, "a"))
    key = "ipvlan_addresses", layout.IPVLAN_ADDRESS_KEY.pack(1, layout.policy_address(ip_address(address)))

    async def scenario() -> None:
        daemon = Daemon(place, bpffs / "bgpd")
        async with asyncio.timeout(DEADLINE_S), daemon.running() as policing:
            daemon.publish(one)
            assert await policing.enforced(one) == DONE
            place.node.ip(f"addr add {address} dev eth0")
            assert await soon(lambda: key in policing.ipvlans.neighbors.have)
            place.node.ip(f"addr del {address} dev eth0")
            assert await soon(lambda: key not in policing.ipvlans.neighbors.have)

    place.node.call(lambda: asyncio.run(scenario()))
