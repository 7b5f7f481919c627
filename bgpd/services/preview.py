"""What a daemon that starts now would make of Services, for `bgpd check`."""

from __future__ import annotations

from collections.abc import Mapping

from bgpd.config.schema import Config
from bgpd.model.candidate import Candidate
from bgpd.model.service import EndpointSlice, Service
from bgpd.services.plan import plan
from bgpd.services.reach import Reaches, Rules


def preview(
    config: Config, services: Mapping[str, Service], slices: Mapping[str, EndpointSlice]
) -> tuple[Candidate, ...]:
    """Nothing has happened yet that time would have a part in."""
    reaches = Reaches(config.node.name).advance(Rules.of(config), services, slices)
    return plan(reaches, None, config.services, now=0.0).candidates
