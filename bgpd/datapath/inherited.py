"""Tells in the log what became of maps that another release has left: what was in them counts no more.

`loader` decides that. Nobody has to do anything; it is for whoever asks after an upgrade why counters begin anew.
"""

from __future__ import annotations

from bgpd.datapath.loader import Installed
from bgpd.observe import log


def tell(installed: Installed) -> None:
    """One line, and none where all maps are used on, or there were none."""
    if installed.renewed or installed.dropped:
        log.get("datapath").info(
            "maps of another layout are not used on",
            replaced=sorted(installed.renewed),
            removed=sorted(installed.dropped),
        )
