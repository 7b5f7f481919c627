"""GoBGP's JSON turned into the lab's words, as `gobgp -j` 3.10 prints it.

Pure: decoded JSON (and a log) in, values out. It decides what each field means, and reads the few protobuf
messages that the capabilities are given in; it does not ask GoBGP (`gobgp`).
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from typing import Any

from tests.fabric.peer import IPV4, IPV6, Capabilities, PeerSession, ReceivedRoute

Json = dict[str, Any]

_STATES = ("unknown", "idle", "connect", "active", "opensent", "openconfirm", "established")
_FAMILY = {(1, 1): IPV4, (2, 1): IPV6}
_ORIGINS = ("igp", "egp", "incomplete")
_EXTENDED_MESSAGE = 6  # RFC 8654
_DOWN = re.compile(r'msg="Peer Down" Key=(\S+) Reason=("[^"]*"|\S+)')
_NOTIFICATION = re.compile(r"code (\d+)\([^)]*\) subcode (\d+)\(")


def table(said: dict[str, list[Json]]) -> Iterator[ReceivedRoute]:
    """The received paths in `gobgp -j global rib`."""
    for prefix, entries in said.items():
        for path in entries:
            peer = path.get("neighbor-ip", "<nil>")
            if peer != "<nil>":
                yield _received(prefix, peer, path)


def accepted(neighbor: Json) -> int:
    """The routes accepted from a neighbor, all families together."""
    return sum(int(it.get("state", {}).get("accepted", 0)) for it in neighbor.get("afi_safis", []))


def session(address: str, said: Json, log: str) -> PeerSession:
    """One neighbor of `gobgp -j neighbor`; why it was lost last is in the daemon's log."""
    state = _STATES[said["state"].get("session_state", 0)]
    established = state == "established"
    timers = said.get("timers", {}).get("state", {})
    losses = [reason.strip('"') for key, reason in _DOWN.findall(log) if key == address]
    last = losses[-1] if losses else ""
    code = _NOTIFICATION.search(last)
    since = timers.get("uptime", {}).get("seconds")
    return PeerSession(
        address=address,
        state=state,
        uptime_s=max(0.0, time.time() - since) if established and since else None,
        hold_time_s=timers.get("negotiated_hold_time") if established else None,
        keepalive_s=timers.get("keepalive_interval") if established else None,
        remote_id=said["state"].get("router_id") if established else None,
        capabilities=_capabilities(said["state"].get("remote_cap", [])) if established else Capabilities(),
        last_error=last,
        notification=(int(code[1]), int(code[2])) if code else None,
    )


def _received(prefix: str, peer: str, path: Json) -> ReceivedRoute:
    """One path; attributes are listed by their type number (RFC 4271 section 5, 1997, 4760, 8092)."""
    said = {attribute["type"]: attribute for attribute in path.get("attrs", [])}
    hop = said.get(14, said.get(3, {})).get("nexthop", "")
    segments = said.get(2, {}).get("as_paths") or []
    return ReceivedRoute(
        prefix=prefix,
        peer=peer,
        next_hops=tuple(hop.split(",")) if hop else (),
        as_path=tuple(asn for segment in segments for asn in segment.get("asns", [])),
        origin=_ORIGINS[said.get(1, {}).get("value", 2)],
        local_pref=said.get(5, {}).get("value"),
        med=said.get(4, {}).get("metric"),
        communities=tuple(f"{it >> 16}:{it & 0xFFFF}" for it in said.get(8, {}).get("communities", [])),
        large_communities=tuple(
            f"{it['ASN']}:{it['LocalData1']}:{it['LocalData2']}" for it in said.get(32, {}).get("value", [])
        ),
        best=bool(path.get("best", False)),
        usable=not path.get("is-nexthop-invalid", False),
        stale=bool(path.get("stale", False)),
    )


def _capabilities(said: list[Json]) -> Capabilities:
    offered: dict[str, list[bytes]] = {}
    for capability in said:
        name = capability["type_url"].rpartition(".")[2].removesuffix("Capability")
        offered.setdefault(name, []).append(base64.b64decode(capability.get("value", "")))
    restart = [field for it in offered.get("GracefulRestart", []) for field in _fields(it)]
    return Capabilities(
        families=frozenset(_family(it) for it in offered.get("MultiProtocol", [])),
        four_octet_asn="FourOctetASN" in offered,
        route_refresh="RouteRefresh" in offered,
        enhanced_refresh="EnhancedRouteRefresh" in offered,
        extended_message=any((1, _EXTENDED_MESSAGE) in _fields(it) for it in offered.get("Unknown", [])),
        extended_next_hop="ExtendedNexthop" in offered,
        add_path="AddPath" in offered,
        graceful_restart="GracefulRestart" in offered,
        restart_time_s=_whole(dict(restart).get(2, 0)) if "GracefulRestart" in offered else None,
        restart_families=frozenset(
            _family(it) for number, it in restart if number == 3 and isinstance(it, bytes)
        ),
        long_lived="LongLivedGracefulRestart" in offered,
    )


def _family(message: bytes) -> str:
    """Field 1 of the message is a Family: field 1 the AFI, field 2 the SAFI."""
    family = dict(_fields(message)).get(1, b"")
    said = dict(_fields(family)) if isinstance(family, bytes) else {}
    key = (_whole(said.get(1, 0)), _whole(said.get(2, 0)))
    return _FAMILY.get(key, f"{key[0]}/{key[1]}")


def _whole(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: numbers (wire type 0) and bytes (wire type 2), no others."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == 2:
            yield key >> 3, message[at : at + value]
            at += value
        else:
            yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
