"""What an operator sees of sessions and routes: rows for `bgpd peers`, `bgpd routes` and `bgpd status`. Pure.

The rows are the stable JSON interface; the command line only lays them out. While the speaker does not answer
nobody knows what is announced (it may have withdrawn everything and stopped): `announced` is None then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bgpd.bgp.plan import BgpPlan
from bgpd.bgp.reconcile import announcement_order, is_up
from bgpd.model.bfd import BfdState, Down, State
from bgpd.model.bgp import (
    Announcement,
    AnnouncementKey,
    EndOfRibKey,
    Family,
    Neighbor,
    Path,
    RouteKey,
    SpeakerState,
)
from bgpd.model.outcome import Blocked, Retry
from bgpd.model.prefix import Address

NO_BFD = BfdState()
BACK_S = 10.0  # a session that only flapped is back by then

Trouble = Mapping[Any, Retry | Blocked]


def peers(
    plan: BgpPlan,
    state: SpeakerState,
    have: Mapping[AnnouncementKey, Announcement],
    trouble: Trouble,
    now: float,
    bfd: BfdState = NO_BFD,
) -> list[dict[str, Any]]:
    """One row per peer, in the order of the configuration. `now` is monotonic seconds."""
    rows = []
    for place in plan.places:
        row: dict[str, Any] = {"peer": place.name, "address": place.shown, "asn": place.peer.peer_asn}
        neighbor = plan.neighbors.get(place.name)
        if neighbor is None:
            lost = plan.unplaced.get(place.name)
            idle = {"state": "idle", "why": plan.idle_peers.get(place.name, "")}
            rows.append(row | (idle if lost is None else {"state": "down", "why": lost}))
            continue
        row |= _session(neighbor, state, now) | _counts(place.name, plan, have if state.connected else None)
        row["bfd"] = _bfd(neighbor, bfd) if neighbor.bfd else None
        change = trouble.get(place.name)
        pending = f"change pending: {change.reason}" if change is not None else ""
        row["why"] = "; ".join(filter(None, (_bfd_why(neighbor, bfd), row["why"], place.remark, pending)))
        rows.append(row)
    return rows


def routes(
    plan: BgpPlan,
    state: SpeakerState,
    have: Mapping[AnnouncementKey, Announcement],
    trouble: Trouble,
    leaving: str,
    peer: str | None = None,
    bfd: BfdState = NO_BFD,
) -> list[dict[str, Any]]:
    """One row per prefix and peer: wanted, refused, or announced though not wanted (any more).

    `leaving` is what becomes of those that are not wanted.
    """
    have = have if state.connected else {}
    keys = {key for key in have if isinstance(key, RouteKey)}
    keys |= plan.routes.keys() | plan.refused.keys() | plan.withheld.keys() | plan.unsuited.keys()
    rows = []
    for key in sorted(keys, key=announcement_order):
        if peer is not None and key.peer != peer:
            continue
        announced, wanted = have.get(key), plan.routes.get(key)
        shown = announced if isinstance(announced, Path) else wanted
        if wanted is not None:
            why = _why_not(key, plan, state, announced, trouble)
            if why and not is_up(state, plan.neighbors[key.peer].peer_address):
                why = "; ".join(filter(None, (_bfd_why(plan.neighbors[key.peer], bfd), why)))
            why = why or plan.remarks.get(key, "")
        else:
            why = _why_unwanted(key, plan, leaving if announced else "")
        row: dict[str, Any] = {
            "prefix": str(key.prefix),
            "peer": key.peer,
            "wanted": wanted is not None,
            "announced": isinstance(announced, Path) if state.connected else None,
            "why": why,
        }
        rows.append(row | (_path(shown) if shown is not None else {}))
    return rows


def transitions(
    names: Mapping[Address, str], before: SpeakerState, after: SpeakerState, now: float
) -> list[dict[str, Any]]:
    """What happened to sessions between two views of the speaker: a log line's fields for each. `names` of peers.

    A daemon that has just started finds sessions that are up: `for_s` says that this is no news.
    """
    happened = []
    for address, session in after.sessions.items():
        earlier = before.sessions.get(address)
        if earlier is not None and (earlier.up, earlier.ups) == (session.up, session.ups):
            continue
        if earlier is None and not session.up:
            continue
        row: dict[str, Any] = {"peer": names.get(address, ""), "address": str(address)}
        row |= {"state": "up" if session.up else "down", "reason": session.reason}
        if not before.connected and earlier is None:
            row["for_s"] = round(now - session.since, 1)
        if earlier is not None and not session.up:
            row["after_s"] = round(session.since - earlier.since, 1)
        happened.append({key: value for key, value in row.items() if value != ""})
    return happened


def _session(neighbor: Neighbor, state: SpeakerState, now: float) -> dict[str, Any]:
    session = state.sessions.get(neighbor.peer_address)
    row: dict[str, Any] = {
        "localAddress": str(neighbor.local_address),
        "localASN": neighbor.local_asn,
        "state": "unknown" if not state.connected else "down" if session is None or not session.up else "up",
        "since_s": None if session is None else round(now - session.since, 1),
        "holdTime_s": session.hold_time_s if session else None,
        "families": [family.value for family in session.families] if session else [],
        "flaps": max(0, session.ups - 1) if session else 0,
        "why": "",
    }
    if not state.connected:
        row["why"] = state.reason
    elif session is None:
        row["why"] = f"never established: {_look_at(neighbor)}"
    elif not session.up:
        row["why"] = session.reason
        if session.ups == 0 or now - session.since > BACK_S:
            row["why"] = "; ".join(filter(None, (session.reason, _look_at(neighbor))))
    return row


def _bfd(neighbor: Neighbor, bfd: BfdState) -> dict[str, Any]:
    assert neighbor.bfd is not None
    session = bfd.sessions.get(neighbor.peer_address)
    return {
        "state": "unknown" if not bfd.connected else session.state.value if session else State.DOWN.value,
        "multihop": neighbor.bfd.multihop,
        "interval_ms": session.interval_ms if session else None,
        "timeout_ms": session.timeout_ms if session else None,
    }


def _bfd_why(neighbor: Neighbor, bfd: BfdState) -> str:
    """Why BFD does not watch over this session; empty when it does, or nothing is known of it."""
    if neighbor.bfd is None or not bfd.connected:
        return ""
    session = bfd.sessions.get(neighbor.peer_address)
    if session is not None and session.state is State.UP:
        return ""
    lost = bfd.lost.get(neighbor.peer_address)
    if lost is not None:
        return f"BFD went down: {_fall(neighbor.peer_address, lost)}"
    kind, port = ("multihop", 4784) if neighbor.bfd.multihop else ("single-hop", 3784)
    wanted = f"has {neighbor.peer_address} {kind} BFD for {neighbor.bfd.local_address}"
    return f"BFD is {session.state.value if session else 'down'}: {wanted}, does UDP port {port} pass?"


def _fall(peer: object, down: Down) -> str:
    if down.said:
        return f"{peer} says so, it does not hear us or BFD was shut down there"
    return f"nothing from {peer} for {down.timeout_ms} ms"


def _look_at(neighbor: Neighbor) -> str:
    """The questions about a session that does not come up: one for each option that keeps it down in silence."""
    peer, ours = neighbor.peer_address, neighbor.local_address
    questions = [f"does {peer}:{neighbor.peer_port} answer {ours}"]
    if neighbor.passive:
        questions = [f"we wait for {peer} to dial {ours}:{neighbor.listen_port}: does it"]
    questions += [
        f"is it AS {neighbor.peer_asn} and are we AS {neighbor.local_asn} to it",
        "does it want a password" if neighbor.password is None else "is the password the same there",
    ]
    if neighbor.ttl_security:
        questions.append("has it TTL security too, with no router in between")
    elif not neighbor.internal and neighbor.multihop is None and not neighbor.interface:
        questions.append("is it on our link (else ebgpMultihop)")
    return ", ".join(questions) + "?"


def _counts(name: str, plan: BgpPlan, have: Mapping[AnnouncementKey, Announcement] | None) -> dict[str, Any]:
    mine = [key for key in have or () if key.peer == name]
    return {
        "wanted": sum(key.peer == name for key in plan.routes),
        "announced": None if have is None else sum(isinstance(key, RouteKey) for key in mine),
        "refused": sum(key.peer == name for key in plan.refused),
        "endOfRIB": sorted(key.family.value for key in mine if isinstance(key, EndOfRibKey)),
    }


def _path(path: Path) -> dict[str, Any]:
    return {
        "nextHop": str(path.next_hop),
        "asPath": list(path.as_path or ()),
        "localPreference": path.local_preference,
        "med": path.med,
        "communities": list(path.communities),
        "largeCommunities": list(path.large_communities),
    }


def _why_unwanted(key: RouteKey, plan: BgpPlan, leaving: str) -> str:
    """Why this prefix is not to be announced and, when it is, what becomes of it."""
    reason = plan.refused.get(key) or plan.withheld.get(key) or plan.unsuited.get(key, "")
    return "; ".join(filter(None, (reason, leaving)))


def _why_not(
    key: RouteKey, plan: BgpPlan, state: SpeakerState, announced: Announcement | None, trouble: Trouble
) -> str:
    """Why this prefix, which is wanted, is not announced as it should be; empty when it is."""
    neighbor = plan.neighbors[key.peer]
    if not state.connected:
        return state.reason
    if not is_up(state, neighbor.peer_address):
        session = state.sessions.get(neighbor.peer_address)
        return f"session down: {session.reason}" if session and session.reason else "session not established"
    if Family.of(key.prefix) not in state.sessions[neighbor.peer_address].families:
        return f"{key.peer} did not negotiate {Family.of(key.prefix).value}; is the family configured there?"
    if not state.sessions[neighbor.peer_address].takes(key.prefix, plan.routes[key].next_hop):
        what = "`capability extended-nexthop` (FRR), `extended next hop on` (BIRD)"
        return f"{key.peer} takes no IPv6 next hops for IPv4 prefixes (RFC 8950): {what} there, or nextHop.ipv4 here"
    if key in trouble:
        return trouble[key].reason
    if announced != plan.routes[key]:
        return "update pending"
    return ""
