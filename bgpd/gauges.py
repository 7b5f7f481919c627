"""Turns the daemon's parts into what /metrics and /readyz show. Reads, never changes.

What a metric is called and means stands in `observe.metrics` and `observe.samples`, when a node is ready in
`observe.health`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bgpd.bgp.plan import Drain
from bgpd.bgp.reconcile import is_up
from bgpd.console import Console
from bgpd.kube.feed import SourceState
from bgpd.model.bfd import State
from bgpd.model.bgp import EndOfRibKey, Family, Neighbor, RouteKey
from bgpd.model.outcome import Blocked, Retry
from bgpd.observe.health import Condition, Readiness, readiness
from bgpd.observe.metrics import Objects, Snapshot
from bgpd.observe.samples.bgp import Peer
from bgpd.observe.samples.sources import Source
from bgpd.runtime.reconcile import Reconciler


def snapshot(console: Console) -> Snapshot:
    """Everything that is, at this moment."""
    routing, source = console.routing, console.source.status.newest.value
    speaker = routing.speaker.state.newest.value
    return Snapshot(
        peers=tuple(_peer(console, neighbor) for neighbor in routing.plan.neighbors.values()),
        sources=(
            Source(
                console.source_kind,
                console.synced,
                source.reconnects,
                console.source_error_at,
                following=source.state is SourceState.SYNCED,
                faults=console.source_faults,
            ),
        ),
        objects={loop.name: _objects(loop.have, loop.trouble) for loop in loops(console)},
        speaker_connected=speaker.connected,
        bfd_connected=console.bfd.state.newest.value.connected if console.bfd.wanted else None,
        draining=console.drain is not Drain.NO,
        healthy=not console.unhealthy,
        config_ok=not console.config_state.faults,
        config_loaded_at=console.config_state.loaded_at,
        masquerade=console.masquerade.figures() if console.masquerade else None,
        policy=console.policy.figures() if console.policy else None,
        node_routes=console.node_routes.figures() if console.node_routes else None,
        host_routes=console.parts.host_routing.figures() if console.parts.host_routing else None,
        virtual_servers=console.virtual_servers.figures() if console.virtual_servers else None,
        services=console.services.figures() if console.services else None,
        cni=console.parts.chaining.figures() if console.parts.chaining else None,
    )


def ready(console: Console) -> Readiness:
    """Whether this node's routes can be relied on."""
    routing = console.routing
    speaker = routing.speaker.state.newest.value
    return readiness(
        Condition(
            unsynced=() if console.synced else (console.source_kind,),
            unsettled=[loop.name for loop in loops(console) if not loop.ever_settled],
            speaker="" if speaker.connected else speaker.reason,
            config=console.config_state.faults[0] if console.config_state.faults else "",
            draining=console.drain is not Drain.NO,
            sessions={
                row["peer"]: "" if row["state"] == "up" else row["why"] or row["state"]
                for row in console.peer_rows()
                if row["state"] != "idle"
            },
        )
    )


def loops(console: Console) -> Sequence[Reconciler[Any, Any]]:
    return [console.routing.sessions, console.routing.routes, *console.parts.loops]


def _peer(console: Console, neighbor: Neighbor) -> Peer:
    routing = console.routing
    name, plan = neighbor.name, routing.plan
    state = routing.speaker.state.newest.value
    # nobody knows what a speaker that does not answer announces: then neither is shown, as in `view`
    have = routing.routes.have if state.connected else None
    session = state.sessions.get(neighbor.peer_address)
    up = is_up(state, neighbor.peer_address)
    families = [family.value for family in neighbor.families]
    wanted = Counter(Family.of(key.prefix).value for key in plan.routes if key.peer == name)
    advertised = Counter(
        Family.of(key.prefix).value for key in have or () if isinstance(key, RouteKey) and key.peer == name
    )
    bfd = console.bfd.state.newest.value
    watched = bfd.sessions.get(neighbor.peer_address) if neighbor.bfd else None
    marked = session.families if session and up else neighbor.families
    return Peer(
        name=name,
        address=str(neighbor.peer_address),
        up=up,
        transitions=2 * session.ups - session.up if session and session.ups else 0,
        last_change_at=session.since + console.wall_clock_offset_s if session else None,
        wanted={family: wanted[family] for family in families},
        advertised={} if have is None else {family: advertised[family] for family in families},
        refused=sum(key.peer == name for key in plan.refused),
        end_of_rib={} if have is None else {it.value: EndOfRibKey(name, it) in have for it in marked},
        bfd_up=(watched is not None and watched.state is State.UP) if neighbor.bfd and bfd.connected else None,
    )


def _objects(have: Mapping[Any, Any], trouble: Mapping[Any, Retry | Blocked]) -> Objects:
    blocked = sum(isinstance(outcome, Blocked) for outcome in trouble.values())
    return Objects(done=len(have.keys() - trouble.keys()), retry=len(trouble) - blocked, blocked=blocked)
