"""What keeps a session from coming up, and what lets it: MD5, TTL security, hops, with BIRD, FRR and GoBGP.

That something does not come up proves little by itself. So each such test waits until a kernel has counted a
segment refused for that very reason, and until a session that differs in that one option alone is up: another
one of the lab or, after a live change, the same. `FAR` peers are one router away.
"""

from __future__ import annotations

import pytest

from tests.fabric.test_options_lab import V4, Bench, Case, Place, benches, wait_counter

NEIGHBOR_AS = {"localASN": 65001}
GTSM = {"ttlSecurity": True}
WAITS = {"passive": True}

bench = benches(
    Case(name="md5", password="battery-staple", theirs={"password": "battery-staple"}),
    Case(name="md5-external", ours=NEIGHBOR_AS, password="b2", theirs={"password": "b2"}),
    Case(name="md5-six", place=Place.NEAR6, password="b3", theirs={"password": "b3"}),
    Case(name="md5-wrong", password="wrong", theirs={"password": "right"}),
    Case(name="md5-not-ours", theirs={"password": "right"}),
    Case(name="md5-not-theirs", password="right"),
    Case(name="gtsm", ours=GTSM, theirs={"ttl_security": True}),
    Case(name="gtsm-external", ours=GTSM | NEIGHBOR_AS, theirs={"ttl_security": True}),
    Case(name="gtsm-six", ours=GTSM | NEIGHBOR_AS, place=Place.NEAR6, theirs={"ttl_security": True}),
    Case(name="gtsm-we-wait", ours=GTSM | WAITS, theirs={"ttl_security": True}),
    Case(name="gtsm-external-we-wait", ours=GTSM | WAITS | NEIGHBOR_AS, theirs={"ttl_security": True}),
    Case(name="gtsm-six-we-wait", ours=GTSM | WAITS | NEIGHBOR_AS, place=Place.NEAR6, theirs={"ttl_security": True}),
    Case(name="gtsm-far", ours=GTSM | NEIGHBOR_AS, place=Place.FAR, theirs={"multihop": 255}),
    Case(name="gtsm-not-theirs", ours=GTSM | NEIGHBOR_AS),
    Case(name="gtsm-not-ours", ours=NEIGHBOR_AS, theirs={"ttl_security": True}),
    Case(name="far", ours=NEIGHBOR_AS, place=Place.FAR, theirs={"multihop": 4}),
    Case(name="far-multihop", ours={"ebgpMultihop": 4} | NEIGHBOR_AS, place=Place.FAR, theirs={"multihop": 4}),
    Case(name="far-internal", place=Place.FAR),
)


@pytest.mark.parametrize("name", ["md5", "md5-external", "md5-six"])
def test_the_same_password_on_both_sides(bench: Bench, name: str) -> None:
    """RFC 2385: up and carrying the route, internal, external and between v6 addresses."""
    bench.session(name)
    assert bench.row(name)["state"] == "up"


def test_another_password(bench: Bench) -> None:
    """Not up, the speaker's kernel drops our segments for a wrong digest, `bgpd peers` names the password; the
    right one, written to the file and reloaded, brings the session up.
    """
    wait_counter(bench.tor, "TCPMD5Failure")
    assert "is the password the same there" in bench.assert_down("md5-wrong")["why"]
    bench.write_password("md5-wrong", "right")
    bench.reload()
    bench.session("md5-wrong")


def test_a_password_on_their_side_only(bench: Bench) -> None:
    """Not up, the speaker's kernel misses the digest, `bgpd peers` asks whether a password is wanted; giving the
    peer one brings the session up.
    """
    wait_counter(bench.tor, "TCPMD5NotFound")
    assert "does it want a password" in bench.assert_down("md5-not-ours")["why"]
    bench.write_password("md5-not-ours", "right")
    bench.change("md5-not-ours", authPasswordFile=str(bench.password_file("md5-not-ours")))
    bench.session("md5-not-ours")


def test_a_password_on_our_side_only(bench: Bench) -> None:
    """Not up, our kernel drops what comes without a digest, `bgpd peers` names the password; taking it from the
    peer brings the session up.
    """
    wait_counter(bench.place.namespace, "TCPMD5NotFound")
    assert "is the password the same there" in bench.assert_down("md5-not-theirs")["why"]
    bench.change("md5-not-theirs", authPasswordFile=None)
    bench.session("md5-not-theirs")


@pytest.mark.parametrize("name", ["gtsm", "gtsm-external", "gtsm-six"])
def test_ttl_security_on_both_sides(bench: Bench, name: str) -> None:
    """RFC 5082: both send with 255 and take nothing less; up, internal, external and between v6 addresses."""
    bench.session(name)
    assert bench.row(name)["state"] == "up"


@pytest.mark.parametrize("name", ["gtsm-we-wait", "gtsm-external-we-wait", "gtsm-six-we-wait"])
def test_ttl_security_when_the_peer_dials(bench: Bench, name: str) -> None:
    """Our first answer comes from the listening socket and has a TTL of 255 as well: the peer's kernel takes it."""
    bench.session(name)
    assert bench.row(name)["state"] == "up"


def test_ttl_security_with_a_router_in_between(bench: Bench) -> None:
    """The peer's segments arrive with one hop less and our kernel drops them, although the peer would take ours;
    `bgpd peers` asks for routers. `ebgpMultihop` instead brings the session up.
    """
    wait_counter(bench.place.namespace, "TCPMinTTLDrop")
    assert "no router in between" in bench.assert_down("gtsm-far")["why"]
    bench.change("gtsm-far", ttlSecurity=None, ebgpMultihop=4)
    bench.session("gtsm-far")


def test_ttl_security_on_our_side_only(bench: Bench) -> None:
    """The peer sends with a TTL of 1 or 64 and our kernel drops that; `bgpd peers` asks for the peer's option."""
    bench.session("gtsm-external")
    wait_counter(bench.place.namespace, "TCPMinTTLDrop")
    assert "has it TTL security too" in bench.assert_down("gtsm-not-theirs")["why"]


def test_ttl_security_on_their_side_only(bench: Bench) -> None:
    """We send with a TTL of 1 and the speaker's kernel drops that. Our end hears all that the speaker says and may
    take the session for established until the hold time is over; the speaker never does.
    """
    bench.session("gtsm-external")
    wait_counter(bench.tor, "TCPMinTTLDrop")
    assert not bench.speaker.session(bench.ours("gtsm-not-ours")).established
    assert bench.speaker.route(V4, bench.ours("gtsm-not-ours")) is None


def test_an_external_peer_behind_a_router_needs_multihop(bench: Bench) -> None:
    """We send with a TTL of 1 then and the router drops it; `bgpd peers` names the option."""
    bench.session("far-multihop")
    bench.session("far-internal")
    assert bench.router is not None
    wait_counter(bench.router, "OutTimeExcds")
    assert "else ebgpMultihop" in bench.assert_down("far")["why"]


def test_multihop_carries_the_route(bench: Bench) -> None:
    """`ebgpMultihop`: a session across a router, with the next hop as it is on a link."""
    bench.session("far-multihop")
    assert bench.route("far-multihop").next_hop == bench.ours("far-multihop")


def test_an_internal_peer_may_be_behind_a_router(bench: Bench) -> None:
    """No option is needed: the TTL is the system's."""
    bench.session("far-internal")
    assert bench.route("far-internal").as_path == ()
