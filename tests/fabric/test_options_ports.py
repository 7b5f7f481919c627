"""Who dials whom and on which port, and ASNs of four octets on both sides, with BIRD, FRR and GoBGP.

Here the whole daemon has another port and another AS: it listens on 1790, the speaker on 1179.
"""

from __future__ import annotations

import pytest

from tests.fabric.process import poll
from tests.fabric.test_options_lab import UP_S, Bench, Case, benches

OURS, THEIRS = 4200000001, 4200000002
LISTEN, DIAL = 1790, 1179

bench = benches(
    Case(name="we-wait", ours={"passive": True}),
    Case(name="they-wait", theirs={"passive": True}),
    Case(name="nobody-waits"),
    Case(name="both-wait", ours={"passive": True}, theirs={"passive": True}),
    Case(name="internal", ours={"localASN": THEIRS}),
    tor={"asn": THEIRS, "listen_port": DIAL},
    localASN=OURS,
    listenPort=LISTEN,
)


def connections(bench: Bench, name: str) -> list[tuple[int, int]]:
    """The ports, ours and theirs, of the TCP connections of a session."""
    lines = bench.place.namespace.run(["ss", "-H", "-t", "-n", "state", "established"]).stdout.splitlines()
    ends = [[end.rpartition(":") for end in line.split()[2:4]] for line in lines]
    mine = [bench.ours(name), bench.theirs(name)]
    return [(int(left[2]), int(right[2])) for left, right in ends if [left[0], right[0]] == mine]


def test_the_peer_dials_when_we_are_passive(bench: Bench) -> None:
    """`passive: true`: the one connection ends at our `listenPort`, on the address of the session."""
    bench.session("we-wait")
    [(ours, theirs)] = connections(bench, "we-wait")
    assert ours == LISTEN
    assert theirs != DIAL


def test_we_dial_when_the_peer_is_passive(bench: Bench) -> None:
    """The one connection goes to `peerPort`."""
    bench.session("they-wait")
    [(ours, theirs)] = connections(bench, "they-wait")
    assert ours != LISTEN
    assert theirs == DIAL


def test_one_connection_is_left_when_both_dial(bench: Bench) -> None:
    """RFC 4271 section 6.8: however the collision ends, there is one session and it carries the route."""
    bench.session("nobody-waits")
    bench.route("nobody-waits")
    poll(
        lambda: len(connections(bench, "nobody-waits")) == 1,
        UP_S,
        lambda: f"connections: {connections(bench, 'nobody-waits')}",
    )


def test_nobody_dials_when_both_are_passive(bench: Bench) -> None:
    """There is not even a connection, and `bgpd peers` says that we wait for the peer."""
    bench.session("we-wait")
    bench.session("they-wait")
    row = bench.assert_down("both-wait")
    assert connections(bench, "both-wait") == []
    assert f"we wait for {bench.theirs('both-wait')} to dial {bench.ours('both-wait')}:{LISTEN}" in row["why"]


@pytest.mark.parametrize("name", ["we-wait", "they-wait", "nobody-waits"])
def test_an_asn_of_four_octets_on_both_sides(bench: Bench, name: str) -> None:
    """RFC 6793: external, whoever dialled; the path has our ASN and not AS_TRANS."""
    assert bench.session(name).capabilities.four_octet_asn
    assert bench.route(name).as_path == (OURS,)


def test_an_internal_session_in_an_as_of_four_octets(bench: Bench) -> None:
    """The same ASN on both sides makes the session internal, beyond 65535 too: an empty path, a local preference."""
    assert bench.session("internal").capabilities.four_octet_asn
    route = bench.route("internal")
    assert (route.as_path, route.local_pref) == ((), 100)
