"""The metrics of BGP sessions, of BFD beside them, and of routes, by peer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily
from prometheus_client.core import Metric as Family

from bgpd.observe.samples.family import gauge


@dataclass(frozen=True, slots=True)
class Peer:
    """One session and its routes. Families by their configuration names; `last_change_at` is Unix seconds.

    `transitions` counts ups and downs. `advertised` and `end_of_rib` are read back from the speaker: nothing while
    it does not answer. `bfd_up` None: it has no BFD, or nothing is known of it.
    """

    name: str
    address: str
    up: bool
    transitions: int = 0
    last_change_at: float | None = None
    wanted: Mapping[str, int] = field(default_factory=dict)
    advertised: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0
    end_of_rib: Mapping[str, bool] = field(default_factory=dict)
    bfd_up: bool | None = None


def sessions(peers: Sequence[Peer]) -> Iterator[Family]:
    labels = ["peer", "address"]
    up = gauge("bgpd_bgp_session_up", "Observed: 1 when the session is Established, else 0.", labels)
    transitions = CounterMetricFamily(
        "bgpd_bgp_session_transitions",
        "Observed: times the session came up or went down since the speaker started.",
        labels=labels,
    )
    changed = gauge(
        "bgpd_bgp_session_last_change_timestamp_seconds",
        "Observed: when the session last came up or went down, in seconds since the epoch.",
        labels,
    )
    bfd = gauge(
        "bgpd_bfd_session_up", "Observed: 1 when BFD with the peer is up, else 0; absent where it has none.", labels
    )
    for peer in peers:
        values = (peer.name, peer.address)
        up.add_metric(values, peer.up)
        transitions.add_metric(values, peer.transitions)
        if peer.last_change_at is not None:
            changed.add_metric(values, peer.last_change_at)
        if peer.bfd_up is not None:
            bfd.add_metric(values, peer.bfd_up)
    yield from (up, transitions, changed, bfd)


def routes(peers: Sequence[Peer]) -> Iterator[Family]:
    labels = ["peer", "family"]
    wanted = gauge("bgpd_bgp_routes_wanted", "Desired: routes to announce to the peer.", labels)
    advertised = gauge(
        "bgpd_bgp_routes_advertised", "Observed: routes announced to the peer (its adj-rib-out, read back).", labels
    )
    refused = gauge(
        "bgpd_bgp_routes_refused",
        "Desired: routes asked for and not announced to the peer; `bgpd routes` says why.",
        ["peer"],
    )
    end_of_rib = gauge(
        "bgpd_bgp_end_of_rib_sent", "Observed: 1 when this session has had its End-of-RIB, else 0.", labels
    )
    for peer in peers:
        for family, count in peer.wanted.items():
            wanted.add_metric((peer.name, family), count)
        for family, count in peer.advertised.items():
            advertised.add_metric((peer.name, family), count)
        for family, sent in peer.end_of_rib.items():
            end_of_rib.add_metric((peer.name, family), sent)
        refused.add_metric((peer.name,), peer.refused)
    yield from (wanted, advertised, refused, end_of_rib)
