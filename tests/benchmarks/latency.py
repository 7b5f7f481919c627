"""From a Node changed at the API server to the route in both ToRs: ours and two scripts, in turn.

The clock starts when the request to change the Node leaves, and stops when the later of both ToRs has the
route. So the API server's own share (its answer takes some milliseconds) is in every number, for everybody alike;
it is told beside. The contenders take turns, so that what the machine does meanwhile hits them all.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections import defaultdict
from collections.abc import Sequence

from tests.benchmarks.contenders import Contender
from tests.benchmarks.report import Result, percentile
from tests.benchmarks.stage import Stage
from tests.benchmarks.tap import RouteTap

CHANGES = 200
TIMEOUT_S = 10.0
_ROOM = ipaddress.IPv4Network("188.188.0.0/16")
_PAUSE_S = (0.05, 0.12)  # at random, so that nobody's rhythm meets ours


def measure(stage: Stage, contenders: Sequence[Contender], changes: int = CHANGES) -> dict[str, list[float]]:
    """Milliseconds of every change by contender; `api` is what the API server took to answer."""
    taken: dict[str, list[float]] = defaultdict(list)
    prefixes = _ROOM.subnets(new_prefix=26)
    rand = random.Random(1)
    with RouteTap({tor.name: tor.namespace for tor in stage.fabric.tors}) as tap:
        for _ in range(changes):
            for contender in contenders:
                prefix = str(next(prefixes))
                stage.api.register(contender.place)
                time.sleep(rand.uniform(*_PAUSE_S))
                began, answered = stage.api.assign(contender.place, [prefix])
                taken[contender.name].append(1000 * _waited(tap, prefix, began))
                taken["api"].append(1000 * answered)
    return taken


def _waited(tap: RouteTap, prefix: str, began: float) -> float:
    """Seconds; a change that does not arrive counts as long as it was waited for."""
    try:
        return tap.arrival(prefix, TIMEOUT_S) - began
    except TimeoutError:
        return TIMEOUT_S


def results(taken: dict[str, list[float]]) -> list[Result]:
    others = {name: values for name, values in taken.items() if name != "bgpd"}
    ours = taken["bgpd"]
    found = [
        Result(
            name=f"event_to_tor_p{share}_ms",
            value=percentile(ours, share / 100),
            unit="ms",
            goal=goal,
            beside={name: percentile(values, share / 100) for name, values in others.items() if name != "api"},
        )
        for share, goal in ((50, 25.0), (99, 100.0))
    ]
    for name, script in (("ratio_vs_bird_script", "bird+script"), ("ratio_vs_gobgp_script", "gobgp+script")):
        ratio = percentile(ours, 0.5) / percentile(taken[script], 0.5)
        found.append(Result(name=name, value=ratio, unit="x", goal=1.0))
    found.append(Result(name="api_answer_p50_ms", value=percentile(taken["api"], 0.5), unit="ms"))
    return found
