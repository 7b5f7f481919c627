"""Where packets between ports of the node's bridges are judged: which of them the inet tables may not be shown.

br_netfilter hands what bridges forward to the inet tables if `bridge-nf-call-iptables` says so (for IPv6
`bridge-nf-call-ip6tables`), but not what comes with a VLAN tag. A bridge with `vlan_filtering` takes tags off, and
nobody sees later that there was one. What is judged there instead is for `table` to say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from bgpd.netlink.links import Links
from bgpd.netlink.rtsocket import GROUP_LINK, RtWatch
from bgpd.policy.ondemand import heed

SETTINGS = Path("/proc/sys/net/bridge")
CALLS = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}
LOOK_S = 1.0  # how long bridged pods may reach each other unjudged when somebody turns these settings off


def unjudged(settings: Path, *, filtering: bool) -> tuple[int, ...]:
    """The IP versions of which bridges may forward packets that no inet table is shown."""
    return tuple(version for version, name in CALLS.items() if filtering or not _is_on(settings / name))


def are_filtering() -> bool:
    """Whether a bridge here filters VLANs. OSError: the kernel does not say."""
    with Links() as links:
        return any(bridge.filters_vlans for bridge in links.bridges_here())


async def follow(tell: Callable[[tuple[int, ...]], None]) -> None:
    """Calls `tell` with what is `unjudged`, at once and when that changes; until cancelled.

    The kernel tells of interfaces, but nobody of the settings.
    """
    watch = RtWatch((GROUP_LINK,))  # first, or what changes meanwhile is nobody's news
    filtering, is_known = True, False  # judged at the bridge as well is judged; not known is asked again
    told: tuple[int, ...] | None = None

    def look() -> None:
        nonlocal filtering, is_known, told
        if not is_known:
            with contextlib.suppress(OSError):  # while interfaces come and go, or without a descriptor that is free
                filtering, is_known = are_filtering(), True
        if (found := unjudged(SETTINGS, filtering=filtering)) != told:
            told = found
            tell(found)

    def look_at_bridges() -> None:
        nonlocal is_known
        is_known = False
        look()

    async with asyncio.TaskGroup() as group:
        group.create_task(heed(watch, look_at_bridges), name="bridges that filter VLANs")
        while True:
            look()
            await asyncio.sleep(LOOK_S)


def _is_on(setting: Path) -> bool:
    with contextlib.suppress(OSError):  # no br_netfilter
        return setting.read_text().strip() == "1"
    return False
