"""The metrics of what Kubernetes objects come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class Source:
    """`last_error_at` is Unix seconds; None: there was no error yet. `faults` counts what it cannot read now."""

    name: str
    synced: bool
    reconnects: int = 0
    last_error_at: float | None = None
    following: bool = False
    faults: int = 0


def samples(sources: Sequence[Source]) -> Iterator[Family]:
    synced = gauge(
        "bgpd_source_synced", "Observed: 1 once the source has delivered a complete list, else 0.", ["source"]
    )
    reconnects = CounterMetricFamily(
        "bgpd_source_reconnects", "Observed: times the source had to be asked anew.", labels=["source"]
    )
    following = gauge(
        "bgpd_source_following", "Observed: 1 while changes at the source arrive, 0 while it is lost.", ["source"]
    )
    failed = gauge(
        "bgpd_source_last_error_timestamp_seconds",
        "Observed: when the source last failed, in seconds since the epoch.",
        ["source"],
    )
    faults = gauge(
        "bgpd_source_faults",
        "Observed: files and objects at the source that cannot be read now; `bgpd status` names them.",
        ["source"],
    )
    for source in sources:
        synced.add_metric((source.name,), source.synced)
        following.add_metric((source.name,), source.following)
        reconnects.add_metric((source.name,), source.reconnects)
        faults.add_metric((source.name,), source.faults)
        if source.last_error_at is not None:
            failed.add_metric((source.name,), source.last_error_at)
    yield from (synced, following, reconnects, faults, failed)
