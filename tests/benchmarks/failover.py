"""How long a node that is cut off keeps its routes at the ToR, with BFD.

Sessions of both kinds and families at once, against BIRD and FRR; the slowest counts. The excess is over three
intervals, which BFD may take by itself.
"""

from __future__ import annotations

from tests.benchmarks.report import Result
from tests.fabric.bfd_site import BfdSite
from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.netns import Lab
from tests.fabric.screen import Screen

PROGRAMS = ("bird", *Frr.programs)
INTERVAL_MS = 100
GOAL_MS = 100


def run(screen: Screen) -> list[Result]:
    """One cut each."""
    excess = {}
    for kind in (Bird, Frr):
        with Lab() as lab:
            excess[kind.kind] = max(BfdSite(lab, kind, INTERVAL_MS).start().cut().values()) - 3 * INTERVAL_MS
    worst = max(excess.values())
    return [Result(name="node_cut_bfd_over_3_intervals_ms", value=worst, unit="ms", goal=GOAL_MS)]
