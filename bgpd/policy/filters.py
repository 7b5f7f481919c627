"""The programs at parents where the kernel has no tcx: filters of clsact, and which of both it is.

To pods and to whoever asks for the kernel's state it is the same as `parents.ParentLinks`. What differs: there is no
link, so nothing is pinned, and whoever may change the node's interfaces can remove a filter with `tc`. The kernel
alone knows where they are, and tells when one is removed: it is put back then.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from bgpd.datapath import links, loader
from bgpd.datapath.links import Hook
from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.netlink.clsact import Filters, Side, Watch
from bgpd.netlink.rtsocket import EXT_ACK, RtSocket
from bgpd.policy.parents import MACVLAN, Kind, ParentLinks, Programs, programs
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import TargetError

_SIDES = {Hook.EGRESS: Side.EGRESS, Hook.INGRESS: Side.INGRESS}
_REFUSALS = (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)  # that do not go by themselves
_REMEDY = (
    "without tcx (Linux 6.6) this takes the modules sch_ingress and cls_bpf, and that at this interface there is no "
    "qdisc `ingress` nor a filter of another kind with preference 1 (see `tc qdisc`, `tc filter`)"
)


def actuator(
    installed: loader.Installed, directory: Path, kind: Kind = MACVLAN
) -> ParentLinks | ParentFilters:
    """By what this kernel can do. DatapathError: it cannot be asked."""
    return ParentLinks(installed, directory, kind) if links.has_tcx() else ParentFilters(installed, kind)


class ParentFilters:
    """The actuator; its objects are parents by their index."""

    def __init__(self, installed: loader.Installed, kind: Kind = MACVLAN) -> None:
        self._programs, self._names = programs(installed, kind), kind.names

    async def observe(self) -> Mapping[int, Programs]:
        return await asyncio.to_thread(_observe, self._names)

    async def apply(self, changes: Sequence[Change[int, Programs]]) -> Sequence[Outcome]:
        return await asyncio.to_thread(lambda: [self._apply(change.key, change.want) for change in changes])

    def _apply(self, ifindex: int, want: Programs | None) -> Outcome:
        try:
            with RtSocket((EXT_ACK,)) as rtnetlink:
                filters = Filters(rtnetlink)
                for hook in Hook:
                    if want is None:
                        filters.remove(ifindex, _SIDES[hook], self._names[hook])
                    else:
                        filters.put(ifindex, _SIDES[hook], self._names[hook], self._programs[hook].fd)
        except OSError as error:
            what = f"asking a program at interface {ifindex}: {error.strerror}"
            if error.errno in _REFUSALS:
                return Blocked(f"{what}; {_REMEDY}")
            return Retry(what)
        return DONE


async def watch(parents: Callable[[], Collection[int]], suspect: Callable[[], None]) -> None:
    """Calls `suspect` when somebody may have changed a filter at a parent, as we do ourselves; until cancelled."""
    opened = Watch()
    try:
        while True:
            changed = await opened.news()
            if changed is None or not changed.isdisjoint(parents()):
                suspect()
    finally:
        opened.close()


def remove(kinds: Iterable[Kind]) -> list[str]:
    """Takes all filters away; what there was. TargetError: the kernel refuses."""
    try:
        with RtSocket((EXT_ACK,)) as rtnetlink:
            filters = Filters(rtnetlink)
            found = [
                (ifindex, hook, kind.names[hook])
                for kind in kinds
                for ifindex, hooks in _found(filters, kind.names).items()
                for hook in hooks
            ]
            for ifindex, hook, name in found:
                filters.remove(ifindex, _SIDES[hook], name)
    except OSError as error:
        raise TargetError(f"removing filters of clsact: {error.strerror}; it takes CAP_NET_ADMIN") from error
    return [f"clsact {name} at interface {ifindex}" for ifindex, _, name in found]


def _observe(names: Mapping[Hook, str]) -> dict[int, dict[Hook, int]]:
    try:
        with RtSocket((EXT_ACK,)) as rtnetlink:
            return _found(Filters(rtnetlink), names)
    except OSError as error:
        raise TargetError(f"the kernel does not tell of filters: {error.strerror}") from error


def _found(filters: Filters, names: Mapping[Hook, str]) -> dict[int, dict[Hook, int]]:
    """A parent whose filters are not all there has only those that are."""
    found: dict[int, dict[Hook, int]] = {}
    for ifindex in filters.interfaces():
        for hook, side in _SIDES.items():
            program = filters.program(ifindex, side, names[hook])
            if program is not None:
                found.setdefault(ifindex, {})[hook] = program
    return found
