"""The metrics of masquerade: its document, its list in the kernel, what the kernel decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class Masquerade:
    """`entries` and `active` by family, `in_force` by subsystem; nothing where the datapath is not ours.

    `findings` counts them in the document in use, `flows` those that the kernel has judged, by verdict. Both are
    called by each scrape, in its thread.
    """

    document_synced: bool
    document_faults: int
    entries: Mapping[str, int]
    active: Mapping[str, bool]
    in_force: Mapping[str, bool]
    findings: Callable[[], int]
    flows: Callable[[], Mapping[str, int]]


def samples(now: Masquerade | None) -> Iterator[Family]:
    synced = gauge(
        "bgpd_masquerade_document_synced",
        "Observed: 1 once a good document has been read, 0 while there is at most one remembered from before.",
    )
    faults = gauge(
        "bgpd_masquerade_document_faults",
        "Observed: faults in the document; while it has any, the last good one is in use. `bgpd status` names them.",
    )
    findings = gauge(
        "bgpd_masquerade_document_findings",
        "Observed: what in the document in use works and is probably not meant; `bgpd doctor` names it.",
    )
    entries = gauge("bgpd_masquerade_entries", "Observed: entries of the list in the kernel.", ["family"])
    active = gauge(
        "bgpd_masquerade_active",
        "Observed: 1 while the kernel masquerades what the list does not keep, else 0.",
        ["family"],
    )
    in_force = gauge(
        "bgpd_masquerade_in_force",
        "Observed: 1 while the kernel has what is wanted (list, rule), else 0; `bgpd status` says why.",
        ["subsystem"],
    )
    flows = CounterMetricFamily(
        "bgpd_masquerade_flows",
        "Observed: pods' flows that the list decided on: listed keep their address, all others are masqueraded.",
        labels=["verdict"],
    )
    if now is not None:
        synced.add_metric((), now.document_synced)
        faults.add_metric((), now.document_faults)
        findings.add_metric((), now.findings())
        for family, count in now.entries.items():
            entries.add_metric((family,), count)
        for family, is_active in now.active.items():
            active.add_metric((family,), is_active)
        for subsystem, is_in_force in now.in_force.items():
            in_force.add_metric((subsystem,), is_in_force)
        for verdict, count in now.flows().items():
            flows.add_metric((verdict,), count)
    yield from (synced, faults, findings, entries, active, in_force, flows)
