"""What each option of a session does, as BIRD, FRR and GoBGP report the session they hold.

The speaker has hold times of 90 s unless a case says so, and our AS is 64512 unless a case has another one.
"""

from __future__ import annotations

import pytest

from tests.fabric.gobgp import Gobgp
from tests.fabric.peer import FAMILIES, IPV4, Capabilities
from tests.fabric.test_options_lab import ASN, UP_S, V4, Bench, Case, Place, benches

BOTH = {"families": list(FAMILIES)}
RACK, LARGE = 65010, 4200000001


def timers(seconds: int | None) -> dict[str, object]:
    return {"timers": {"holdTimeSeconds": seconds}} if seconds is not None else {"timers": None}


bench = benches(
    Case(name="default", ours={"localAddress": None, **timers(None)}, theirs={"hold_time_s": 240, "keepalive_s": 80}),
    Case(name="hold-9", ours=timers(9)),
    Case(name="hold-9-keepalive", ours={"timers": {"holdTimeSeconds": 9, "keepAliveTimeSeconds": 3}}),
    Case(name="hold-30", ours=timers(30)),
    Case(name="hold-theirs", ours=timers(90), theirs={"hold_time_s": 12, "keepalive_s": 4}),
    Case(name="hold-0", ours=timers(0)),
    Case(name="restart-77", ours={"gracefulRestart": {"restartTimeSeconds": 77}, **BOTH}),
    Case(name="no-restart", ours={"gracefulRestart": {"enabled": False}, **BOTH}),
    Case(name="six", ours=BOTH, place=Place.NEAR6),
    Case(name="rack", ours={"localASN": RACK}),
    Case(name="rack-large", ours={"localASN": LARGE}),
    routerID="192.0.2.63",
)


@pytest.mark.parametrize(
    ("name", "hold", "keepalive"),
    [
        ("default", 90, 30),
        ("hold-9", 9, 3),
        ("hold-9-keepalive", 9, 3),
        ("hold-30", 30, 10),
        ("hold-theirs", 12, 4),
    ],
)
def test_the_hold_time_is_the_lower_one(bench: Bench, name: str, hold: int, keepalive: int) -> None:
    """RFC 4271 section 4.2; keepalives at a third of it, and both sides agree."""
    session = bench.session(name)
    assert session.hold_time_s == hold
    assert session.keepalive_s == keepalive
    assert bench.row(name)["holdTime_s"] == hold


def test_a_hold_time_of_0_is_no_timer_at_all(bench: Bench) -> None:
    """RFC 4271 section 4.2: no keepalives, no expiry. GoBGP 3.10 takes 0 for the time it has to write a message:
    it comes up and fails at once, whoever the peer is.
    """
    if bench.kind is Gobgp:
        assert bench.speaker.process is not None
        bench.speaker.process.wait_log(f"->{bench.ours('hold-0')}:", UP_S)
        failure = [line for line in bench.speaker.process.log().splitlines() if f"->{bench.ours('hold-0')}:" in line]
        assert "i/o timeout" in failure[0]
        return
    session = bench.session("hold-0")
    assert (session.hold_time_s, session.keepalive_s) == (0, 0)
    row = bench.row("hold-0")
    assert (row["state"], row["holdTime_s"], row["flaps"]) == ("up", 0, 0)


@pytest.mark.parametrize(
    ("name", "seconds", "families"), [("default", 120, {IPV4}), ("restart-77", 77, FAMILIES), ("six", 120, FAMILIES)]
)
def test_graceful_restart_is_offered(bench: Bench, name: str, seconds: int, families: set[str]) -> None:
    """RFC 4724: on by default with 120 s, for exactly the families of the session."""
    offered = bench.session(name).capabilities
    assert offered.graceful_restart
    assert offered.restart_time_s == seconds
    assert offered.restart_families == set(families)


def test_graceful_restart_can_be_turned_off(bench: Bench) -> None:
    """Then it is not among the capabilities, and the rest is as before."""
    offered = bench.session("no-restart").capabilities
    assert (offered.graceful_restart, offered.restart_time_s) == (False, None)
    assert not offered.restart_families
    assert offered.families == set(FAMILIES)


@pytest.mark.parametrize("name", ["default", "restart-77", "rack"])
def test_what_else_is_offered(bench: Bench, name: str) -> None:
    """Route refresh and 4-octet ASNs always; the families configured; nothing that ExaBGP could not keep."""
    offered = bench.session(name).capabilities
    families = frozenset(FAMILIES if name == "restart-77" else {IPV4})
    kept = Capabilities(
        families=families,
        four_octet_asn=True,
        route_refresh=True,
        enhanced_refresh=True,
        extended_message=True,
        graceful_restart=True,
        restart_time_s=77 if name == "restart-77" else 120,
        restart_families=families,
    )
    assert offered == kept


def test_the_source_is_the_address_of_the_node(bench: Bench) -> None:
    """Without localAddress the session comes from the node's InternalIP, where the speaker expects it."""
    assert bench.session("default").address == bench.place.address
    assert bench.row("default")["localAddress"] == bench.place.address


@pytest.mark.parametrize("name", ["hold-9", "six"])
def test_the_source_is_the_configured_address(bench: Bench, name: str) -> None:
    """`localAddress`: another address of the node, in both families; the next hop follows it."""
    assert bench.session(name).address == bench.ours(name) != bench.place.address
    assert bench.row(name)["localAddress"] == bench.ours(name)


def test_the_router_id_is_the_configured_one(bench: Bench) -> None:
    """`routerID`, on sessions of both families."""
    assert {bench.session(name).remote_id for name in ("default", "six", "rack")} == {"192.0.2.63"}


@pytest.mark.parametrize(("name", "asn"), [("rack", RACK), ("rack-large", LARGE)])
def test_a_peer_may_know_us_by_another_asn(bench: Bench, name: str, asn: int) -> None:
    """`localASN` of a peer: the speaker accepts no other in the OPEN, and it is all of the path."""
    bench.session(name)
    assert bench.route(name).as_path == (asn,)
    assert bench.row(name)["localASN"] == asn


def test_the_asn_is_that_of_the_node_otherwise(bench: Bench) -> None:
    """`bgp.localASN`: the session is internal beside external ones, and its path empty."""
    bench.session("default")
    assert bench.route("default", V4).as_path == ()
    assert bench.row("default")["localASN"] == ASN
