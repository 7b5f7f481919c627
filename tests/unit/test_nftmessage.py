"""Messages of nf_tables: what is packed is found again, and a set becomes another by touching the difference only."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.model.prefix import Prefix
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.nftmessage import Kind, attribute, attributes, covers, nest


def prefixes(version: int) -> st.SearchStrategy[list[Prefix]]:
    """Few addresses, so that prefixes touch, overlap and reach both ends."""
    bits = 32 if version == 4 else 128
    kind = IPv4Network if version == 4 else IPv6Network
    low = st.integers(0, 255)
    high = st.integers(0, 255).map(lambda it: (1 << bits) - 256 + it)
    return st.lists(
        st.builds(
            lambda start, length: kind((start >> (bits - length) << (bits - length), length)),
            low | high,
            st.integers(bits - 8, bits) | st.just(0),
        ),
        max_size=8,
    )


class Kernel:
    """A set as the kernel keeps it: bounds, each of which ends an interval or starts one."""

    def __init__(self) -> None:
        self.elements: set[bytes] = set()

    def take(self, message: nft.Message) -> None:
        elements = attributes(attributes(message.body)[3][0])[1]
        for element in elements:
            if message.kind is Kind.DELSETELEM:
                self.elements.remove(element)
            else:
                assert element not in self.elements
                self.elements.add(element)

    def show(self) -> list[nft.Attributes]:
        return [attributes(nest(3, *(attribute(1, element) for element in self.elements)))]


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data())
def test_a_set_becomes_what_is_wanted_step_by_step(version: int, data: st.DataObject) -> None:
    """Elements that are gone are removed before what overlaps them is added."""
    kernel = Kernel()
    have: list[Prefix] = []
    for want in data.draw(st.lists(prefixes(version), max_size=3)):
        for message in nft.set_contents("t", "s", have, want):
            kernel.take(message)
        assert nft.prefixes_in(kernel.show(), version) == nft.fewest(want)
        assert list(nft.set_contents("t", "s", want, want)) == []
        have = want


def test_what_is_in_both_is_not_touched() -> None:
    stays, goes, comes = (ip_network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
    removal, addition = nft.set_contents("t", "s", [stays, goes], [stays, comes])
    assert (removal.kind, addition.kind) == (Kind.DELSETELEM, Kind.NEWSETELEM)
    assert stays.network_address.packed not in removal.body + addition.body


def test_long_lists_are_spread_over_messages_that_an_attribute_can_hold() -> None:
    many = [IPv6Network((number << 64, 96)) for number in range(5000)]
    messages = list(nft.set_contents("t", "s", [], many))
    assert len(messages) > 1
    assert all(len(message.body) < 1 << 16 for message in messages)


def test_what_the_kernel_shows_may_have_more_but_not_less() -> None:
    wanted = attribute(1, "bgpd") + nest(4, nest(1, attribute(1, "masq")), nest(1, attribute(1, "counter")))

    def shown(*expressions: str, name: str = "bgpd") -> nft.Attributes:
        packed = b"".join(attribute(1, attribute(1, each) + attribute(9, 7)) for each in expressions)
        return attributes(attribute(1, name) + attribute(3, 42) + attribute(4, packed))

    assert covers(shown("masq", "counter"), wanted)
    assert not covers(shown("counter", "masq"), wanted)
    assert not covers(shown("masq"), wanted)
    assert not covers(shown("masq", "counter", "counter"), wanted)
    assert not covers(shown("masq", "counter", name="other"), wanted)
    assert not covers({}, wanted)


def test_a_program_and_a_comment_are_found_again() -> None:
    rule = attributes(nft.rule("t", "c", [nft.asks_program("/sys/fs/bpf/masq"), nft.masquerade(0)], "why").body)
    assert nft.comment_of(rule) == "why"
    assert [nft.program_asked(each) for each in nft.expressions_of(rule)] == ["/sys/fs/bpf/masq", None]


def test_a_pin_too_long_for_the_kernel_is_refused() -> None:
    """It would be cut off, and the rule would ask for another file."""
    with pytest.raises(ValueError, match="512"):
        nft.asks_program("/" + "x" * 512)
