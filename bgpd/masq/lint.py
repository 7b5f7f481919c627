"""Finds what in a list of non-masquerade CIDRs works and is probably not meant. Pure.

For `bgpd check`, `doctor` and whoever asks a daemon. Whatever is not a document at all, `parse` has refused already,
and what can be said from its text alone is in `MasqDocument.findings`; added here is what takes the list as a whole,
or a look at the cluster and at BGP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from bgpd.config.masquerade import Masquerade
from bgpd.masq.match import PrefixTable
from bgpd.model.masq import LINK_LOCAL, Finding, MasqDocument
from bgpd.model.node import Node
from bgpd.model.prefix import Prefix, contains


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a list is held against.

    `pod_cidrs`: of the node and the cluster, kept in any case. `own_pod_cidrs`: the node's alone. `advertised`:
    what is announced to at least one BGP peer; None: nobody can say here.
    """

    pod_cidrs: Collection[Prefix] = ()
    own_pod_cidrs: Collection[Prefix] = ()
    f5_snat_pools: Collection[Prefix] = ()
    advertised: Collection[Prefix] | None = None


@dataclass(frozen=True)
class Lint:
    """The findings of a document, sought when they are first asked for.

    In 16,000 entries that takes a third of a second: whoever has an event loop to serve asks from a thread.
    """

    document: MasqDocument
    around: Surroundings

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return findings(self.document, self.around)


def surroundings(masquerade: Masquerade, node: Node | None, advertised: Collection[Prefix] | None) -> Surroundings:
    """Those of a node. `node` None: Kubernetes has not shown it; `advertised` as in `Surroundings`."""
    own = node.pod_cidrs if node else ()
    return Surroundings((*own, *masquerade.cluster_cidrs), own, masquerade.f5_snat_pools, advertised)


def findings(document: MasqDocument, around: Surroundings) -> tuple[Finding, ...]:
    """First what costs traffic, then what may be a slip of the pen, then what is merely too much.

    Each sort in the order of the document. People are shown the first few, and the last sort may be thousands.
    """
    return (
        *_unreachable(document, around),
        *_uncovered_pools(document, around),
        *_masqueraded_after_all(document),
        *document.findings,
        *_redundant(document, around.pod_cidrs),
    )


def _redundant(document: MasqDocument, pod_cidrs: Collection[Prefix]) -> Iterator[Finding]:
    """An entry that changes nothing. One that repeats link-local is none: the example in every guide lists it."""
    if document.is_default:
        return
    listed, pods = PrefixTable(document.entries), PrefixTable(pod_cidrs)
    first: dict[Prefix, int] = {}
    for index, entry in enumerate(document.entries):
        earlier = first.setdefault(entry, index)
        wider = listed.cover(entry, shorter=True)
        native = pods.cover(entry)
        if earlier != index:
            cause = f"it is on line {document.lines[earlier]} already"
        elif wider is not None:
            cause = f"it lies in {wider}, which is listed as well"
        elif native is not None:
            cause = f"it lies in {native}, where pods live, which keep their addresses among each other in any case"
        else:
            continue
        yield Finding(str(entry), cause, "remove it", document.place(index))


def _masqueraded_after_all(document: MasqDocument) -> Iterator[Finding]:
    """A flag asks for link-local to be masqueraded, and an entry keeps it from being so."""
    listed = PrefixTable(document.entries)
    flags = ("masqLinkLocal", "masqLinkLocalIPv6")
    for prefix, flag in zip(LINK_LOCAL, flags, strict=True):
        keeper = listed.cover(prefix)
        if keeper is not None and prefix not in document.link_local:
            place = document.place(document.entries.index(keeper))
            cause = f"it holds {prefix}, which {flag}: true wants masqueraded"
            yield Finding(str(keeper), cause, "remove one of the two", place)


def _uncovered_pools(document: MasqDocument, around: Surroundings) -> Iterator[Finding]:
    kept = (*document.entries, *around.pod_cidrs)
    for pool in around.f5_snat_pools:
        if not any(contains(prefix, pool) or contains(pool, prefix) for prefix in kept):
            cause = "nothing of this F5 SNAT pool is listed, so the F5 sees the node in what pods send to it"
            yield Finding(str(pool), cause, "list it in nonMasqueradeCIDRs, or remove it from masquerade.f5SnatPools")


def _unreachable(document: MasqDocument, around: Surroundings) -> Iterator[Finding]:
    """Whoever sees a pod's address answers to it, and finds the way there by BGP."""
    if around.advertised is None:
        return
    known = PrefixTable((*LINK_LOCAL, *around.pod_cidrs))
    for pods in around.own_pod_cidrs:
        if any(contains(prefix, pods) for prefix in around.advertised):
            continue
        outside = [
            index
            for index, entry in enumerate(document.entries)
            if entry.version == pods.version and known.cover(entry) is None
        ]
        if outside:
            others = len(outside) - 1
            so_do = f" (as {'does' if others == 1 else 'do'} {others:,} more)" if others else ""
            cause = (
                f"whoever is there{so_do} sees pods of {pods} by their own addresses, and no BGP peer is told the "
                "way to them: answers get lost"
            )
            remedy = "advertise PodCIDR in bgp.advertisements and let bgp.export.allow pass it, or remove the entry"
            yield Finding(str(document.entries[outside[0]]), cause, remedy, document.place(outside[0]))
