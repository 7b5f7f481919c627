"""The section `virtualServers`: whether this node serves those of F5's ConfigMaps, and when it stops. See `schema`.

Whether a single value is acceptable is decided in `field`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import model_validator

from bgpd.config.field import BOOLEAN, COMMUNITY, DISTINCT, U32, one_of, whole
from bgpd.config.section import Section


class WhenDown(StrEnum):
    """What becomes of an address whose local pods have all failed their monitors."""

    WITHDRAW = "withdraw"
    MED = "med"
    COMMUNITY = "community"


class VirtualServers(Section):
    """The virtual servers of ConfigMaps with the label `f5type: virtual-server`, served by the pods of this node."""

    enabled: Annotated[bool, BOOLEAN] = False
    """False: they are left to the F5."""

    rise: Annotated[int, whole(1, 100)] = 1
    """How many successes in a row bring a pod back. 1, as on BIG-IP."""

    fall: Annotated[int | None, whole(1, 100)] = None
    """How many failures in a row take a pod out. None, as on BIG-IP: only the monitor's timeout does."""

    when_down: Annotated[WhenDown, one_of(WhenDown)] = WhenDown.WITHDRAW
    """withdraw: the address is not announced by this node. med, community: it is, with the MED or the communities
    below, for a ToR that has no better way; its traffic then goes to the pods that have failed. An address without
    any ready pod here is withdrawn in every case."""

    med: Annotated[int, U32] = 1000
    """Of `whenDown: med`; the lower one is the better."""

    communities: Annotated[tuple[Annotated[str, COMMUNITY], ...], DISTINCT] = ()
    """Of `whenDown: community`."""

    @model_validator(mode="after")
    def _has_communities(self) -> VirtualServers:
        if self.when_down is WhenDown.COMMUNITY and not self.communities:
            raise ValueError("whenDown is community; give the communities")
        return self
