"""What ExaBGP does to sessions and routes, reproduced on the real one with a real peer.

Each test states one fact that a decision of ours rests on, and where. When an upgrade of ExaBGP breaks one,
that place has to be looked at again; the test is changed with it, never by itself.
"""

from __future__ import annotations

import pytest

from tests.fabric import exabgp
from tests.fabric.bgp_wire import BgpMessage, BgpType
from tests.fabric.bird import protocol_name
from tests.fabric.observe import BgpCapture, RouteSampler
from tests.fabric.process import poll
from tests.fabric.test_exabgp_api import (
    ASN,
    NODE,
    NODE6,
    NODE_B,
    TOR,
    TOR_B,
    V4,
    V6,
    Helper,
    Rig,
    neighbor,
    resident_mb,
    rig,
    withdrawn,
)
from tests.fabric.test_faults_peer import LENGTH_7, Rogue, saying

__all__ = ["rig"]
pytestmark = pytest.mark.needs("bird", str(exabgp.PROGRAM))

OTHER = "188.188.1.0/24"
FAMILY_NAMES = ("ipv4 unicast", "ipv6 unicast")


def announce(helper: Helper, prefix: str, *attributes: str, peer: str = TOR) -> None:
    """Announces one prefix to one peer by the node's own address on that cable."""
    next_hop = NODE_B if peer == TOR_B else NODE
    helper.command(f"neighbor {peer} announce route {prefix} next-hop {next_hop} {' '.join(attributes)}")


def end_of_rib(helper: Helper, *families: str) -> None:
    """Sends End-of-RIB for these families, all when none is named."""
    for family in families or FAMILY_NAMES:
        helper.command(f"neighbor {TOR} announce eor {family}")


def updates(capture: BgpCapture) -> list[BgpMessage]:
    """What the node announced or withdrew, End-of-RIB left out."""
    return [it for it in capture.messages(BgpType.UPDATE, src=NODE) if not it.end_of_rib]


def is_up(helper: Helper) -> bool:
    """Whether the helper was told that a session is up; asks ExaBGP something, to read what it said."""
    helper.command("version")
    return any(it["type"] == "state" and it["neighbor"]["state"] == "up" for it in helper.events)


def wait_up(helper: Helper) -> None:
    poll(lambda: is_up(helper), 10, lambda: f"no session; told: {helper.events}")


# --- restart and stop


def test_automatic_end_of_rib_loses_routes_in_a_restart(rig: Rig) -> None:
    """It is sent as soon as the session is up, before a helper can say a word: the peer drops what was stale.

    So `render` writes `manual-eor true`.
    """
    bird = rig.tor()
    announce(rig.start(neighbor(manual_eor=False)), V4)
    bird.wait_route(V4)
    with RouteSampler(bird.control_path, [V4]) as sampler:
        sampler.wait_samples()
        stop(rig)
        helper = rig.start(neighbor(manual_eor=False))
        wait_up(helper)
        poll(lambda: V4 in sampler.result().lost, 10, lambda: f"never lost: {sampler.result()}")
        announce(helper, V4)
        bird.wait_route(V4)
        sampler.wait_samples()
    assert sampler.result().losses == 1


def test_end_of_rib_by_hand_loses_nothing_in_a_restart(rig: Rig) -> None:
    """Announced first, End-of-RIB after it: not one sample of 10 ms without the route.

    So End-of-RIB is an object of its own in `bgp.reconcile`, sorted after the routes.
    """
    bird = rig.tor()
    helper = rig.start(neighbor())
    wait_up(helper)
    announce(helper, V4)
    end_of_rib(helper)
    bird.wait_route(V4, where=lambda it: not it.stale)
    with RouteSampler(bird.control_path, [V4]) as sampler:
        sampler.wait_samples()
        stop(rig)
        bird.wait_route(V4, where=lambda it: it.stale)
        helper = rig.start(neighbor())
        wait_up(helper)
        announce(helper, V4)
        end_of_rib(helper)
        bird.wait_route(V4, where=lambda it: not it.stale)
        sampler.wait_samples()
    samples = sampler.result()
    assert (samples.losses, samples.count > 50) == (0, True)


@pytest.mark.parametrize("restart_s", [120, 0])
def test_sigterm_is_a_bare_fin(rig: Rig, restart_s: int) -> None:
    """No NOTIFICATION, with graceful restart or without; with it, the peer keeps routes to a node that has left.

    So `bgp.stop` withdraws before systemd sends SIGTERM.
    """
    bird = rig.tor()
    announce(rig.start(neighbor(restart_s=restart_s)), V4)
    bird.wait_route(V4)
    with BgpCapture(bird.namespace, "eth0") as capture:
        stop(rig)
        bird.wait_down(NODE)
    assert capture.notifications() == []
    if restart_s:
        assert bird.wait_route(V4, where=lambda it: it.stale)
    else:
        bird.wait_no_route(V4)


def test_end_of_rib_is_for_one_family(rig: Rig) -> None:
    """The other family's stale routes stay: `bgp.stop` and the bridge send it for every negotiated family."""
    bird = rig.tor()
    helper = rig.start(neighbor())
    wait_up(helper)
    announce(helper, V4)
    helper.command(f"neighbor {TOR} announce route {V6} next-hop {NODE6}")
    bird.wait_route(V6)
    stop(rig)
    helper = rig.start(neighbor())
    wait_up(helper)
    end_of_rib(helper, "ipv4 unicast")
    bird.wait_no_route(V4)
    assert bird.route(V6)
    end_of_rib(helper, "ipv6 unicast")
    bird.wait_no_route(V6)


def test_what_was_announced_is_replayed_when_the_session_returns(rig: Rig) -> None:
    """By ExaBGP itself, from its adj-rib: the daemon may be dead. `render` asks for `adj-rib-out`."""
    bird = rig.tor()
    helper = rig.start(neighbor())
    wait_up(helper)
    announce(helper, V4)
    bird.wait_route(V4)
    bird.ask(f"disable {protocol_name(NODE)}")
    bird.wait_no_route(V4)
    bird.ask(f"enable {protocol_name(NODE)}")
    assert bird.wait_route(V4)


# --- peers that break


def test_a_peer_that_breaks_its_sessions_is_dialled_at_once_again(rig: Rig) -> None:
    """For ever: ExaBGP forgets every failure as soon as a session is established. So `steady` installs `Redial`."""
    with Rogue(rig.namespaces[TOR], TOR, saying(LENGTH_7, established=True)) as rogue:
        rig.start(neighbor())
        rogue.wait_dialled(20)
    assert rogue.dialled[19] - rogue.dialled[9] < 10


# --- routes


def test_a_withdrawal_of_what_was_never_announced_is_sent(rig: Rig) -> None:
    """ExaBGP does not look whether it announced it: `bgp.reconcile` withdraws only what it has observed."""
    bird = rig.tor()
    helper = rig.start(neighbor())
    wait_up(helper)
    announce(helper, V4)
    bird.wait_route(V4)
    with BgpCapture(bird.namespace, "eth0") as capture:
        helper.command(f"neighbor {TOR} withdraw route {OTHER} next-hop {NODE}")
        capture.wait(withdrawn, what="withdrawal")


def test_the_first_thing_said_in_a_session_is_never_a_withdrawal(rig: Rig) -> None:
    """ExaBGP leaves withdrawals out of the first batch of a session, as nothing can have been announced in it.

    A stale route at the peer is not withdrawn that way: `bgp.stop` sends End-of-RIB too, which removes it.
    """
    bird = rig.tor()
    helper = rig.start(neighbor())
    wait_up(helper)
    with BgpCapture(bird.namespace, "eth0") as capture:
        helper.command(f"neighbor {TOR} withdraw route {OTHER} next-hop {NODE}")
        announce(helper, V4)
        bird.wait_route(V4)
    assert [withdrawn(it) for it in updates(capture)] == [False]


def test_ipv6_over_an_ipv4_session_needs_a_next_hop(rig: Rig) -> None:
    """`next-hop self` is refused there, so `bgp.plan` always names the next hop."""
    bird = rig.tor()
    helper = rig.start(neighbor())
    bird.wait_established(NODE)
    helper.send(f"neighbor {TOR} announce route {V6} next-hop self")
    assert helper.answer()[0] == "error"
    helper.command(f"neighbor {TOR} announce route {V6} next-hop {NODE6}")
    assert bird.wait_route(V6).next_hop == NODE6


def test_an_as_path_is_sent_as_it_is_said(rig: Rig) -> None:
    """Without our own ASN in front, also to an external peer: `bgp.plan` prepends it there."""
    bird = rig.tor(asn=65001)
    helper = rig.start(neighbor(session="local-as 65001;"))
    wait_up(helper)
    announce(helper, V4, "as-path [ 65001 65099 ]")
    announce(helper, OTHER, "as-path [ 65099 ]")
    assert bird.wait_route(V4).as_path == (65001, 65099)
    bird.wait_route(OTHER, where=lambda it: it.as_path == (65099,))


def test_without_an_as_path_exabgp_makes_one(rig: Rig) -> None:
    """Our own ASN towards an external peer, so `bgp.plan` names a path only where a policy asks for it."""
    bird = rig.tor(asn=65001)
    helper = rig.start(neighbor(session="local-as 65001;"))
    wait_up(helper)
    announce(helper, V4)
    assert bird.wait_route(V4).as_path == (65001,)


@pytest.mark.parametrize(("asn", "told"), [(ASN, 300), (65001, 100)])
def test_local_preference_is_for_internal_peers(rig: Rig, asn: int, told: int) -> None:
    """An external peer is not sent it (RFC 4271 section 5.1.5) and takes its own default, 100 in BIRD."""
    bird = rig.tor(asn=asn)
    helper = rig.start(neighbor(session=f"local-as {asn};"))
    wait_up(helper)
    announce(helper, V4, "local-preference 300")
    assert bird.wait_route(V4).local_pref == told


# --- size


def test_it_fits_into_60_megabytes(rig: Rig) -> None:
    """ExaBGP with one session; the bridge's share is in `test_bridge_faults`."""
    bird = rig.tor()
    rig.start(neighbor(), log_level="ERROR")
    bird.wait_established(NODE)
    assert rig.process is not None
    assert resident_mb(rig.process.pid) < 45


def stop(rig: Rig) -> None:
    """Ends ExaBGP by SIGTERM, as systemd does."""
    assert rig.process is not None
    rig.process.stop()
