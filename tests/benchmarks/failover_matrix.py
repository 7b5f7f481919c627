"""What fails, in which mode, and for how many milliseconds packets are lost then: bgpd, and beside it BIRD by hand.

This decides the failures and when one is over. Each takes place on a fabric where all is well, and all is well again
before the next. A cell is the flow that lost most, of one through each ToR in each family, from the failure until
nothing is lost any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from tests.benchmarks.failover_nodes import Announcer, ByHand, Ours
from tests.benchmarks.failover_probe import Probe
from tests.benchmarks.failover_site import FailoverSite, Mode
from tests.benchmarks.report import Result
from tests.fabric.netns import Lab
from tests.fabric.screen import Screen

AWAY_S = 1.0
CALM_S = 1.5  # so long nothing must be lost before a failure is taken for over
LIMIT_S = 20.0  # twice the hold time: who has not noticed by then does not look
WARM_S = 0.3


@dataclass(frozen=True, slots=True)
class Failure:
    """`act` brings it about, `undo` ends what does not end by itself. `elsewhere`: the node's pod is lost with it."""

    name: str
    act: Callable[[Announcer], None]
    undo: Callable[[Announcer], None] = lambda _: None
    elsewhere: bool = False


def _restart_tor(it: Announcer) -> None:
    speaker = it.site.tor.speaker
    speaker.kill()
    time.sleep(AWAY_S)
    speaker.start(restarting=it.site.mode.graceful_restart)


def _start_tor_anew(it: Announcer) -> None:
    """A restart that is graceful may go on for minutes, in which BIRD tells nobody anything."""
    it.site.tor.speaker.kill()
    it.site.tor.speaker.start()


FAILURES = (
    Failure("daemon_killed", lambda it: it.kill_daemon()),
    Failure("speaker_killed", lambda it: it.kill_speaker()),
    Failure("speaker_stopped", lambda it: it.stop_speaker()),
    Failure(
        "node_cut",
        lambda it: it.site.fabric.cut(it.site.place),
        lambda it: it.site.fabric.mend(it.site.place),
        elsewhere=True,
    ),
    Failure("link_down", lambda it: it.site.silence(), lambda it: it.site.mend()),
    Failure("tor_restarted", _restart_tor, _start_tor_anew),
    Failure("api_server_gone", lambda it: it.lose_api_server(), lambda it: it.find_api_server()),
    Failure("pod_unhealthy", lambda it: it.site.pod.fail(), lambda it: it.site.pod.serve(), elsewhere=True),
    Failure("tor_cut", lambda it: it.site.fabric.cut(it.site.tor), lambda it: it.site.fabric.mend(it.site.tor)),
)


def results(
    screen: Screen, modes: Iterable[Mode] = tuple(Mode), failures: Iterable[Failure] = FAILURES
) -> list[Result]:
    """One result a cell, failure by failure."""
    failures = tuple(failures)
    found: dict[tuple[str, Mode], dict[str, float]] = {}
    for mode in modes:
        for kind in (Ours, ByHand):
            with screen.step(f"{kind.name}, {mode.name}: {len(failures)} failures"):
                for name, value in _column(kind, mode, failures).items():
                    found.setdefault((name, mode), {})[kind.name] = value
    return [
        Result(name=f"{name}_lost_ms{mode.value}", value=ours, unit="ms", beside=beside)
        for name in (it.name for it in failures)
        for mode in modes
        for ours, beside in [_split(found[name, mode])]
    ]


def _split(by_name: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    others = dict(by_name)
    return others.pop(Ours.name), others


def _column(kind: type[Announcer], mode: Mode, failures: Iterable[Failure]) -> dict[str, float]:
    with Lab() as lab, ExitStack() as closing:
        site = FailoverSite(lab, mode)
        site.start()
        announcer = kind(site, closing)
        announcer.start()
        return {failure.name: _lost(announcer, failure) for failure in failures}


def _lost(announcer: Announcer, failure: Failure) -> float:
    """Milliseconds."""
    site = announcer.site
    announcer.wait_ready()
    receivers = site.standby(failure.elsewhere)
    probe = Probe(site.fabric.outside, site.wait_flows(), receivers)
    try:
        time.sleep(WARM_S)
        began = time.monotonic()
        failure.act(announcer)
        while probe.lost_ms(time.monotonic() - CALM_S) > 0 or time.monotonic() < began + CALM_S:
            if time.monotonic() > began + LIMIT_S:
                break
            time.sleep(0.1)
        lost = probe.lost_ms(began)
    finally:
        probe.stop()
    failure.undo(announcer)
    return lost
