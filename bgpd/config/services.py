"""The section `services`: what goes for all announced addresses of Services. See `bgp` for which those are.

Whether a single value is acceptable is decided in `field`; whether the values fit together, in `check`.
"""

from __future__ import annotations

from typing import Annotated

from bgpd.config.field import DISTINCT, TEXT, whole
from bgpd.config.section import Section


class Services(Section):
    """Service addresses follow the health of their endpoints."""

    stable_seconds: Annotated[int, whole(0, 3600)] = 10
    """An address that was lost sooner than this after it was announced flaps: it comes back once it has had endpoints
    for this long without a lapse. 10 is longer than a container takes to fail its first probes."""

    max_withdrawn_percent: Annotated[int, whole(0, 100)] = 50
    """No more of this node's service addresses than this are withdrawn at a time because no endpoint is ready; the
    rest stay announced. 50, as Envoy's panic threshold: when half of all is down, the news is in doubt."""

    load_balancer_classes: Annotated[tuple[Annotated[str, TEXT], ...], DISTINCT] = ()
    """Values of spec.loadBalancerClass whose load balancer addresses are ours to announce; those of Services without
    a class always are. None by default: a class names another implementation."""
