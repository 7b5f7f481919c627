"""What a plan asks about each prefix that could be announced: to whom, in which order, and what the brake says. Pure.

A plan is made again with every change, and most of it is as it was: the same candidates, each the very object of
before. So what depends on one candidate and the configuration alone is worked out once. A plan without this memory is
the same plan, later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from bgpd.bgp.aggregate import aggregated
from bgpd.config.bgp import Advertisement, Bgp
from bgpd.model.bgp import AdvertisementType, Family, Path, RouteKey
from bgpd.model.candidate import Candidate
from bgpd.model.prefix import Address, Prefix, contains, sort_key

Order: TypeAlias = tuple[int, int, int]
Peers: TypeAlias = tuple[tuple[str, Address], ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """`order` tells prefixes apart, and sorts them. `braked` is why it must not be announced to anybody; empty."""

    candidate: Candidate
    order: Order
    family: Family
    braked: str
    selected_by: frozenset[int]
    _keys: dict[str, RouteKey] = field(default_factory=dict)

    def key(self, peer: str) -> RouteKey:
        found = self._keys.get(peer)
        if found is None:
            found = self._keys[peer] = RouteKey(peer, self.candidate.prefix)
        return found


class Offers:
    """Remembers those of the last plan."""

    def __init__(self) -> None:
        self._of: tuple[Bgp | None, Peers] = None, ()
        self._known: dict[int, Offer] = {}  # by the identity of the candidate, which it keeps alive
        self._paths: dict[Path, Path] = {}
        self._paths_before: dict[Path, Path] = {}

    def meant(
        self, bgp: Bgp, peers: Peers, candidates: Iterable[Candidate]
    ) -> list[tuple[Advertisement, Sequence[Offer]]]:
        """What each advertisement means, in order. `peers` are those whose addresses are known."""
        self._paths_before, self._paths = self._paths, {}
        known = self._known if bgp is self._of[0] and peers == self._of[1] else {}
        found = {id(it): known.get(id(it)) or _offer(bgp, peers, it) for it in candidates}
        self._of, self._known = (bgp, peers), found
        ordered = sorted(found.values(), key=attrgetter("order"))
        return [(entry, _meant(bgp, peers, index, ordered, found)) for index, entry in enumerate(bgp.advertisements)]


    def path(self, path: Path) -> Path:
        """The same path, as the object that stood for it in the last plan: the diff then compares pointers."""
        return self._paths.setdefault(path, self._paths_before.get(path, path))


def _meant(
    bgp: Bgp, peers: Peers, index: int, offers: Sequence[Offer], known: dict[int, Offer]
) -> Sequence[Offer]:
    chosen = [offer for offer in offers if index in offer.selected_by]
    entry = bgp.advertisements[index]
    if entry.service is None or not entry.service.aggregate:
        return chosen
    candidates = aggregated(entry, [offer.candidate for offer in chosen])
    return [known.get(id(it)) or _offer(bgp, peers, it) for it in candidates]


def _offer(bgp: Bgp, peers: Peers, candidate: Candidate) -> Offer:
    prefix = candidate.prefix
    selected_by = (index for index, entry in enumerate(bgp.advertisements) if entry.selects(candidate))
    braked = _braked(bgp, peers, prefix)
    return Offer(candidate, sort_key(prefix), Family.of(prefix), braked, frozenset(selected_by))


def brake(bgp: Bgp, offers: Iterable[Offer]) -> dict[Order, str]:
    """The prefixes that must not be announced to anybody, and why. Peers that are idle here count too.

    Where there are too many, pod CIDRs come first: no number of other addresses may cost a node its pods.
    """
    braked: dict[Order, str] = {}
    wanted = [offer for offer in offers if not offer.candidate.withheld]
    if len(wanted) <= bgp.export.max_prefixes:  # the usual case needs no ranks
        return {offer.order: offer.braked for offer in wanted if offer.braked}
    ranked = {(offer.candidate.type is not AdvertisementType.POD_CIDR, offer.order): offer.braked for offer in wanted}
    passed = 0
    for (_, order), why in sorted(ranked.items()):
        reason = why
        if not reason:
            passed += 1
            if passed > bgp.export.max_prefixes:
                reason = f"export.maxPrefixes is {bgp.export.max_prefixes}"
        if reason:
            braked[order] = reason
    return braked


def _braked(bgp: Bgp, peers: Peers, prefix: Prefix) -> str:
    if prefix.prefixlen == 0:
        return "a default route is never announced"
    allow = bgp.export.allow
    if allow is not None and not any(contains(allowed, prefix) for allowed in allow):
        return "outside export.allow"
    covered = [name for name, address in peers if address in prefix]
    return f"it covers the address of peer {covered[0]}" if covered else ""
