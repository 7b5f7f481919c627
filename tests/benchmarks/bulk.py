"""Many prefixes at once: 1,000 from one manifest, and 40,000 to see whether a session with 9 s hold time lives.

The clock runs from the rename of the manifest until both ToRs count every prefix. They are asked for their
counters every 10 ms, which does not make them walk through the table. BIRD beside it takes the same prefixes
from an include file and `birdc configure`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import bgp_options, speaker_pids
from tests.benchmarks.footprint import rss_mb
from tests.benchmarks.report import Result
from tests.fabric.bird import Bird, protocol_name
from tests.fabric.bird_control import BirdControl
from tests.fabric.node import BgpdNode, node_manifest, two_tor_bgp
from tests.fabric.peer import many_prefixes
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace, TwoTorFabric

ROOM = "100.64.0.0/10"
FEW, RUNS = 1_000, 3
MANY = 40_000
MANY_TIMEOUT_S = 90.0
AFTERWARDS_S = 10.0  # longer than the hold time: a session that was starved falls within it


def bgp_section(fabric: TwoTorFabric) -> dict[str, Any]:
    """The two-ToR fabric's, with room in the export brake."""
    return {**two_tor_bgp(fabric), "export": {"allow": [ROOM, "188.188.0.0/16"], "maxPrefixes": MANY + 1}}


def results(fabric: TwoTorFabric, node: BgpdNode, place: NodePlace) -> list[Result]:
    """`node` runs on manifests with `bgp_section` and announces one prefix."""
    bird_place = next(it for it in fabric.nodes if it is not place)
    bird = Bird(bird_place.namespace, bgp_options(fabric, bird_place), name="bulk").start()
    for tor in fabric.tors:
        tor.speaker.wait_established(bird_place.address)
    few, many = list(many_prefixes(FEW, ROOM)), list(many_prefixes(MANY, ROOM))
    ours_s, theirs_s = [], []
    for _ in range(RUNS):
        ours_s.append(_announce(fabric, node, place, few))
        _announce(fabric, node, place, place.pod_cidrs[:1])
        theirs_s.append(_announce_bird(fabric, bird, bird_place, few))
        _announce_bird(fabric, bird, bird_place, ())
    found = [
        Result(
            name="announce_1000_s",
            value=statistics.median(ours_s),
            unit="s",
            goal=1.5,
            beside={"bird": statistics.median(theirs_s)},
        )
    ]
    return found + _many(fabric, node, place, bird, bird_place, many)


def _many(
    fabric: TwoTorFabric, node: BgpdNode, place: NodePlace, bird: Bird, bird_place: NodePlace, many: list[str]
) -> list[Result]:
    theirs_s = _announce_bird(fabric, bird, bird_place, many)
    bird.stop()
    for tor in fabric.tors:
        tor.speaker.wait_route_count(bird_place.address, 0)
    before = _flaps(node)
    try:
        ours_s = _announce(fabric, node, place, many)
    except TimeoutError:  # that, too, is a result
        ours_s = MANY_TIMEOUT_S
    time.sleep(AFTERWARDS_S)
    lost = _flaps(node) - before + sum(not tor.speaker.session(place.address).established for tor in fabric.tors)
    assert node.daemon is not None
    return [
        Result(name="routes_40000_session_lost", value=lost, unit="sessions", goal=0),
        Result(name="routes_40000_s", value=ours_s, unit="s", beside={"bird": theirs_s}),
        Result(name="routes_40000_daemon_rss_mb", value=rss_mb([node.daemon.pid]), unit="MB"),
        Result(name="routes_40000_speaker_rss_mb", value=rss_mb(speaker_pids(node)), unit="MB"),
    ]


def _flaps(node: BgpdNode) -> int:
    """How often the sessions came up again, both together."""
    return sum(int(row["flaps"]) for row in node.status()["peers"])


def _announce(fabric: TwoTorFabric, node: BgpdNode, place: NodePlace, prefixes: Sequence[str]) -> float:
    temporary = node.manifests / ".node.yaml.new"
    temporary.write_text(node_manifest(place.name, list(prefixes), place.address, place.address6))
    return _timed(fabric, place, len(prefixes), lambda: temporary.rename(node.manifests / "node.yaml"))


def _announce_bird(fabric: TwoTorFabric, bird: Bird, place: NodePlace, prefixes: Sequence[str]) -> float:
    temporary: Path = bird.directory / "originate4.new"
    temporary.write_text("".join(f"route {prefix} blackhole;\n" for prefix in prefixes))

    def act() -> None:
        temporary.rename(bird.directory / "originate4.conf")
        bird.ask("configure")

    return _timed(fabric, place, len(prefixes), act)


def _timed(fabric: TwoTorFabric, place: NodePlace, count: int, act: Callable[[], object]) -> float:
    """Seconds from `act` until both ToRs hold so many routes of `place`."""
    with ExitStack() as stack:
        controls = []
        for tor in fabric.tors:
            assert isinstance(tor.speaker, Bird)
            controls.append(stack.enter_context(BirdControl(tor.speaker.control_path)))
        began = time.monotonic()
        act()

        def counts() -> list[int]:
            return [held(control, place) for control in controls]

        poll(lambda: counts() == [count] * len(controls), MANY_TIMEOUT_S, lambda: f"the ToRs hold {counts()}")
        return time.monotonic() - began


def held(control: BirdControl, place: NodePlace) -> int:
    """What the ToR has imported from this node, all families; `Routes: 40 imported, ...` for each."""
    lines = control.ask(f"show protocols all {protocol_name(place.address)}")
    words = (line.split() for line in lines if line.strip().startswith("Routes:"))
    return sum(int(row[1]) for row in words)
