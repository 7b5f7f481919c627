"""What BIRD is told for BFD, and what it answers, read back."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from bgpd.bgp import bird_codec
from bgpd.bgp.bfd import fallen
from bgpd.model.bfd import Session, State, Timers, Wanted

TIMERS = Timers(300, 200, 3)
FAR = Wanted(ip_address("11.11.255.1"), ip_address("11.8.37.63"), multihop=True, timers=TIMERS)
NEAR = Wanted(ip_address("fd00::1"), ip_address("fd00::63"), multihop=False, timers=Timers(50, 50, 5))
LOG = "/run/bgpd/bfd/bird.log"

SHOWN = """\
bgpd:
IP address                Interface  State      Since         Interval  Timeout
11.11.255.1               ---        Up         1795297103.500000  0.300    0.900
fd00::1                   eth0       Down       1795297107.000001  1.000    0.000
fd00::2                   eth0       AdminDown  1795297107.000001  1.000    0.000
"""


def test_the_file_says_what_is_wanted() -> None:
    """One protocol, one set of timers for each kind, a line for each peer."""
    assert bird_codec.document({"tor-b": NEAR, "tor-a": FAR}, LOG).partition("protocol device { }\n")[2] == (
        "protocol bfd bgpd {\n"
        f'  description "{bird_codec.digest_of(bird_codec.document({"tor-a": FAR, "tor-b": NEAR}, LOG))}";\n'
        "  debug { events };\n"
        '  interface "*" { min tx interval 50 ms; min rx interval 50 ms; multiplier 5; };\n'
        "  multihop { min tx interval 300 ms; min rx interval 200 ms; multiplier 3; };\n"
        "  neighbor 11.11.255.1 local 11.8.37.63 multihop;  # tor-a 300 200 3\n"
        "  neighbor fd00::1 local fd00::63;  # tor-b 50 50 5\n"
        "}\n"
    )


def test_all_of_one_kind_offer_the_shortest_intervals() -> None:
    """BIRD has one set for them; each asks for its own in vain only where the peer does not ask for it too."""
    other = replace(FAR, peer_address=ip_address("11.11.255.2"), timers=Timers(100, 900, 3))
    for wanted in ({"tor-a": FAR, "tor-b": other}, {"tor-a": other, "tor-b": FAR}):
        assert "  multihop { min tx interval 100 ms; min rx interval 200 ms; multiplier 3; };\n" in (
            bird_codec.document(wanted, LOG)
        )


def test_who_said_itself_that_it_is_down() -> None:
    """What expires here was not said; of several falls the last counts. Each fell last as its name has it."""
    said, silent, late = "11.11.255.1", "fd00::1", "11.11.255.3"
    log = "".join(
        f"2026-11-22 01:43:52.835 <TRACE> bgpd: Session to {what}\n"
        for what in (
            f"{silent} changed state from Up to Down",
            f"{silent} changed state from Down to Up",
            f"{said} changed state from Down to Up",
            f"{said} expired",
            f"{said} changed state from Up to Down",
            f"{said} changed state from Down to Up",
            f"{silent} expired",
            f"{said} changed state from Up to Down",
            f"{silent} changed state from Up to Down",
            f"{late} changed state from Up to Down",
            f"{late} expired",  # it has nothing to fall any more
        )
    )
    assert bird_codec.said_down(log) == {ip_address(said), ip_address(late)}


def test_a_fall_that_was_said_says_nothing_of_the_next() -> None:
    """A session that had fallen expires afterwards, comes up, and expires again."""
    events = ("changed state from Up to Down", "expired", "changed state from Down to Up")
    fall = ("expired", "changed state from Up to Down")
    log = "".join(f"<TRACE> bgpd: Session to 11.11.255.1 {it}\n" for it in (*events, *fall))
    assert bird_codec.said_down(log) == set()
    log = "".join(f"<TRACE> bgpd: Session to 11.11.255.1 {it}\n" for it in (*events, events[0]))
    assert bird_codec.said_down(log) == {ip_address("11.11.255.1")}


def test_nobody_listens_where_nobody_wants_bfd() -> None:
    """Without a `protocol bfd` BIRD opens no port; there is no protocol of any other kind but `device`."""
    text = bird_codec.document({}, LOG)
    assert [line for line in text.splitlines() if line.startswith("protocol")] == ["protocol device { }"]
    assert (bird_codec.digest_of(text), bird_codec.wanted_of(text)) == ("", {})


@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True),
        st.builds(
            Wanted,
            st.ip_addresses(),
            st.ip_addresses(),
            st.booleans(),
            st.builds(Timers, st.integers(10, 60_000), st.integers(10, 60_000), st.integers(1, 255)),
        ),
    )
)
def test_a_file_is_read_back_as_what_it_asks_for(wanted: dict[str, Wanted]) -> None:
    """Whoever the peers are; and the order in which they are named makes no other file."""
    text = bird_codec.document(wanted, LOG)
    assert bird_codec.wanted_of(text) == wanted
    assert bird_codec.document(dict(reversed(wanted.items())), LOG) == text


def test_every_difference_changes_the_digest() -> None:
    """It is what tells whether BIRD has loaded the file."""
    others = [
        {},
        {"tor-a": FAR},
        {"tor-b": FAR},
        {"tor-a": replace(FAR, multihop=False)},
        {"tor-a": replace(FAR, timers=replace(TIMERS, multiplier=4))},
        {"tor-a": replace(FAR, local_address=ip_address("11.8.37.67"))},
    ]
    digests = {bird_codec.digest_of(bird_codec.document(it, LOG)) for it in others}
    assert len(digests) == len(others)
    assert bird_codec.digest_of(bird_codec.document({"tor-a": FAR}, "/another.log")) not in digests


def test_what_is_loaded_is_in_the_description() -> None:
    """`show protocols all`, with and without sessions."""
    shown = ["bgpd       BFD        ---        up     1795297103    ", "  Description:    33e52e4f9652", ""]
    assert bird_codec.loaded_digest(shown) == "33e52e4f9652"
    assert bird_codec.loaded_digest(shown[:1]) == ""


def test_sessions_are_read_with_their_state_and_times() -> None:
    """`show bfd sessions`: headings are no sessions."""
    found = bird_codec.sessions(SHOWN.splitlines(), ahead_s=1795297000.0)
    assert {it: round(each.since, 3) for it, each in found.items()} == {
        ip_address("11.11.255.1"): 103.5,
        ip_address("fd00::1"): 107.0,
        ip_address("fd00::2"): 107.0,
    }
    assert [replace(each, since=0.0) for each in found.values()] == [
        Session(State.UP, 0.0, 300, 900),
        Session(State.DOWN, 0.0, 1000, 0),
        Session(State.ADMIN_DOWN, 0.0, 1000, 0),
    ]


def test_a_step_of_the_wall_clock_is_no_fall() -> None:
    """An hour, which moves all that BIRD shows; and what two looks at two clocks differ by."""
    before = bird_codec.sessions(SHOWN.splitlines(), ahead_s=1795297000.0)
    stepped = SHOWN.replace("17952971", "17953007")
    assert stepped != SHOWN
    after = bird_codec.sessions(stepped.splitlines(), ahead_s=1795297000.0 + 3600 - 0.005)
    assert after != before
    assert fallen(before, after) == []


UP = Session(State.UP, 100.0, 300, 900)
PEER = ip_address("11.11.255.1")


def test_a_session_falls_when_it_was_up() -> None:
    """Down, or up anew, after it was up; not what never was up, what comes, stays, or was taken out."""
    down = Session(State.DOWN, 200.0, 1000, 0)
    assert fallen({PEER: UP}, {PEER: down}) == [PEER]
    assert fallen({PEER: UP}, {PEER: replace(down, state=State.INIT)}) == [PEER]
    assert fallen({PEER: UP}, {PEER: replace(UP, since=200.0)}) == [PEER]
    for before, after in (({}, {PEER: down}), ({PEER: down}, {PEER: down}), ({PEER: down}, {PEER: UP})):
        assert fallen(before, after) == []
    assert fallen({PEER: UP}, {PEER: UP}) == fallen({PEER: UP}, {}) == []
