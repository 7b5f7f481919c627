"""FRR's JSON turned into the lab's words, as bgpd 8.4 prints it.

Pure: decoded JSON in, values out. It decides what each field means; it does not ask FRR (`frr`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tests.fabric.peer import IPV4, IPV6, Capabilities, PeerSession, ReceivedRoute

Json = dict[str, Any]

_FAMILY = {"ipv4Unicast": IPV4, "ipv6Unicast": IPV6}
_OURS = ("(unspec)", str(IPv4Address(0)), str(IPv6Address(0)))  # the "peer" of a route of our own
_WELL_KNOWN = {  # bgpd/bgp_community.c; RFC 1997, 7611, 7999, 8326, 9494
    "internet": "0:0",
    "gracefulShutdown": "65535:0",
    "acceptOwn": "65535:1",
    "llgrStale": "65535:6",
    "noLlgr": "65535:7",
    "blackhole": "65535:666",
    "noExport": "65535:65281",
    "noAdvertise": "65535:65282",
    "localAs": "65535:65283",
    "noPeer": "65535:65284",
}


def table(said: Json) -> Iterator[ReceivedRoute]:
    """The received paths in `show bgp ... json detail`: a list for each prefix, a header first."""
    for prefix, entries in said.get("routes", {}).items():
        yield from _received(prefix, entries)


def network(said: Json) -> Iterator[ReceivedRoute]:
    """The received paths in `show bgp ... PREFIX json`; none when the prefix is not there."""
    yield from _received(said.get("prefix", ""), said.get("paths", []))


def accepted(neighbor: Json) -> int:
    """The routes accepted from a neighbor, all families together."""
    return sum(
        int(it.get("acceptedPrefixCounter", 0)) for it in neighbor.get("addressFamilyInfo", {}).values()
    )


def session(address: str, said: Json) -> PeerSession:
    """One neighbor of `show bgp neighbors json`."""
    state = str(said.get("bgpState", "Idle")).lower()
    established = state == "established"
    reason = [str(said[key]) for key in ("lastResetDueTo", "lastNotificationReason") if key in said]
    code = said.get("lastErrorCodeSubcode")
    return PeerSession(
        address=address,
        state=state,
        uptime_s=said.get("bgpTimerUpMsec", 0) / 1000 if established else None,
        hold_time_s=said["bgpTimerHoldTimeMsecs"] / 1000 if established else None,
        keepalive_s=said["bgpTimerKeepAliveIntervalMsecs"] / 1000 if established else None,
        remote_id=said.get("remoteRouterId") if established else None,
        capabilities=_capabilities(said.get("neighborCapabilities", {})),
        last_error=": ".join(reason),
        notification=(int(code[:2], 16), int(code[2:], 16)) if code else None,
    )


def _received(prefix: str, entries: list[Json]) -> Iterator[ReceivedRoute]:
    for path in entries:
        peer = path.get("peer", {}).get("peerId", _OURS[0])
        if peer in _OURS:
            continue
        segments = path.get("aspath", {}).get("segments", [])
        communities = path.get("community", {}).get("list", [])
        yield ReceivedRoute(
            prefix=prefix,
            peer=peer,
            next_hops=tuple(hop["ip"] for hop in path.get("nexthops", [])),
            as_path=tuple(int(asn) for segment in segments for asn in segment["list"]),
            origin=str(path.get("origin", "incomplete")).lower(),
            local_pref=path.get("locPrf"),
            med=path.get("metric"),
            communities=tuple(_WELL_KNOWN.get(it, it) for it in communities),
            large_communities=tuple(path.get("largeCommunity", {}).get("list", [])),
            best=bool(path.get("bestpath", {}).get("overall", False)),
            usable=bool(path.get("valid", False)),
            stale=bool(path.get("stale", False)),
        )


def _capabilities(said: Json) -> Capabilities:
    """`advertised` is ours alone; what the peer offered has `eceived` in its value or key."""

    def offered(name: str) -> bool:
        return "eceived" in str(said.get(name, ""))

    restart = offered("gracefulRestart")
    return Capabilities(
        families=_families(
            key for key, value in said.get("multiprotocolExtensions", {}).items() if _has(value)
        ),
        four_octet_asn=offered("4byteAs"),
        route_refresh=offered("routeRefresh"),
        enhanced_refresh=offered("enhancedRouteRefresh"),
        extended_message=offered("extendedMessage"),
        extended_next_hop=offered("extendedNexthop"),
        add_path=any(_has(value) for value in said.get("addPath", {}).values()),
        graceful_restart=restart,
        restart_time_s=int(said.get("gracefulRestartRemoteTimerMsecs", 0)) // 1000 if restart else None,
        restart_families=_families(said.get("addressFamiliesByPeer", {})),
        long_lived=offered("longLivedGracefulRestart"),
    )


def _has(value: object) -> bool:
    return "eceived" in str(value)


def _families(names: Iterable[str]) -> frozenset[str]:
    return frozenset(_FAMILY.get(name, name) for name in names)
