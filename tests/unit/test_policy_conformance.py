"""Every case of `tests.cyclonus` through the reference and the compiled maps."""

from __future__ import annotations

from typing import Any

from bgpd.model.policy import Direction, Protocol, Snapshot
from bgpd.policy.compile import Compiler
from bgpd.policy.evaluate import Flow, evaluate
from bgpd.policy.transition import changes
from tests import cyclonus
from tests.cyclonus import ALLOWED, snapshot
from tests.unit.policy_reader import Maps, look_up


@cyclonus.needed
def test_every_row_of_every_case() -> None:
    """Both directions and both together, from the reference and from maps that went from step to step."""
    assert sum(check(case) for case in cyclonus.cases()) == cyclonus.ROWS


def check(case: dict[str, Any]) -> int:
    """The number of rows, a pod to itself left out."""
    compiler, maps, contents = Compiler(), Maps(), None
    rows = 0
    for number, step in enumerate(case["steps"]):
        now = snapshot(step)
        for stage in compiler.advance(now):
            for write in changes(contents, stage) if contents else changes(type(stage)(), stage):
                maps.apply(write)
            contents = stage
        for row in cyclonus.rows(step):
            rows += 1
            flow = Flow(address(now, row.client), address(now, row.server), Protocol[row.protocol], row.port)
            wanted = (row.egress == ALLOWED, row.ingress == ALLOWED, row.combined == ALLOWED)
            told = evaluate(now, flow)
            where = f"case {case['i']} ({case['desc']}), step {number}: {row}"
            assert (told.egress.allowed, told.ingress.allowed, told.allowed) == wanted, where
            found = [look_up(maps, flow, direction).allowed for direction in (Direction.EGRESS, Direction.INGRESS)]
            assert (*found, all(found)) == wanted, where
    return rows


def address(now: Snapshot, pod: str) -> Any:
    return now.pods[pod].ips[0]
