"""Translates announcements to ExaBGP's API commands, and what ExaBGP and the bridge say back. Pure.

A command carries at most `BATCH` prefixes that share one path and go to the same peers: ExaBGP accepts 3,000
routes a second that way and 1,400 one by one. Every command names its peers by address, as ExaBGP knows them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bgpd.model.bgp import ASN, EndOfRibKey, Family, Path, RouteKey, Session
from bgpd.model.prefix import Address, Prefix, parse_address, parse_prefix

_EXTENDED = "ipv4 unicast ipv6"  # RFC 8950, as ExaBGP writes it
BATCH = 48  # ExaBGP takes 50 steps of a command at a turn, one a prefix, and may sleep between two turns

# ExaBGP prints these by name and takes either form (IANA, BGP Well-known Communities)
WELL_KNOWN_COMMUNITIES = {
    "graceful-shutdown": "65535:0",
    "accept-own": "65535:1",
    "blackhole": "65535:666",
    "no-export": "65535:65281",
    "no-advertise": "65535:65282",
    "no-export-subconfed": "65535:65283",
    "no-peer": "65535:65284",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One line for ExaBGP and the keys whose fate its acknowledgement decides."""

    text: str
    keys: tuple[RouteKey | EndOfRibKey, ...]


def announce(paths: Mapping[RouteKey, Path], addresses: Mapping[str, Address]) -> Iterator[Command]:
    """Commands that announce `paths`, in the order of the mapping; `addresses` are the peers' by name.

    Peers that get a prefix with the same path are named in one command: they learn of it together.
    """
    together: dict[tuple[Prefix, Path], list[RouteKey]] = defaultdict(list)
    for key, path in paths.items():
        together[key.prefix, path].append(key)
    groups: dict[tuple[tuple[str, ...], int, Path], list[list[RouteKey]]] = defaultdict(list)
    for (prefix, path), keys in together.items():
        groups[_peers(keys), prefix.version, path].append(keys)
    for (peers, _, path), members in groups.items():
        yield from _in_batches(f"{_to(peers, addresses)} announce attributes {_attributes(path)} nlri ", members)


def withdraw(keys: Iterable[RouteKey], addresses: Mapping[str, Address]) -> Iterator[Command]:
    """Commands that withdraw `keys`. The next hop is a formality that ExaBGP's parser insists on."""
    together: dict[Prefix, list[RouteKey]] = defaultdict(list)
    for key in keys:
        together[key.prefix].append(key)
    groups: dict[tuple[tuple[str, ...], int], list[list[RouteKey]]] = defaultdict(list)
    for prefix, some in together.items():
        groups[_peers(some), prefix.version].append(some)
    for (peers, version), members in groups.items():
        unspecified = "0.0.0.0" if version == 4 else "::"  # noqa: S104
        yield from _in_batches(f"{_to(peers, addresses)} withdraw attributes next-hop {unspecified} nlri ", members)


def end_of_rib(key: EndOfRibKey, address: Address) -> Command:
    """ExaBGP sends it after every update it still has to send to that peer."""
    return Command(f"neighbor {address} announce eor {key.family.value.replace('-', ' ')}", (key,))


def adj_rib_out(lines: Iterable[str]) -> Iterator[tuple[Address, Prefix, Path]]:
    """`show adj-rib out json` in the v2 format: a route a line, with its peer's address."""
    paths: dict[str, Path] = {}  # most routes share few paths: parse each once
    for line in lines:
        entry = json.loads(line)
        route = entry["route"]
        nlri, attributes = route["nlri"], route["attributes"]
        text = f"{nlri['nexthop']} {json.dumps(attributes)}"
        if text not in paths:
            paths[text] = _path(nlri["nexthop"], attributes)
        yield parse_address(entry["peer"]["address"]), parse_prefix(nlri["prefix"]), paths[text]


def session(memory: Mapping[str, Any], now: float) -> tuple[Address, Session]:
    """A peer as the bridge remembers it; `now` in monotonic seconds turns its age into a time."""
    negotiated = memory.get("negotiated", {})
    return parse_address(memory["peer"]), Session(
        up=memory["state"] == "up",
        since=now - memory["age_s"],
        reason=memory["reason"],
        ups=memory["ups"],
        end_of_rib=_families(memory["eor"]),
        hold_time_s=negotiated.get("hold_time"),
        families=tuple(sorted(_families(negotiated.get("families", ())))),
        # a bridge that lost its memory does not know; then what is configured is taken to be negotiated too
        extended_next_hop=_EXTENDED in negotiated.get("nexthop", (_EXTENDED,)),
    )


def community_order(text: str) -> tuple[int, ...]:
    """Sorts standard and large communities by value."""
    return tuple(int(part) for part in text.split(":"))


def _peers(keys: Iterable[RouteKey]) -> tuple[str, ...]:
    return tuple(sorted(key.peer for key in keys))


def _to(peers: Iterable[str], addresses: Mapping[str, Address]) -> str:
    """The beginning of a command that is for these peers only."""
    return " , ".join(f"neighbor {addresses[peer]}" for peer in peers)


def _in_batches(head: str, members: Sequence[Sequence[RouteKey]]) -> Iterator[Command]:
    """`members` are the keys of one prefix each."""
    for start in range(0, len(members), BATCH):
        some = members[start : start + BATCH]
        prefixes = " ".join(str(keys[0].prefix) for keys in some)
        yield Command(head + prefixes, tuple(key for keys in some for key in keys))


def _attributes(path: Path) -> str:
    words = [f"next-hop {path.next_hop}"]
    if path.as_path is not None:
        words.append(f"as-path [ {' '.join(map(str, path.as_path))} ]")
    if path.local_preference is not None:
        words.append(f"local-preference {path.local_preference}")
    if path.med is not None:
        words.append(f"med {path.med}")
    if path.communities:
        words.append(f"community [ {' '.join(path.communities)} ]")
    if path.large_communities:
        words.append(f"large-community [ {' '.join(path.large_communities)} ]")
    return " ".join(words)


def _path(next_hop: str, attributes: Mapping[str, Any]) -> Path:
    segments = attributes.get("as-path")
    as_path = None
    if segments is not None:
        as_path = tuple(ASN(asn) for index in sorted(segments, key=int) for asn in segments[index]["value"])
    communities = (WELL_KNOWN_COMMUNITIES.get(text, text) for text in attributes.get("community", ()))
    return Path(
        next_hop=parse_address(next_hop),
        as_path=as_path,
        local_preference=attributes.get("local-preference"),
        med=attributes.get("med"),
        communities=tuple(sorted(communities, key=community_order)),
        large_communities=tuple(sorted(attributes.get("large-community", ()), key=community_order)),
    )


def _families(names: Iterable[str]) -> frozenset[Family]:
    known = {family.value.replace("-", " "): family for family in Family}
    return frozenset(known[name] for name in names if name in known)
