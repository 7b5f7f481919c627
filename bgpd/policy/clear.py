"""Takes NetworkPolicy out of the kernel, for a node where no daemon enforces it any more."""

from __future__ import annotations

from pathlib import Path

from bgpd.datapath import pins
from bgpd.netlink.owntables import remove, taking_out
from bgpd.policy import filters
from bgpd.policy.table import TABLES

PINS = ("policy*", "macvlan*")  # maps, programs and links, whatever release has pinned them


def clear(directory: Path) -> list[str]:
    """What there was, taken away, the tables first: nothing is judged by half. TargetError: it cannot be done.

    Pods can then be reached by everybody.
    """
    with taking_out("policy") as connection:
        removed = [f"nftables {key}" for key in remove(connection, TABLES)]
        return removed + filters.remove() + pins.remove(directory, PINS)
