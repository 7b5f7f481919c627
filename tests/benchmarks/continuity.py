"""Whether the fabric notices: the daemon restarted, killed or upgraded, ExaBGP killed; a BIRD beside it.

A sample is a question to a ToR's BIRD every 10 ms whether it still has a usable route; lost is a sample without.
What is on the node's wire meanwhile is captured, and whatever is not a keepalive is counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from tests.benchmarks.contenders import bgp_options
from tests.benchmarks.installation import Installation
from tests.benchmarks.report import Result
from tests.fabric.bird import Bird
from tests.fabric.node import BgpdNode
from tests.fabric.observe import BgpCapture, RouteSampler, Samples
from tests.fabric.topology import CABLE, NodePlace, TwoTorFabric

INTERVAL_S = 0.01
AFTERWARDS_S = 3.5  # a keepalive interval and more: what comes late is seen too
DOWN_S = 1.0  # how long a speaker that was killed stays away: systemd's RestartSec and its start


@dataclass(frozen=True, slots=True)
class Seen:
    """Samples lost, the worse of both ToRs, and the messages that were no keepalives."""

    lost: int
    messages: int
    longest_blind_ms: float


def watch(fabric: TwoTorFabric, place: NodePlace, prefix: str, act: Callable[[], None]) -> Seen:
    """What both ToRs and the node's wire show while `act` runs, and for a while afterwards."""
    with ExitStack() as stack:
        capture = stack.enter_context(BgpCapture(place.namespace, CABLE))
        samplers = []
        for tor in fabric.tors:
            assert isinstance(tor.speaker, Bird)
            sampler = RouteSampler(tor.speaker.control_path, [prefix], INTERVAL_S)
            samplers.append(stack.enter_context(sampler))
        for sampler in samplers:
            sampler.wait_samples()
        act()
        time.sleep(AFTERWARDS_S)
    if capture.dropped:
        raise RuntimeError(f"{capture.dropped} frames were not captured: the count of messages is worth nothing")
    seen = [sampler.result() for sampler in samplers]
    return Seen(
        max(map(samples_lost, seen)),
        len(capture.besides_keepalives()),
        max(it.longest_blind_ms for it in seen),
    )


def samples_lost(seen: Samples) -> int:
    """Every loss counted as long as the longest: never too few."""
    return seen.losses * math.ceil(seen.longest_loss_ms / 1000 / INTERVAL_S)


def results(fabric: TwoTorFabric, node: BgpdNode, place: NodePlace) -> list[Result]:
    """`node` announces the first pod CIDR of `place`; another node gets a BIRD for the time."""
    prefix = place.pod_cidrs[0]
    restart = watch(fabric, place, prefix, lambda: _restart(node))
    kill = watch(fabric, place, prefix, lambda: _kill_daemon(node))
    crash = watch(fabric, place, prefix, lambda: _kill_speaker(node))
    bird_restart, bird_crash = _bird(fabric, next(it for it in fabric.nodes if it is not place))
    blind = max(restart.longest_blind_ms, kill.longest_blind_ms, crash.longest_blind_ms)
    return [
        _lost("restart_samples_lost", restart.lost, bird=bird_restart.lost),
        _messages("restart_bgp_messages", restart.messages, bird=bird_restart.messages),
        _lost("sigkill_samples_lost", kill.lost),
        _messages("sigkill_bgp_messages", kill.messages),
        _lost("speaker_sigkill_samples_lost", crash.lost, bird=bird_crash.lost),
        Result(name="longest_blind_ms", value=blind, unit="ms"),
    ]


def upgrade(fabric: TwoTorFabric, place: NodePlace, installation: Installation) -> list[Result]:
    """From one release to the next on a node of its own, which leaves the fabric in the end.

    As an operator does it, `sudo systemd/install`: a new virtual environment, checked, put in the place of the old
    one by a rename, and the daemon restarted from it. The speaker goes on from the release that it was started from.
    """
    before, after = installation.wheels
    installation.install(before)
    node = BgpdNode.announcing(fabric, place=place, program=installation.program)
    version = node.status()["version"]

    def act() -> None:
        installation.install(after)
        node.restart_daemon()
        if node.wait_healthy()["version"] == version:
            raise RuntimeError(f"after the upgrade {version} still runs")

    seen = watch(fabric, place, place.pod_cidrs[0], act)
    assert node.daemon is not None
    node.daemon.stop()
    node.stop_speaker()
    return [
        _lost("upgrade_samples_lost", seen.lost),
        _messages("upgrade_bgp_messages", seen.messages),
        Result(name="upgrade_longest_blind_ms", value=seen.longest_blind_ms, unit="ms"),
    ]


def _lost(name: str, value: int, **beside: float) -> Result:
    return Result(name=name, value=value, unit="samples", goal=0, beside=beside)


def _messages(name: str, value: int, **beside: float) -> Result:
    return Result(name=name, value=value, unit="messages", goal=0, beside=beside)


def _restart(node: BgpdNode) -> None:
    assert node.daemon is not None
    node.daemon.stop()
    node.start_daemon()
    node.wait_healthy()


def _kill_daemon(node: BgpdNode) -> None:
    assert node.daemon is not None
    node.daemon.kill()
    node.start_daemon()
    node.wait_healthy()


def _kill_speaker(node: BgpdNode) -> None:
    assert node.speaker is not None
    node.speaker.kill()
    time.sleep(DOWN_S)
    node.start_speaker()
    node.wait_healthy()


def _bird(fabric: TwoTorFabric, place: NodePlace) -> tuple[Seen, Seen]:
    """A BIRD in the same places: `systemctl restart bird`, and SIGKILL under graceful restart."""
    prefix = "188.188.201.0/24"
    bird = Bird(place.namespace, bgp_options(fabric, place), name="continuity")
    bird.reconfigure(originate=(prefix,))
    bird.start()
    _wait(fabric, place, prefix)

    def restart() -> None:
        bird.stop()
        bird.start()
        _wait(fabric, place, prefix)

    def crash() -> None:
        bird.kill()
        time.sleep(DOWN_S)
        bird.start(restarting=True)
        _wait(fabric, place, prefix)

    seen = watch(fabric, place, prefix, restart), watch(fabric, place, prefix, crash)
    bird.stop()
    return seen


def _wait(fabric: TwoTorFabric, place: NodePlace, prefix: str) -> None:
    for tor in fabric.tors:
        tor.speaker.wait_established(place.address)
        tor.speaker.wait_route(prefix, peer=place.address, where=lambda route: not route.stale)
