"""The kinds of single value that a configuration holds: what is accepted, and what a refusal says. Pure.

Every validator takes the plain value out of the file and words its own refusal: what was found, then what
would be right. None is refused by all of them, because a key without a value is more often a slip than a wish
for the default. Nothing is converted that could be taken for something else: 1 is no boolean, "90" no number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, StrEnum
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, PlainValidator

from bgpd.config.scalar import shown
from bgpd.model.bgp import ASN
from bgpd.model.prefix import Address, parse_address, parse_prefix

T = TypeVar("T")

# IANA "BGP Well-known Communities"; the names are those of RFC 1997, 3765, 7611, 7999 and 8326
WELL_KNOWN_COMMUNITIES = frozenset(
    {
        "accept-own",
        "blackhole",
        "graceful-shutdown",
        "no-advertise",
        "no-export",
        "no-export-subconfed",
        "no-peer",
    }
)
_HIGHEST_ASN = 2**32 - 1
_LONGEST_SOCKET_DIRECTORY = 80  # sun_path holds 107 bytes (unix(7)), and our longest file name below it 24


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to accept connections."""

    address: Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


class SnatSource(StrEnum):
    """Which address of the node masqueraded traffic gets, when it is not given itself."""

    UPLINK = "uplink"
    INTERNAL_IP = "InternalIP"


def whole(low: int, high: int, *, or_zero: bool = False) -> PlainValidator:
    """A whole number within both bounds; `or_zero` also lets 0 through."""

    def check(value: object) -> int:
        if type(value) is int and (low <= value <= high or (or_zero and value == 0)):
            return value
        zero = "0 or " if or_zero else ""
        raise ValueError(f"found {shown(value)}; give {zero}a whole number from {low} to {high}")

    return PlainValidator(check)


PORT = whole(1, 65535)
U32 = whole(0, 2**32 - 1)


def one_of(kind: type[Enum], later: Collection[str] = ()) -> PlainValidator:
    """A member of `kind` by its value. `later` are names that a coming version will know."""
    names = [str(member.value) for member in kind]

    def check(value: object) -> Enum:
        if isinstance(value, str) and value in names:
            return kind(value)
        if isinstance(value, str) and value in later:
            raise ValueError(f"{value} is not available in this version; give {_either(names)}")
        raise ValueError(f"found {shown(value)}; give {_either(names)}{did_you_mean(value, names)}")

    return PlainValidator(check)


def did_you_mean(value: object, names: Collection[str]) -> str:
    """A tail for a refusal: the closest known name, or nothing when none is close."""
    by_lower = {name.lower(): name for name in names}
    text = value.lower() if isinstance(value, str) and len(value) < 100 else ""
    close = get_close_matches(text, by_lower, n=1, cutoff=0.7)  # 0.6 takes any two timers for each other
    return f"; did you mean {shown(by_lower[close[0]])}?" if close else ""


def _either(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _text(parse: Callable[[str], T], wanted: str) -> PlainValidator:
    """A text that `parse` understands; `parse` says itself what is wrong with another text."""

    def check(value: object) -> T:
        if not isinstance(value, str):
            raise ValueError(f"found {shown(value)}; give {wanted}")
        return parse(value)

    return PlainValidator(check)


def _matching(pattern: str, longest: int, wanted: str) -> PlainValidator:
    def parse(text: str) -> str:
        if len(text) > longest or not re.fullmatch(pattern, text):
            raise ValueError(f"found {shown(text)}; give {wanted}")
        return text

    return _text(parse, wanted)


def _address_of_version(version: int) -> Callable[[str], Address]:
    def parse(text: str) -> Address:
        address = _host(text)
        if address.version != version:
            raise ValueError(f"found {text}; give an IPv{version} address")
        return address

    return parse


def _host(text: str) -> Address:
    """An address that one machine can have and another can reach."""
    address = parse_address(text)
    if address.is_multicast or address.is_unspecified:
        raise ValueError(f"found {address}; give the address of one machine")
    if isinstance(address, IPv6Address) and address.is_link_local:
        remedy = "give a global or unique local address, or the peer's interface instead"
        raise ValueError(f"found {address}, which is link-local; {remedy}")
    return address


def _mac_address(text: str) -> str:
    """IEEE 802 section 8.2: of one station, not of a group; as the kernel writes it."""
    wanted = "give the MAC address of one interface, like '02:00:00:00:00:0a'"
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError(f"found {shown(text)}; {wanted}")
    octets = bytes.fromhex(text.replace(":", ""))
    if octets[0] & 1 or not any(octets):
        raise ValueError(f"found {text}, which no interface has; {wanted}")
    return octets.hex(":")


def asn_of(value: object) -> ASN:
    """RFC 5396 asplain or asdot. A number with a dot must be quoted: as a number, 1.10 would be 1.1."""
    if isinstance(value, float):
        raise ValueError(f"found the number {value}; put an ASN in asdot notation in quotes")
    number = value if type(value) is int else -1
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
        number = int(value)
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}\.[0-9]{1,5}", value):
        high, low = (int(half) for half in value.split("."))
        number = high * 65536 + low if max(high, low) < 65536 else -1
    if not 1 <= number <= _HIGHEST_ASN:
        raise ValueError(f"found {shown(value)}; give an ASN from 1 to {_HIGHEST_ASN}, or in asdot like '64512.1'")
    return ASN(number)


def _community(text: str) -> str:
    if text in WELL_KNOWN_COMMUNITIES or _are_numbers(text, count=2, highest=2**16 - 1):
        return text
    hint = did_you_mean(text, WELL_KNOWN_COMMUNITIES)
    raise ValueError(f"found {shown(text)}; give one like '64512:100' (both up to 65535) or a well-known name{hint}")


def _large_community(text: str) -> str:
    if _are_numbers(text, count=3, highest=2**32 - 1):
        return text
    raise ValueError(f"found {shown(text)}; give one like '64512:1:2' (each up to 4294967295)")


def _are_numbers(text: str, *, count: int, highest: int) -> bool:
    """Colon-separated and without leading zeros, so that two texts are equal when the communities are."""
    parts = text.split(":")
    return len(parts) == count and all(
        re.fullmatch(r"0|[1-9][0-9]{0,9}", part) and int(part) <= highest for part in parts
    )


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"found {shown(value)}; give true or false")


def _path(text: str) -> Path:
    if not text.startswith("/") or not text.isprintable():
        raise ValueError(f"found {shown(text)}; give an absolute path")
    return Path(text)


def _socket_directory(text: str) -> Path:
    path = _path(text)
    if len(str(path).encode()) > _LONGEST_SOCKET_DIRECTORY:
        raise ValueError(f"it is too long for sockets; give a path of at most {_LONGEST_SOCKET_DIRECTORY} bytes")
    return path


def _listen(value: object) -> Listen | None:
    if value in ("", "off") or value is False:  # YAML 1.1 reads a bare `off` as false
        return None
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535 or (":" in bare and bare == host):
        raise ValueError(f"found {shown(value)}; give '0.0.0.0:9179' or '[::]:9179', or off for none")
    return Listen(parse_address(bare), int(port))


def _endpoint(value: object) -> Listen:
    found = _listen(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"found {shown(value)}; give an address and a port, like '127.0.0.1:10250'")
    return found


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable() or " " in text:
        raise ValueError(f"found {shown(text)}; give a URL like 'http://127.0.0.1:10248/healthz'")
    return text


def _snat_address(version: int) -> PlainValidator:
    """An address of the node, or where to find one."""
    names = tuple(source.value for source in SnatSource)
    parse = _address_of_version(version)

    def check(value: object) -> Address | SnatSource:
        if isinstance(value, str) and value in names:
            return SnatSource(value)
        if isinstance(value, str) and re.search(r"[0-9]", value):
            return parse(value)
        hint = did_you_mean(value, names)
        raise ValueError(f"found {shown(value)}; give {', '.join(names)} or an IPv{version} address{hint}")

    return PlainValidator(check)


def _distinct_names(values: tuple[Any, ...]) -> tuple[Any, ...]:
    _distinct(tuple(value.name for value in values))
    return values


def _distinct(values: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{shown(value.value if isinstance(value, Enum) else str(value))} is listed twice")
        seen.add(value)
    return values


def _not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("the list is empty; name at least one")
    return values


ADDRESS = _text(_host, "an IP address")
IPV4 = _text(_address_of_version(4), "an IPv4 address")
IPV6 = _text(_address_of_version(6), "an IPv6 address")
MAC_ADDRESS = _text(_mac_address, "a MAC address in quotes, like '02:00:00:00:00:0a'")
PREFIX = _text(parse_prefix, "a CIDR like 192.0.2.0/24")
ASN_NUMBER = PlainValidator(asn_of)
COMMUNITY = _text(_community, "a community in quotes, like '64512:100'")
LARGE_COMMUNITY = _text(_large_community, "a large community in quotes, like '64512:1:2'")
BOOLEAN = PlainValidator(_boolean)
PATH = _text(_path, "an absolute path")
SOCKET_DIRECTORY = _text(_socket_directory, "an absolute path")
LISTEN = PlainValidator(_listen)
PEER_NAME = _matching(  # RFC 1123 label
    r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", 63, "up to 63 lower-case letters, digits and inner dashes"
)
INTERFACE = _matching(  # what the kernel takes, less what ExaBGP's configuration would need quotes for
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*", 15, "an interface's name as in `ip link`, up to 15 characters"
)
NODE_NAME = _matching(  # RFC 1123 subdomain, as Kubernetes names nodes
    r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", 253, "a node's name: lower-case letters, digits, inner dashes and dots"
)
SECRET_NAME = _matching(  # RFC 1123 subdomain; it becomes part of a path
    r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", 253, "a Secret's name: lower-case letters, digits, inner dashes and dots"
)
TEXT = _text(str, "a text")
CONFIG_MAP = _matching(  # a namespace is an RFC 1123 label, a ConfigMap's name a subdomain
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?",
    63 + 1 + 253,
    "a namespace and a name, like 'kube-system/ip-masq-agent'",
)
SNAT_IPV4 = _snat_address(4)
SNAT_IPV6 = _snat_address(6)
ENDPOINT = PlainValidator(_endpoint)
HTTP_URL = _text(_http_url, "a URL like 'http://127.0.0.1:10248/healthz'")
DISTINCT = AfterValidator(_distinct)
DISTINCT_NAMES = AfterValidator(_distinct_names)
NOT_EMPTY = AfterValidator(_not_empty)
