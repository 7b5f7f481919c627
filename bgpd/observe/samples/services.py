"""The metrics of service addresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class Services:
    """`addresses` by what became of them."""

    addresses: Mapping[str, int]


def samples(now: Services | None) -> Iterator[Family]:
    addresses = gauge(
        "bgpd_service_addresses",
        "Desired: addresses of selected Services: announced, kept (announced without a ready endpoint, because too "
        "many are without), withdrawn (none is ready), settling (they flapped), absent (no endpoint where one is "
        "needed), foreign (others answer or announce them); `bgpd routes` says why.",
        ["state"],
    )
    if now is not None:
        for state, count in now.addresses.items():
            addresses.add_metric((state,), count)
    yield addresses
