"""BFD as this node speaks it: the sessions it wants, and how they stand.

Values only (RFC 5880, 5881, 5883). Who computes them: `bgp.plan`. How BIRD, which runs the protocol, is told and
asked: `bgp.bird_codec`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bgpd.model.prefix import Address

CEASE, BFD_DOWN = 6, 10  # RFC 4271 section 6.7, RFC 9384: the NOTIFICATION that ends BGP's session


@dataclass(frozen=True, slots=True)
class Timers:
    """What we offer; each direction uses the slower of the two ends (RFC 5880 section 6.8.4)."""

    transmit_ms: int
    receive_ms: int
    multiplier: int


def fastest(each: Iterable[Timers]) -> Timers:
    """The one set with which all of these can be had, as far as the peers themselves want to be slower."""
    each = tuple(each)
    return Timers(min(it.transmit_ms for it in each), min(it.receive_ms for it in each), each[0].multiplier)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One BFD session as it should be configured. `multihop`: RFC 5883, else RFC 5881.

    `interface` is that of a link-local `peer_address`, else empty.
    """

    peer_address: Address
    local_address: Address
    multihop: bool
    timers: Timers
    interface: str = ""


class State(StrEnum):
    """RFC 5880 section 4.1."""

    ADMIN_DOWN = "admin-down"
    DOWN = "down"
    INIT = "init"
    UP = "up"


@dataclass(frozen=True, slots=True)
class Session:
    """A session as BIRD shows it. `since` when it came to this state, on the monotonic clock, in seconds, and by some
    milliseconds another with each look; `interval_ms` ours, `timeout_ms` 0 while it is down.
    """

    state: State
    since: float
    interval_ms: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class Down:
    """A session that was up and went down: nothing was heard for `timeout_ms`, unless the peer `said` so itself."""

    timeout_ms: int
    said: bool = False


@dataclass(frozen=True, slots=True)
class BfdState:
    """`connected` False: BIRD is not reachable, `reason` says why, and nothing is known of the sessions.

    `lost` are the peers whose session was up and is not any more.
    """

    connected: bool = False
    reason: str = "not connected yet"
    sessions: Mapping[Address, Session] = field(default_factory=dict)
    lost: Mapping[Address, Down] = field(default_factory=dict)
