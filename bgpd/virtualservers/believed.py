"""Decides what counts of ConfigMaps, Services and EndpointSlices when the source suddenly shows none of a kind. Pure.

Nobody serves what nobody asks for, so an empty source would end all that is served here. It is held:

- *As long as it lasts*, while the source shows no Node at all, or, being an API server, no Service or no slice: that
  has some of its own, and this daemon runs on a node. Then it is the source that has lost something.
- *For `EMPTY_GRACE_S`* otherwise, as routes are: the last virtual server may have been taken away on purpose.

One that shows fewer is believed. One that does not answer, or a directory that is not there, publishes nothing, and
what it said before stays anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bgpd.model.configmap import ConfigMap
from bgpd.model.service import EndpointSlice, Service
from bgpd.runtime.reconcile import EMPTY_GRACE_S


class Known(NamedTuple):
    """Of each kind, by namespace/name."""

    config_maps: Mapping[str, ConfigMap] = {}
    services: Mapping[str, Service] = {}
    slices: Mapping[str, EndpointSlice] = {}


_KINDS = "ConfigMap of a virtual server", "Service", "EndpointSlice"


class Believed:
    """`known` counts. `held`: what is gone and counts on, and what to do; empty when all is as the source has it.

    `due` is when time alone will change that, in the clock of `now`; None: never. `never_empty`: the source is an
    API server.
    """

    def __init__(self, never_empty: bool) -> None:
        self._never_empty = never_empty
        self._since: float | None = None
        self.known = Known()
        self.held = ""
        self.due: float | None = None

    def take(self, newest: Known, nodes: Mapping[str, Any], now: float, *, served: bool = False) -> None:
        """`served`: something was before that nobody here has seen the objects of."""
        kinds = zip(_KINDS, newest, self.known, strict=True)
        gone = [kind for kind, each, was in kinds if not each and (was or served)]
        lost = self._lost(newest, nodes)
        self._since = (now if self._since is None else self._since) if gone else None
        self.due = None if self._since is None or lost else self._since + EMPTY_GRACE_S
        holds = bool(gone) and (self.due is None or now < self.due)
        if not holds:
            self._since = self.due = None
            self.known, self.held = newest, ""
            return
        before = self.known
        self.known = Known(
            newest.config_maps or before.config_maps,
            newest.services or before.services,
            newest.slices or before.slices,
        )
        self.held = f"the source shows no {' and no '.join(gone)} any more" + (
            f", and lacks {lost}: is it right? What was served is served on until then; to let it go, end bgpd, and "
            "`bgpd virtualservers clear`"
            if lost
            else f": those of before count on for {EMPTY_GRACE_S:.0f} s, in case that is not meant"
        )

    def _lost(self, newest: Known, nodes: Mapping[str, Any]) -> str:
        """What every source has, and this one has not."""
        if not nodes:
            return "every Node"
        if self._never_empty and not newest.services:
            return "the API server's own Service"
        if self._never_empty and not newest.slices:
            return "the API server's own EndpointSlice"
        return ""
