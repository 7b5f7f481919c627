"""The actuator of the policy maps against the kernel's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from bgpd.datapath import layout, loader
from bgpd.datapath.layout import Action, Peer, Port, Rule, RuleFlag, policy_address
from bgpd.datapath.loader import Installed
from bgpd.model.outcome import DONE
from bgpd.model.policy import Direction, RuleRef
from bgpd.policy.entries import Contents, PortKey, RangeKey, RuleKey
from bgpd.policy.map import KEY, PodLinks, PolicyMaps, Stages
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import TargetError
from tests.bpf.conftest import emptied
from tests.bpf.packets import SOURCE_V4
from tests.bpf.test_policy import CLIENT, DROP, PASS, SET, V4, ask, to

FLIPS = 50
ALLOW = Rule(0, Action.ALLOW, 0, 0, 1)
SOME = Contents(
    peers={policy_address(ip_address(each)): Peer(5, SET, 0, 3) for each in ("10.244.1.3", "fd00::3")},
    cidrs={ip_network("10.0.0.0/8"): 7, ip_network("10.1.0.0/16"): 8, ip_network("fd00::/8"): 9},
    rules={RuleKey(SET, 7): Rule(31, Action.DENY, RuleFlag.HAS_PORTS, 0, 2), RuleKey(SET, 9): ALLOW},
    ports={PortKey(31, 6, 80): Port(Action.ALLOW, 0, 0, 3)},
    ranges={RangeKey(31, 6, 0x1000, 4): Port(Action.ALLOW, 0, 0, 4), RangeKey(31, 17, 0, 0): Port(0, 0, 0, 5)},
)


loop = asyncio.Runner()  # the actuator goes on between two calls, as it does in the daemon


@pytest.fixture(scope="module", autouse=True)
def over() -> Iterator[None]:
    with loop:
        yield


@pytest.fixture
def policy(shared_policy: Installed) -> Installed:
    return emptied(shared_policy)


@pytest.fixture
def maps(policy: Installed, shared: Path) -> PolicyMaps:
    return PolicyMaps(policy, shared)


def bring(maps: PolicyMaps, *steps: Contents) -> None:
    """From what is there, as the loop would; in the end nothing is left over."""

    async def apply() -> None:
        have = await maps.observe()
        assert await maps.apply([Change(KEY, Stages(steps), have.get(KEY))]) == [DONE]
        await maps.settled()

    loop.run(apply())


async def flip(maps: PolicyMaps, stages: Sequence[Contents]) -> None:
    """Back and forth, faster than what is left over goes: some of it is wanted again."""
    have = (await maps.observe())[KEY]
    for turn in range(FLIPS):
        want = Stages((stages[(turn + 1) % 2],))
        await maps.apply([Change(KEY, want, have)])
        await asyncio.sleep(turn % 4 * 0.004)
        have = want
    await maps.settled()


def there(maps: PolicyMaps) -> Contents:
    async def look() -> Contents:
        (contents,) = (await maps.observe())[KEY].steps
        await maps.settled()
        return contents

    return loop.run(look())


def test_what_is_written_is_read(maps: PolicyMaps) -> None:
    bring(maps, SOME)
    assert there(maps) == SOME
    bring(maps, SOME)
    assert there(maps) == SOME


@pytest.mark.parametrize("part", ["peers", "cidrs", "rules", "ports", "ranges"])
def test_what_is_no_longer_wanted_goes(maps: PolicyMaps, part: str) -> None:
    bring(maps, SOME)
    less = replace(SOME, **{part: dict([*getattr(SOME, part).items()][1:])})
    bring(maps, less)
    assert there(maps) == less
    bring(maps, Contents())
    assert there(maps) == Contents()


def test_the_same_contents_are_equal_whatever_led_there() -> None:
    """So that the loop leaves alone what is as wanted; what numbers stand for is not in the kernel."""
    assert Stages((SOME,)) == Stages((Contents(), replace(SOME, cookies={}), replace(SOME)))
    assert Stages((SOME,)) != Stages((replace(SOME, peers={}),))


def test_a_pod_meets_the_old_rules_or_the_new_ones_at_every_moment(policy: Installed, maps: PolicyMaps) -> None:
    """Both rule sets allow this packet, and it is never dropped while one becomes the other and back."""
    stages = [
        Contents(
            peers={policy_address(V4): Peer(5, 0, number), policy_address(SOURCE_V4): Peer(peer)},
            rules={RuleKey(number, peer): ALLOW},
        )
        for number, peer in ((SET, CLIENT), (SET + 1, CLIENT))
    ]
    bring(maps, stages[0])
    over = threading.Event()
    verdicts: list[int] = []

    def look() -> None:
        while not over.is_set():
            verdicts.append(ask(policy, to(V4)))

    looking = threading.Thread(target=look)
    looking.start()
    loop.run(flip(maps, stages))
    over.set()
    looking.join()
    assert len(verdicts) > FLIPS
    assert {*verdicts} == {PASS}
    assert there(maps) == stages[FLIPS % 2]  # and nothing is left over
    bring(maps, replace(stages[0], rules={}))
    assert ask(policy, to(V4)) == DROP


def test_what_does_not_fit_changes_nothing(maps: PolicyMaps) -> None:
    room = layout.MAPS["policy_ports"].max_entries
    ports = {PortKey(number, 6, 80): Port(1, 0, 0, 0) for number in range(room + 1)}
    cookies = {number: RuleRef(f"x/{number}", Direction.INGRESS, 0) for number in range(6)}
    bring(maps, SOME)
    too_many = r"65,537 entries and the map policy_ports holds 65,536\. Most are of NetworkPolicy x/0 \(65,536\), "
    with pytest.raises(TargetError, match=too_many):
        bring(maps, replace(SOME, ports={**ports, **SOME.ports}, peers={}, cookies=cookies))
    assert there(maps) == SOME


def test_the_pods_behind_ports_are_written_and_read(policy: Installed) -> None:
    links = PodLinks(policy)
    pod = policy_address(V4), bytes(16)
    loop.run(links.apply([Change(3, pod, None), Change(4, pod, None)]))
    assert loop.run(links.observe()) == {3: pod, 4: pod}
    loop.run(links.apply([Change(3, None, pod)]))
    assert loop.run(links.observe()) == {4: pod}


def test_pins_that_vanish_are_put_back(policy: Installed, maps: PolicyMaps, shared: Path) -> None:
    bring(maps, SOME)
    (shared / "policy_rules").unlink()
    assert there(maps) == SOME
    again = loader.install(loader.shipped("policy"), shared)
    assert again.maps["policy_rules"].id == policy.maps["policy_rules"].id
    assert not again.programs["policy"].replaced
