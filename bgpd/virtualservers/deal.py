"""Deals the slots of a virtual server to the pods that are in service. Pure.

Round-robin: in turn. Least connections: whoever has fewer open ones gets more slots, so many that all would have the
same number if as many connections came as there are now. So new pods fill up within a few looks and are not flooded
by all that comes between two. Pods that differ by no more than a tenth get the same: the table would change every
second for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice

from bgpd.model.virtualserver import Member
from bgpd.virtualservers.table import SLOTS, Slots

FAIR = 2  # slots that each pod has at least; more pods than that allows get a multiple of SLOTS
ALIKE = 0.1


def in_turn(members: Sequence[Member]) -> Slots:
    """Round-robin."""
    return tuple(islice(cycle(members), _count(members)))


def by_connections(members: Sequence[Member], connections: Mapping[Member, int]) -> Slots:
    """Least connections. A member that `connections` does not name has none open."""
    open_now = [connections.get(member, 0) for member in members]
    if max(open_now) - min(open_now) <= max(1, ALIKE * max(open_now)):
        return in_turn(members)
    weights = _missing(open_now, max(sum(open_now), len(members)))
    return tuple(_spread(members, _scaled(weights, _count(members))))


def _count(members: Sequence[Member]) -> int:
    return SLOTS * -(-len(members) * FAIR // SLOTS)


def _missing(open_now: Sequence[int], coming: int) -> list[float]:
    """How many of the `coming` each would get so that those with the fewest end up level."""
    ordered = sorted(open_now)
    level, below = 0.0, 0
    for count, lowest in enumerate(ordered, 1):
        below += lowest
        level = (coming + below) / count
        if count == len(ordered) or level <= ordered[count]:
            break
    return [max(0.0, level - each) for each in open_now]


def _scaled(weights: Sequence[float], slots: int) -> list[int]:
    """In whole slots, all of them: the largest remainders are rounded up."""
    exact = [weight * slots / sum(weights) for weight in weights]
    whole = [int(each) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (whole[index] - exact[index], index))
    for index in by_remainder[: slots - sum(whole)]:
        whole[index] += 1
    return whole


def _spread(members: Sequence[Member], slots: Sequence[int]) -> Slots:
    """Each member's slots as far apart as they can be."""
    placed = [((number + 0.5) / share, index) for index, share in enumerate(slots) for number in range(share)]
    return tuple(members[index] for _, index in sorted(placed))
