"""What ending audit mode would drop: flows that pass by it alone, how often and when last, and of which pods. Pure.

A flow in audit mode is told of with each of its packets, so the last events that are kept may all be of one that is
busy. Here each flow is one row, from the start of the daemon on. It does not decide whether the rules of now would
drop what was seen: `last` tells what has ended since somebody changed them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bgpd.model.policy import Direction
from bgpd.policy.events import Event
from bgpd.policy.report import Row

KEPT = 1024  # flows; about a megabyte


@dataclass(slots=True)
class _Seen:
    times: int = 0
    last: float = 0.0
    lost: int = 0


class Tally:
    """Counts audited packets, replies too, by flow: client, server and its port, protocol, direction, what denies.

    Of the `most` that were seen last; `forgotten` counts the others, one that came again as often as it went.
    """

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._flows: OrderedDict[Event, _Seen] = OrderedDict()
        self.forgotten = 0

    def add(self, event: Event) -> None:
        """Ignores what was dropped."""
        if not event.audited:
            return
        flow = replace(event, at=0.0, lost=0, reply=False, client=replace(event.client, port=None))
        seen = self._flows.setdefault(flow, _Seen())
        seen.times, seen.last, seen.lost = seen.times + 1, event.at, seen.lost + event.lost
        self._flows.move_to_end(flow)
        if len(self._flows) > self._most:
            self._flows.popitem(last=False)
            self.forgotten += 1

    def shown(self, namespaces: Collection[str]) -> list[dict[str, Any]]:
        """As `bgpd policy audit -o json` prints the flows that pods of these are judged by, the newest first."""
        return [
            _shown(namespace, flow, seen)
            for flow, seen in reversed(self._flows.items())
            if (namespace := _namespace(flow)) in namespaces
        ]


def _shown(namespace: str, flow: Event, seen: _Seen) -> dict[str, Any]:
    """As of an event, but for what is of single packets."""
    told = replace(flow, at=seen.last, lost=seen.lost).shown()
    del told["reply"]
    return {"namespace": namespace, "times": seen.times, "last": told.pop("at"), **told}


def _namespace(flow: Event) -> str:
    """Of the pod that decides, or if nobody knows it, of its policies."""
    judged = flow.client if flow.direction is Direction.EGRESS else flow.server
    return (judged.pod or next(iter(flow.policies or ()), "")).partition("/")[0]


def standing(namespaces: Iterable[str], rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """How many pods of each of these are on this node, and of how many a policy isolates a direction."""
    pods: dict[str, bool] = {}
    for row in rows:
        pods[row.pod] = pods.get(row.pod, False) or any(by is not None for by in row.isolated.values())
    for namespace in sorted(namespaces):
        here = [isolated for pod, isolated in pods.items() if pod.partition("/")[0] == namespace]
        yield {"namespace": namespace, "pods": len(here), "isolated": sum(here)}
