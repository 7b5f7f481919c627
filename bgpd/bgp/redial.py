"""When ExaBGP dials a peer again. `steady` puts `Redial` in the place of ExaBGP's `Delay`.

ExaBGP 5.0 forgets every failure as soon as a session is established: a peer that comes up and breaks at once is
dialled again at once, 40 times a second, which floods its log and ours. And a peer that refuses connections for
long, a ToR in a reboot, is dialled once a minute in the end. RFC 4271 section 8 has a timer for each, IdleHoldTimer
(with DampPeerOscillations) and ConnectRetryTimer; so has this.

Goes once ExaBGP does it itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STEADY_S = 10.0  # a session that lasted so long did come up
IDLE_HOLD_LIMIT_S = 30.0
CONNECT_RETRY_LIMIT_S = 10.0  # as FRR's datacenter profile: a ToR that never dials is found again after its reboot


class Redial:
    """How long ExaBGP leaves one peer alone between two attempts; the names are those of its `Delay`.

    After a session that was short: 1 s, doubled with each in a row (RFC 4271 section 8.1.1, DampPeerOscillations and
    IdleHoldTime). After one that lasted: not at all. After an attempt without a session: a second more each time.
    A peer that dials us is let in at any time (ExaBGP calls `reset`), so recovery need not wait for our turn.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._not_before = 0.0
        self._begun: float | None = None  # the attempt or session that lasts
        self._established = False
        self._retry_s = 0.0  # grows with attempts in a row that brought no session
        self._hold_s = 0.0  # grows with sessions in a row that were short

    def backoff(self) -> bool:
        """Whether to wait. On False an attempt begins: ExaBGP's, or that on the connection it has accepted."""
        now = self._clock()
        if now < self._not_before:
            return True
        self._begun, self._established = now, False
        return False

    def reset(self) -> None:
        """The session is established; or, with none being tried, the next attempt may begin now."""
        self._not_before = 0.0
        self._established = self._begun is not None

    def increase(self) -> None:
        """The attempt or session is over. ExaBGP says so twice after some: the second time is ignored."""
        if self._begun is None:
            return
        now = self._clock()
        lasted_s, self._begun = now - self._begun, None
        if self._established:
            self._retry_s = 0.0
            self._hold_s = min(self._hold_s * 2 or 1.0, IDLE_HOLD_LIMIT_S) if lasted_s < STEADY_S else 0.0
            self._not_before = now + self._hold_s
        else:
            self._not_before = now + self._retry_s
            self._retry_s = min(self._retry_s + 1, CONNECT_RETRY_LIMIT_S)
