"""Pods on ipvlans through the runtime's chain, the plugin and the daemon's parts, on two nodes of one wire."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from bgpd.datapath import links
from bgpd.model.attachment import InterfaceKind
from bgpd.policy.clear import clear
from bgpd.runtime.store import Store
from tests.contract.cni_runtime import PluginError
from tests.fabric.disks import fill, small_disk
from tests.fabric.ipvlan_node import lacking
from tests.fabric.ipvlan_site import (
    DENY_ALL,
    EVERYTHING,
    MODE,
    PODS,
    SOON_S,
    Site,
    addresses,
    lacking_plugins,
)
from tests.fabric.mounts import bpffs_at
from tests.fabric.netns import Lab
from tests.fabric.process import poll
from tests.fabric.reach import ping

SILENCE_S = 0.6


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """In mode L2, or that of a test's parameter."""
    if reason := lacking() or lacking_plugins():
        pytest.skip(reason)
    with Lab() as lab, bpffs_at(lab.directory / "bpf") as bpffs:
        yield Site(lab, bpffs, getattr(request, "param", "l2"))


@pytest.mark.parametrize("site", ["l2", "l3"], indirect=True)
def test_deny_all_stops_pings_and_connections_on_a_node_and_between_nodes(site: Site) -> None:
    """In both directions, and while no daemon runs; the next one goes on with what there is. Then a pod goes, and all
    of it."""
    one, other = site.workers
    with other.running():
        with one.running():
            runtime = site.attach()[one.name]
            assert {each.link.kind for each in one.endpoints.newest.value.values()} == {InterfaceKind.IPVLAN}
            assert site.reached() == EVERYTHING
            for worker in site.workers:
                worker.apply(DENY_ALL)
            assert site.reached() == set()
        pins = {path.name: path.stat().st_ino for path in one.pins.glob("ipvlan_*_at_*")}
        assert site.reached() == set(), "nobody runs"
        with one.running():
            poll(lambda: len(one.policing.ipvlans.pods.have) == 2, SOON_S, lambda: "\n".join(one.problems()))
            assert {path.name: path.stat().st_ino for path in one.pins.glob("ipvlan_*_at_*")} == pins
            one.apply({})
            other.apply({})
            assert site.reached() == EVERYTHING
            runtime.check("test-2", site.pods["test-2"].path, but=["tuning"])
            runtime.delete("test-2", site.pods["test-2"].path)
            poll(lambda: len(one.policing.ipvlans.pods.have) == 1, SOON_S, lambda: "\n".join(one.problems()))
            one.apply(DENY_ALL)
    pods = [site.pods[name].path for name, node in PODS.items() if node == one.name]
    one.host.call(lambda: clear(one.pins, pods))
    assert not one.pins.exists()  # the kernel takes links off a moment after their pins
    poll(lambda: ping(site.pods["test-1"], "10.6.0.2", timeout_s=2), SOON_S, lambda: "something is asked still")


def test_maps_that_are_new_are_asked_by_nobody_before_they_have_been_written(site: Site) -> None:
    """Of a daemon that begins with them, as after an upgrade to another layout, and cannot read the cluster yet."""
    one, other = site.workers
    with other.running():
        with one.running():
            site.attach()
            for worker in site.workers:
                worker.apply(DENY_ALL)
            assert site.reached() == set()
            shared, at_parent = dict(one.policing.ipvlans.shared.have), dict(one.policing.ipvlans.parents.have)
            assert shared and at_parent
        (one.pins / "policy_rules").unlink()
        one.policies = Store({})
        with one.running():
            poll(
                lambda: all(each.ever_settled for each in one.policing.ipvlans.loops),
                SOON_S,
                lambda: "\n".join(one.problems()),
            )
            assert one.policing.datapath.installed().renewed
            assert site.reached() == set()
            poll(
                lambda: (one.policing.ipvlans.shared.have, one.policing.ipvlans.parents.have) == (shared, at_parent),
                SOON_S,
                lambda: "\n".join(one.problems()),
            )
            one.apply(DENY_ALL)
            poll(
                lambda: one.policing.ipvlans.shared.have != shared and one.policing.ipvlans.parents.have != at_parent,
                SOON_S,
                lambda: "\n".join(one.problems()),
            )
            assert site.reached() == set()
            for worker in site.workers:
                worker.apply({})
            assert site.reached() == EVERYTHING


def test_a_pod_goes_from_one_kind_of_network_to_another_and_back(site: Site) -> None:
    """By a DEL and an ADD of the same name, as when a virtual machine is migrated; its policy comes along."""
    one, name = site.workers[0], "test-1"
    pod, outside = site.pods[name], site.workers[1].host
    outside.add_route("10.7.0.0/24", via="10.6.0.1")
    outside.add_route("fd07::/112", via="fd06::1")

    def is_policed(added: dict[str, Any]) -> None:
        at = [each["address"].partition("/")[0] for each in added["ips"]]
        assert len(at) == 2
        for policies, answers in (({}, True), (DENY_ALL, False)):
            one.apply(policies)
            assert [ping(outside, each, timeout_s=SILENCE_S) for each in at] == [answers] * len(at), one.problems()

    with one.running():
        on_ipvlan, on_veth = one.runtime(), one.by_veth()
        with pytest.raises(PluginError, match=rf'named \\?"other\\?" and has chaining-mode \\?"{MODE}\\?"'):
            one.by_name("other").add(name, pod.path, name)
        one.by_name("other").delete(name, pod.path)
        for _ in range(2):
            is_policed(on_ipvlan.add(name, pod.path, name))
            on_ipvlan.delete(name, pod.path)
            is_policed(on_veth.add(name, pod.path, name))
            assert [each.link.kind for each in one.endpoints.newest.value.values()] == [InterfaceKind.VETH]
            on_veth.delete(name, pod.path)
        assert one.policing.ipvlans.removed == 0
        poll(lambda: not one.policing.ipvlans.pods.have, SOON_S, lambda: "\n".join(one.problems()))
    assert list(one.pins.glob("ipvlan_pod_at_*")) == []


def test_a_full_disk_starts_no_pod_ends_those_that_there_are_and_stops_no_policy(site: Site) -> None:
    """What cannot be remembered is not attached: nothing of it is in the kernel. When there is room again, it is."""
    one, outside = site.workers[0], site.workers[1].host
    pods = {name: site.pods[name] for name, node in PODS.items() if node == one.name}
    (before, started), (refused, late) = pods.items()

    def answers() -> list[bool]:
        return [ping(outside, addresses(name)[0], timeout_s=SILENCE_S) for name in pods]

    with small_disk(one.directory / "state") as ballast, one.running():
        runtime = one.runtime()
        runtime.add(before, started.path, before)
        fill(ballast)
        with pytest.raises(PluginError, match=r"the attachment cannot be remembered: .*No space left on device"):
            runtime.add(refused, late.path, refused)
        assert len(one.endpoints.newest.value) == len(one.policing.ipvlans.pods.have) == 1
        assert answers() == [True, False]
        one.apply(DENY_ALL)
        assert answers() == [False, False]
        for name, pod in pods.items():
            runtime.delete(name, pod.path)
        poll(lambda: not one.policing.ipvlans.pods.have, SOON_S, lambda: "\n".join(one.problems()))
        ballast.unlink()
        at = runtime.add(refused, late.path, refused)["ips"][0]["address"].partition("/")[0]
        assert not ping(outside, at, timeout_s=SILENCE_S)
        one.apply({})
        assert ping(outside, at, timeout_s=2)


def test_a_pod_that_removes_its_filter_has_it_back_and_may_be_closed(site: Site) -> None:
    """Within a second of the daemon's being told, which the kernel does."""
    one, other = site.workers
    if one.host.call(links.has_tcx):
        pytest.skip("this kernel has tcx: no pod can remove its program")
    pod, address = site.pods["test-2"], addresses("test-2")[0]
    with other.running(), one.running(onTampering="close"):
        site.attach()
        assert ping(site.pods["test-1"], address, timeout_s=2)
        drift = one.policing.ipvlans.removed
        pod.run(["tc", "filter", "del", "dev", "eth0", "ingress"])
        removed = time.monotonic()
        poll(lambda: one.policing.ipvlans.removed > drift, SOON_S, lambda: "\n".join(one.problems()), 0.01)
        print(f"noticed after {time.monotonic() - removed:.2f} s")
        poll(lambda: "bpf" in pod.run(["tc", "filter", "show", "dev", "eth0", "ingress"]).stdout, SOON_S, str, 0.01)
        assert any("removed the program" in each for each in one.problems())
        closed = lambda: not ping(site.pods["test-3"], address, timeout_s=SILENCE_S)  # noqa: E731
        poll(closed, SOON_S, lambda: "\n".join(one.problems()))
        assert not ping(site.pods["test-1"], address, timeout_s=SILENCE_S)
        assert not ping(pod, addresses("test-3")[0], timeout_s=SILENCE_S)
        assert ping(site.pods["test-1"], addresses("test-3")[0], timeout_s=2), PODS
