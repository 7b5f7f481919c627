"""An intended stop: everything is withdrawn and has arrived before ExaBGP may end.

`bgpd.bgp.stop.withdraw_everything` runs in the node's namespace as the unit's ExecStop does, against a real
ExaBGP and real peers under graceful restart; see `test_bridge_rig`.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.fabric import exabgp
from tests.fabric.bgp_wire import BgpType
from tests.fabric.bird import Bird
from tests.fabric.observe import BgpCapture
from tests.fabric.process import poll
from tests.fabric.test_bridge_rig import (
    NODE,
    NODE_B,
    TOR,
    TOR_B,
    Speaker,
    Talk,
    announce,
    end_of_rib,
    guardian,
    kill,
    shown,
    speaker,
    wait_up,
)

__all__ = ["speaker"]
pytestmark = pytest.mark.needs("bird", str(exabgp.PROGRAM))

V6 = "2001:db8::/64"
_STOP = """\
import sys, time
from pathlib import Path
from bgpd.bgp.stop import StopError, withdraw_everything
try:
    withdraw_everything(Path(sys.argv[1]), float(sys.argv[2]), print)
except StopError as error:
    sys.exit(f"StopError: {error}")
print(time.time())
"""


def stop(speaker: Speaker, timeout_s: float = 20) -> tuple[str, float]:
    """Withdraws everything; what was said, and when it returned by the wall clock. `RuntimeError`: it failed."""
    argv = [sys.executable, "-c", _STOP, str(speaker.files.socket), str(timeout_s)]
    said, _, returned_at = speaker.node.run(argv, timeout_s=60).stdout.strip().rpartition("\n")
    return said, float(returned_at)


def end(speaker: Speaker) -> None:
    """SIGTERM, as systemd sends it after ExecStop."""
    assert speaker.process is not None
    speaker.process.stop()


def announce_both(talk: Talk, count: int = 1, peer: str = TOR) -> None:
    """So many IPv4 prefixes and one IPv6 prefix, closed by End-of-RIB."""
    announce(talk, count, peer)
    talk.ask(f"neighbor {peer} announce route {V6} next-hop fd00::2")
    end_of_rib(talk, peer)


def two_tors(speaker: Speaker, count: int) -> tuple[Bird, Bird, Talk]:
    """Both ToRs with so many routes from the node, and one of IPv6."""
    bird, bird_b = speaker.tor(TOR), speaker.tor(TOR_B)
    talk = speaker.start(TOR, TOR_B)
    for tor, peer, node in ((bird, TOR, NODE), (bird_b, TOR_B, NODE_B)):
        wait_up(talk, peer)
        announce_both(talk, count, peer)
        tor.wait_route_count(node, count + 1)
    return bird, bird_b, talk


def test_nothing_is_left_at_any_peer(speaker: Speaker) -> None:
    """500 routes at two peers: none when it returns, and none kept as stale after SIGTERM."""
    bird, bird_b, _ = two_tors(speaker, 500)
    said, _ = stop(speaker)
    assert said == "1002 routes withdrawn from 2 peers"
    poll(lambda: bird.paths() + bird_b.paths() == [], 1, lambda: "routes are left")
    end(speaker)
    bird.wait_down(NODE)
    bird_b.wait_down(NODE_B)
    assert bird.paths() + bird_b.paths() == []


def test_it_does_not_return_before_the_last_withdrawal_has_left(speaker: Speaker) -> None:
    """Every UPDATE is on the wire, End-of-RIB of both families last, and nothing comes after it has returned."""
    bird, _, _ = two_tors(speaker, 500)
    with BgpCapture(bird.namespace, "eth0") as capture:
        _, returned_at = stop(speaker)
        end(speaker)
        bird.wait_down(NODE)
    updates = capture.messages(BgpType.UPDATE, src=NODE)
    assert len(updates) >= 4
    assert [it.end_of_rib for it in updates[-2:]] == [True, True]
    assert updates[-1].time < returned_at
    assert capture.dropped == 0


def test_end_of_rib_counts_as_an_update(speaker: Speaker) -> None:
    """`messages.sent.update` grows by one for it: what tells `stop` that the withdrawals before it have left."""
    bird = speaker.tor()
    talk = speaker.start()
    wait_up(talk)

    def sent() -> int:
        return int(shown(talk)["messages"]["sent"]["update"])

    before = sent()
    talk.ask(f"neighbor {TOR} announce eor ipv4 unicast")
    poll(lambda: sent() == before + 1, 5, lambda: f"{sent()} updates after {before}")
    assert bird.session(NODE).established


def test_nobody_announces_again_behind_its_back(speaker: Speaker) -> None:
    """A daemon that goes on is refused, while `stop` runs and until SIGTERM."""
    bird = speaker.tor()
    talk = speaker.start()
    wait_up(talk)
    announce_both(talk)
    bird.wait_route(V6)
    stop(speaker)
    ident = talk.send(f"neighbor {TOR} announce route {V6} next-hop fd00::2")
    assert talk.answer(ident) == ("error", ["the speaker is being stopped"])
    end(speaker)
    bird.wait_down(NODE)
    assert bird.paths() == []


def test_a_peer_that_is_down_holds_nobody_up(speaker: Speaker) -> None:
    """The others are withdrawn from; and should it come up before SIGTERM, nothing is announced to it."""
    bird = speaker.tor(TOR)
    talk = speaker.start(TOR, TOR_B)
    wait_up(talk)
    announce_both(talk)
    announce(talk, peer=TOR_B)
    bird.wait_route(V6)
    stop(speaker)
    bird.wait_no_route(V6, 1)
    bird_b = speaker.tor(TOR_B)
    with BgpCapture(bird_b.namespace, "eth0") as capture:
        bird_b.wait_established(NODE_B, 30)
        capture.wait(lambda it: it.type is BgpType.KEEPALIVE and it.time > time.time() - 1)
    assert bird_b.paths() == []


def test_what_an_earlier_exabgp_left_behind_goes_too(speaker: Speaker) -> None:
    """ExaBGP has crashed and come back, nobody has announced yet: the peer's stale routes are not left to it."""
    bird = speaker.tor()
    talk = speaker.start()
    wait_up(talk)
    announce_both(talk)
    bird.wait_route(V6)
    assert speaker.process is not None
    kill(speaker.process.pid)
    bird.wait_down(NODE)
    wait_up(speaker.start())
    assert bird.route_count(NODE) == 2
    stop(speaker)
    bird.wait_route_count(NODE, 0, 1)


@pytest.mark.parametrize("who", ["bridge", "guardian"])
def test_it_works_while_the_bridge_is_being_replaced(speaker: Speaker, who: str) -> None:
    """A refused connection does not mean yet that no speaker runs, nor an empty memory that no peer is up."""
    bird = speaker.tor()
    talk = speaker.start()
    wait_up(talk)
    announce_both(talk)
    bird.wait_route(V6)
    kill(guardian(talk) if who == "guardian" else talk.hello["pid"])
    assert stop(speaker)[0] == "2 routes withdrawn from 1 peers"
    bird.wait_route_count(NODE, 0, 1)


def test_a_withdrawal_that_does_not_arrive_is_an_error(speaker: Speaker) -> None:
    """The peer's cable is cut: ExaBGP has sent everything, but the kernel still holds it."""
    bird = speaker.tor(hold_time_s=60)
    talk = speaker.start(hold_s=60)
    wait_up(talk)
    announce_both(talk)
    bird.wait_route(V6)
    bird.namespace.link_down("eth0")
    with pytest.raises(RuntimeError, match="StopError"):
        stop(speaker, timeout_s=2)


def test_a_bridge_that_hangs_is_an_error(speaker: Speaker) -> None:
    """The guardian's socket takes the connection, and nobody answers."""
    speaker.tor()
    talk = speaker.start()
    wait_up(talk)
    os.kill(talk.hello["pid"], signal.SIGSTOP)
    try:
        with pytest.raises(RuntimeError, match="StopError"):
            stop(speaker, timeout_s=1)
    finally:
        os.kill(talk.hello["pid"], signal.SIGCONT)


def test_without_a_speaker_there_is_nothing_to_do(speaker: Speaker) -> None:
    """No error, whether it never ran or has left its socket behind."""
    assert stop(speaker)[0] == "the speaker is not running: nothing to withdraw"
    speaker.start()
    end(speaker)
    assert stop(speaker)[0] == "the speaker is not running: nothing to withdraw"
