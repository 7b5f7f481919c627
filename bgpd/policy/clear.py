"""Takes NetworkPolicy out of the kernel, for a node where no daemon enforces it any more."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bgpd.datapath import links, pins
from bgpd.netlink.owntables import remove, taking_out
from bgpd.policy import filters, ipvlans, parents, podhooks
from bgpd.policy.table import TABLES

PINS = ("policy*", "macvlan*", "ipvlan*")  # maps, programs and links, whatever release has pinned them


def clear(directory: Path, namespaces: Iterable[Path]) -> list[str]:
    """What there was, taken away, the tables first: nothing is judged by half. TargetError: it cannot be done.

    `namespaces` are those of pods. Whoever is in them can then be reached by everybody; one on an ipvlan that is not
    among them, on a kernel without tcx, by nobody.
    """
    with taking_out("policy") as connection:
        removed = [f"nftables {key}" for key in remove(connection, TABLES)]
        removed += filters.remove((parents.MACVLAN, ipvlans.KIND))
        if parents.is_installed(directory, ipvlans.KIND) and not links.has_tcx():
            removed += podhooks.remove(namespaces)
        return removed + pins.remove(directory, PINS)
