"""What a failure costs: how long a node that is cut off keeps its routes at the ToR, and the matrix of lost packets.

The first with BFD, sessions of both kinds and families at once, against BIRD and FRR; the slowest counts. The excess
is over three intervals, which BFD may take by itself. The matrix is `failover_matrix`.
"""

from __future__ import annotations

from tests.benchmarks import failover_matrix
from tests.benchmarks.report import Result
from tests.fabric.bfd_site import BfdSite
from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.netns import Lab
from tests.fabric.screen import Screen

PROGRAMS = ("bird", "nft", *Frr.programs)
INTERVAL_MS = 100
GOAL_MS = 100


def run(screen: Screen) -> list[Result]:
    """Fifteen minutes on two cores."""
    excess = {}
    for kind in (Bird, Frr):
        with screen.step(f"a node that is cut off, {kind.kind}"), Lab() as lab:
            excess[kind.kind] = max(BfdSite(lab, kind, INTERVAL_MS).start().cut().values()) - 3 * INTERVAL_MS
    worst = max(excess.values())
    cut = Result(name="node_cut_bfd_over_3_intervals_ms", value=worst, unit="ms", goal=GOAL_MS)
    return [cut, *failover_matrix.results(screen)]
