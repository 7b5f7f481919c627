"""Reading addresses and prefixes: what is taken, and what the refusal tells an operator."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.model.prefix import PrefixError, contains, parse_address, parse_prefix, sort_key

NETWORKS = st.builds(
    lambda address, length: ip_network(f"{address}/{min(length, address.max_prefixlen)}", strict=False),
    st.ip_addresses(),
    st.integers(0, 128),
)


@given(NETWORKS)
def test_a_prefix_is_read_as_it_is_written(network: object) -> None:
    """Reading what is printed gives the same prefix, in both families."""
    assert parse_prefix(str(network)) == network


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.1/24", "has host bits set; did you mean 10.0.0.0/24?"),
        ("fd00::1/64", "did you mean fd00::/64?"),
        ("10.0.0.0", "has no length"),
        ("10.0.0.0/33", "is not a CIDR"),
        ("10.0.0.0/255.255.255.0", "is not a CIDR"),
        ("10.0.0.0/08", "is not a CIDR"),
        ("fe80::%eth0/64", "is not a CIDR"),
        ("", "has no length"),
        ("ten/8", "is not a CIDR"),
    ],
)
def test_a_bad_prefix_is_refused_with_what_would_be_right(text: str, problem: str) -> None:
    """The text itself is quoted, so that it can be found."""
    with pytest.raises(PrefixError) as refused:
        parse_prefix(text)
    assert problem in str(refused.value) and repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "fe80::1%eth0", "example.org", "10.0.0"])
def test_a_bad_address_is_refused(text: str) -> None:
    """Lengths, scopes and names are not addresses."""
    with pytest.raises(PrefixError):
        parse_address(text)


@given(NETWORKS, NETWORKS)
def test_containment_is_an_order(one: object, other: object) -> None:
    """A prefix contains itself, and two that contain each other are one."""
    first, second = parse_prefix(str(one)), parse_prefix(str(other))
    assert contains(first, first)
    if contains(first, second) and contains(second, first):
        assert first == second
    if contains(first, second) and first != second:
        assert sort_key(second) < sort_key(first)
