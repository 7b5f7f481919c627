"""What of single pods' addresses is not announced now, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bgpd.model.prefix import Address


class Unfit(StrEnum):
    """The kinds of reasons, as metrics name them: of these only a conflict goes on until somebody does something."""

    CONFLICT = "conflict"
    MOVED = "moved"
    HOST_NETWORK = "hostNetwork"


@dataclass(frozen=True, slots=True)
class Withheld:
    """An address of the pod called `pod` (namespace/name). `why` is what an operator reads."""

    address: Address
    pod: str
    unfit: Unfit
    why: str
