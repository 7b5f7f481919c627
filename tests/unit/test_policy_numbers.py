"""Numbers that stay the same from one process to the next, and never stand for two things."""

from __future__ import annotations

from dataclasses import replace

from bgpd.datapath.layout import PeerFlag
from bgpd.model.policy import PodPeer, PortRange, Protocol, RuleRef
from bgpd.policy.compile import Compiler
from bgpd.policy.entries import shares, shares_of
from bgpd.policy.numbers import Numbers
from bgpd.policy.rulebook import prefixes
from tests.unit.test_policy_evaluate import ALL, allow, cluster, into, out

SAME = (39506, 40625)  # both draw 3877755655


def test_two_contents_that_draw_one_number_get_two() -> None:
    """The first keeps it, whichever that is; dropped and come again, each is found again."""
    for first, second in (SAME, SAME[::-1]):
        numbers: Numbers[int] = Numbers()
        assert numbers.of(first) == 3877755655
        other = numbers.of(second)
        assert other not in (0, 3877755655)
        assert (numbers[3877755655], numbers[other], numbers.of(first)) == (first, second, 3877755655)
        numbers.keep({other})
        assert first not in numbers
        assert numbers.of(second) == other


def test_numbers_do_not_depend_on_the_process() -> None:
    """A daemon that starts again finds in the kernel what it would write: these never change without a new layout."""
    numbers: Numbers[object] = Numbers()
    assert numbers.of(PortRange(Protocol.TCP, 80, 90)) == 2841869264
    assert numbers.of(("x", 1)) == 3059526131


def test_ranges_are_the_fewest_prefixes() -> None:
    """Exactly the ports of the range, none twice."""
    for first, last in ((0, 65535), (1, 65535), (80, 80), (53, 84), (32768, 65535), (8000, 8999)):
        found = list(prefixes(PortRange(Protocol.TCP, first, last)))
        ports = [port for start, length in found for port in range(start, start + (1 << (16 - length)))]
        assert ports == list(range(first, last + 1))
        assert all(start % (1 << (16 - length)) == 0 for start, length in found)
    assert list(prefixes(PortRange(Protocol.TCP, 0, 65535))) == [(0, 0)]
    assert len(list(prefixes(PortRange(Protocol.TCP, 1, 65535)))) == 16


def test_what_an_entry_goes_back_to() -> None:
    """Cookies name rules, sets name policies, and each policy can be told what room it takes."""
    http = PortRange(Protocol.TCP, 80, 80)
    snapshot = cluster(into(allow(PodPeer(ALL), ports=(http,))), out(), local=("x/web",))
    contents = Compiler().advance(snapshot)[-1]
    assert set(contents.cookies.values()) == {RuleRef("x/p", "ingress", 0)}  # type: ignore[arg-type]
    assert {(each.direction, each.policies) for each in contents.sets.values()} == {
        ("ingress", ("x/p",)),
        ("egress", ("x/out",)),
    }
    assert shares(contents) == {"x/p": 2}
    found = [shares_of(contents, f"policy_{part}")["x/p"] for part in ("rules", "ports", "ranges", "cidrs_v4")]
    assert found == [1, 1, 0, 0]
    assert shares_of(contents, "policy_peers") == {"x/p": len(contents.peers)}


def test_audit_is_a_matter_of_the_namespace() -> None:
    """Every pod of it here has the flag, and it goes when the namespace leaves audit mode."""
    compiler, snapshot = Compiler(), cluster(into(), local=("x/web",))
    for audited in (frozenset({"x"}), frozenset({"y"}), frozenset[str]()):
        contents = compiler.advance(replace(snapshot, audited=audited))[-1]
        assert {bool(peer.flags & PeerFlag.AUDIT) for peer in contents.peers.values()} == {"x" in audited}
