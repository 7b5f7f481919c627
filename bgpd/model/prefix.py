"""Reads IP addresses and prefixes, and is the only place that does.

Everything else passes the standard library's immutable `ipaddress` objects around. The errors say what would
have been right, because they end up in front of an operator.
"""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network


class PrefixError(ValueError):
    """A text that is no address or prefix; the message names the remedy."""


def parse_address(text: str) -> Address:
    """An address without a length. Scoped addresses (`fe80::1%eth0`) are refused: they mean nothing off-node."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        hint = "leave the length off" if "/" in text else "write it like 192.0.2.1 or 2001:db8::1"
        raise PrefixError(f"{text!r} is not an IP address; {hint}") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise PrefixError(f"{text!r} carries a scope; leave '%{address.scope_id}' off")
    return address


def parse_prefix(text: str) -> Prefix:
    """A CIDR without host bits, as RFC 4632 section 3.1 wants it. A bare address is refused: /32 must be meant."""
    _check_notation(text)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    raise PrefixError(f"{text!r} has host bits set; did you mean {parse_masked(text)}?")


def parse_masked(text: str) -> Prefix:
    """As `parse_prefix`, for those who take host bits and drop them: 192.0.2.1/24 is 192.0.2.0/24."""
    _check_notation(text)
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise PrefixError(f"{text!r} is not a CIDR; write it like 192.0.2.0/24 or 2001:db8::/64") from None


def _check_notation(text: str) -> None:
    network, slash, length = text.partition("/")
    if not slash:
        raise PrefixError(f"{text!r} has no length; write it like 192.0.2.0/24 or 2001:db8::/64")
    # the standard library also takes netmasks, leading zeros and scopes, which other speakers do not
    if "%" in network or not re.fullmatch(r"0|[1-9][0-9]{0,2}", length):
        raise PrefixError(f"{text!r} is not a CIDR; write it like 192.0.2.0/24 or 2001:db8::/64")


def family_of(value: Address | Prefix) -> str:
    """`ipv4` or `ipv6`."""
    return "ipv4" if value.version == 4 else "ipv6"


def host_prefix(address: Address) -> Prefix:
    """The /32 or /128 of one address."""
    return ipaddress.ip_network(address)


def link_local(address: Address) -> bool:
    """Whether it is an IPv6 address that means something on one link only (RFC 4291 section 2.5.6)."""
    return isinstance(address, IPv6Address) and address.is_link_local


def contains(outer: Prefix, inner: Prefix) -> bool:
    """Whether every address of `inner` lies in `outer`; false across families."""
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)


def sort_key(prefix: Prefix) -> tuple[int, int, int]:
    """Orders prefixes by family, then the most specific first, then by address."""
    return prefix.version, -prefix.prefixlen, int(prefix.network_address)
