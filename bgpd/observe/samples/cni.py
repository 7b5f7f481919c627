"""The metrics of the CNI plugin; its requests are counted in `metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class Cni:
    """`attachments` are remembered; `published`: the runtime's chain has the plugin in it.

    Called by each scrape, in its thread.
    """

    attachments: Callable[[], int]
    queued_dels: Callable[[], int]
    published: Callable[[], bool]


def samples(now: Cni | None) -> Iterator[Family]:
    attachments = gauge("bgpd_cni_attachments", "Observed: interfaces of pods that the CNI plugin has attached.")
    queued = gauge("bgpd_cni_queued_dels", "Observed: DELs that came while nobody answered, still to be done.")
    published = gauge(
        "bgpd_cni_published",
        "Observed: 1 while the chain that the runtime uses has the plugin in it, else 0; `bgpd status` says why.",
    )
    if now is not None:
        attachments.add_metric((), now.attachments())
        queued.add_metric((), now.queued_dels())
        published.add_metric((), now.published())
    yield from (attachments, queued, published)
