"""Decides which prefix stands for many addresses of Services, where an advertisement says so. Pure.

An aggregate is announced while one of the addresses in it would be. Addresses that only some nodes draw traffic for
stay beside it: being more specific, they win where they are announced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bgpd.config.bgp import Advertisement
from bgpd.model.candidate import Candidate
from bgpd.model.prefix import Prefix, contains


def aggregated(entry: Advertisement, offers: Iterable[Candidate]) -> Sequence[Candidate]:
    """`offers` with the entry's aggregates in place of what is in them, at the end."""
    kept = list(offers)
    found = []
    for prefix in entry.service.aggregate if entry.service is not None else ():
        inside = [offer for offer in kept if not offer.local and contains(prefix, offer.prefix)]
        kept = [offer for offer in kept if offer.local or not contains(prefix, offer.prefix)]
        found.append(_aggregate(entry, prefix, inside))
    return (*kept, *found)


def _aggregate(entry: Advertisement, prefix: Prefix, inside: Sequence[Candidate]) -> Candidate:
    """Its remark is that of an address for whose sake alone it is announced."""
    fit = [offer for offer in inside if not offer.withheld]
    withheld = f"none of {len(inside)} addresses in it is" if inside else "no selected Service has an address in it"
    remark = fit[0].remark if fit and all(offer.remark for offer in fit) else ""
    return Candidate(
        entry.advertisement_type, prefix, "an aggregate", withheld="" if fit else withheld, remark=remark
    )
