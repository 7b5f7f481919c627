"""When a peer is dialled again, told to `Redial` as ExaBGP tells it, by a clock of the test."""

from __future__ import annotations

import pytest

from bgpd.bgp.redial import CONNECT_RETRY_LIMIT_S, IDLE_HOLD_LIMIT_S, STEADY_S, Redial

TICK_S = 0.25  # exact in binary, as all times here
SHORT_S = 0.25


class Peer:
    """A peer at which every attempt ends the same way, and the time that passes meanwhile."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.redial = Redial(lambda: self.now)

    def wait(self) -> float:
        """How long until the next attempt begins."""
        since = self.now
        while self.redial.backoff():
            self.now += TICK_S
        return self.now - since

    def session(self, lasted_s: float) -> float:
        """A session of so long; how long nobody dials after it."""
        self.redial.reset()
        self.now += lasted_s
        self.redial.increase()
        return self.wait()

    def failure(self) -> float:
        self.redial.increase()
        return self.wait()


@pytest.fixture
def peer() -> Peer:
    made = Peer()
    assert made.wait() == 0
    return made


def test_short_sessions_are_followed_by_twice_the_silence_each_time(peer: Peer) -> None:
    """Up to the limit, however often: it does not grow, nor overflow."""
    assert [peer.session(SHORT_S) for _ in range(7)] == [1, 2, 4, 8, 16, IDLE_HOLD_LIMIT_S, IDLE_HOLD_LIMIT_S]
    assert {peer.session(SHORT_S) for _ in range(2000)} == {IDLE_HOLD_LIMIT_S}


def test_after_a_session_that_lasted_nobody_waits(peer: Peer) -> None:
    """A ToR that restarts is dialled at once, also one that flapped before; a short session is the first again."""
    assert peer.session(STEADY_S) == 0
    for _ in range(5):
        peer.session(STEADY_S - 1)
    assert [peer.session(STEADY_S), peer.session(SHORT_S)] == [0, 1]


def test_failed_attempts_are_followed_by_a_second_more_each_time(peer: Peer) -> None:
    """From none to the limit; a session starts it anew."""
    assert [peer.failure() for _ in range(4)] == [0, 1, 2, 3]
    assert [peer.failure() for _ in range(30)][-1] == CONNECT_RETRY_LIMIT_S
    peer.session(STEADY_S)
    assert peer.failure() == 0


def test_failed_attempts_do_not_excuse_short_sessions(peer: Peer) -> None:
    """A peer that also refuses connections now and then is held back all the same."""
    peer.session(SHORT_S)
    peer.session(SHORT_S)
    peer.failure()
    assert peer.session(SHORT_S) == 4


def test_a_session_that_ends_twice_counts_once(peer: Peer) -> None:
    """ExaBGP closes twice under graceful restart."""
    peer.redial.reset()
    peer.redial.increase()
    peer.redial.increase()
    assert peer.wait() == 1


def test_a_peer_that_dials_is_let_in_at_once_and_remembered(peer: Peer) -> None:
    """ExaBGP lifts the wait, then begins; if that session is short too, the silence goes on growing."""
    assert [peer.session(SHORT_S) for _ in range(3)] == [1, 2, 4]
    peer.redial.reset()
    peer.redial.increase()
    assert peer.redial.backoff()
    peer.redial.reset()
    assert peer.wait() == 0
    assert peer.session(SHORT_S) == 16
