"""Defines every metric once: its name, labels, meaning, and whether it is what we want or what we see.

Two kinds. What happens (rounds, latencies) is counted as it happens, through `observe_round`. What is
(sessions, routes, sources) is a `Snapshot` that the daemon publishes whole and that a scrape turns into
samples, so a peer that is gone is gone from the next scrape, and a scrape in another thread never sees half a
change. Of these, what takes a while to find out is asked for by the scrape, in its thread. What the values are is
the daemon's business; how they are served is `http`'s.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from bgpd import __version__
from bgpd.observe.log import Round

# 1 ms to 10 s: the goal for event to wire is 25 ms in the middle and 100 ms at worst, so it is finest there.
WIRE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROUND_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)


class Result(StrEnum):
    """How a round ended: all done, some objects failed, or the target out of reach."""

    DONE = "done"
    FAILED = "failed"
    ERROR = "error"

    @classmethod
    def of(cls, round: Round) -> Result:
        if round.error:
            return cls.ERROR
        return cls.FAILED if round.failed else cls.DONE


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


@dataclass(frozen=True, slots=True)
class Source:
    """`last_error_at` is Unix seconds; None: there was no error yet. `faults` counts what it cannot read now."""

    name: str
    synced: bool
    reconnects: int = 0
    last_error_at: float | None = None
    following: bool = False
    faults: int = 0


@dataclass(frozen=True, slots=True)
class Objects:
    """How a reconciler's objects stand."""

    done: int = 0
    retry: int = 0
    blocked: int = 0


@dataclass(frozen=True, slots=True)
class Masquerade:
    """`entries` and `active` by family, `in_force` by subsystem; nothing where the datapath is not ours.

    `findings` counts them in the document in use, `flows` those that the kernel has judged, by verdict. Both are
    called by each scrape, in its thread.
    """

    document_synced: bool
    document_faults: int
    entries: Mapping[str, int]
    active: Mapping[str, bool]
    in_force: Mapping[str, bool]
    findings: Callable[[], int]
    flows: Callable[[], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Policy:
    """`endpoints` by state, `in_force` by subsystem, `capacity` and `entries` by map; `policies` isolate pods here.

    `blocked` counts those of them that do not fit, by the map that is too small.

    `events_lost` counts since the daemon started, `packets` those that the kernel has judged, by verdict. What can be
    called is called by each scrape, in its thread.
    """

    endpoints: Mapping[str, int]
    policies: int
    blocked: Mapping[str, int]
    in_force: Mapping[str, bool]
    events_lost: Callable[[], int]
    capacity: Mapping[str, int]
    entries: Callable[[], Mapping[str, int]]
    packets: Callable[[], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Cni:
    """`attachments` are remembered; `published`: the runtime's chain has the plugin in it.

    Called by each scrape, in its thread.
    """

    attachments: Callable[[], int]
    queued_dels: Callable[[], int]
    published: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class NodeRoutes:
    """`wanted` by family and way (host-gw, vxlan), `held` and `unreachable` are prefixes that get none."""

    wanted: Mapping[tuple[str, str], int]
    held: int
    unreachable: int
    in_force: bool


@dataclass(frozen=True, slots=True)
class RequestDone:
    """A request of the CNI plugin that has been answered."""

    verb: str
    failed: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is rather than happens. `config_loaded_at`: Unix seconds of the last good load.

    `masquerade`, `policy`, `cni`, `node_routes` None: it is off. `bfd_connected` None: no peer has BFD.
    """

    peers: tuple[Peer, ...] = ()
    sources: tuple[Source, ...] = ()
    objects: Mapping[str, Objects] = field(default_factory=dict)
    speaker_connected: bool = False
    bfd_connected: bool | None = None
    draining: bool = False
    healthy: bool = True
    config_ok: bool = True
    config_loaded_at: float | None = None
    masquerade: Masquerade | None = None
    policy: Policy | None = None
    cni: Cni | None = None
    node_routes: NodeRoutes | None = None


class Metrics:
    """All metrics of one daemon, in a registry of their own.

    `subsystems` have begun with it. `exabgp` None: the version installed beside us.
    """

    def __init__(self, subsystems: Sequence[str] = (), exabgp: str | None = None) -> None:
        # A `_created` series beside each counter doubles what is stored, and Prometheus does not use it.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._rounds = Counter(
            "bgpd_reconcile_rounds",
            "Observed: rounds that changed or found something, by how they ended (done, failed, error).",
            ["subsystem", "result"],
            registry=self.registry,
        )
        self._drift = Counter(
            "bgpd_reconcile_drift",
            "Observed: objects found different from what the last round left, though nobody asked for it.",
            ["subsystem"],
            registry=self.registry,
        )
        self._suspicious = Counter(
            "bgpd_reconcile_suspicious",
            "Observed: times a source became empty without a reason and its removals were held back.",
            ["subsystem"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "bgpd_reconcile_duration_seconds",
            "Observed: time that a round which changed or found something took, in seconds.",
            ["subsystem"],
            buckets=ROUND_BUCKETS_S,
            registry=self.registry,
        )
        self._latency = Histogram(
            "bgpd_event_to_wire_seconds",
            "Observed: time from an event at the source to the target having it, in seconds.",
            ["subsystem"],
            buckets=WIRE_BUCKETS_S,
            registry=self.registry,
        )
        self._requests, self._request_duration = _requests(self.registry)
        for subsystem in subsystems:
            self.begin(subsystem)
        self._state = _State(Snapshot(), _versions(exabgp))
        self.registry.register(self._state)
        ProcessCollector(registry=self.registry)

    def observe_round(self, round: Round) -> None:
        """Counts one round."""
        self._rounds.labels(round.subsystem, Result.of(round).value).inc()
        self._duration.labels(round.subsystem).observe(round.duration_s)
        self._drift.labels(round.subsystem).inc(round.drift)
        self._suspicious.labels(round.subsystem).inc(bool(round.suspicious))
        if round.latency_s is not None:
            self._latency.labels(round.subsystem).observe(round.latency_s)

    def observe_request(self, done: RequestDone) -> None:
        """Counts one request of the CNI plugin."""
        result = Result.FAILED if done.failed else Result.DONE
        self._requests.labels(done.verb, result.value).inc()
        self._request_duration.labels(done.verb).observe(done.duration_s)

    def publish(self, snapshot: Snapshot) -> None:
        """Replaces what the next scrape shows."""
        self._state.snapshot = snapshot

    def begin(self, subsystem: str) -> None:
        """Shows what is counted of it with zeros: `increase()` does not see a counter's first appearance."""
        for result in Result:
            self._rounds.labels(subsystem, result.value)
        for metric in (self._drift, self._suspicious, self._duration, self._latency):
            metric.labels(subsystem)


    def begin_requests(self, verbs: Iterable[str]) -> None:
        """Shows what is counted of the plugin's requests with zeros, as `begin` does of a subsystem."""
        for verb in verbs:
            self._request_duration.labels(verb)
            for result in (Result.DONE, Result.FAILED):
                self._requests.labels(verb, result.value)


def _requests(registry: CollectorRegistry) -> tuple[Counter, Histogram]:
    answered = Counter(
        "bgpd_cni_requests",
        "Observed: requests of the CNI plugin that were answered, by how they ended (done, failed).",
        ["verb", "result"],
        registry=registry,
    )
    duration = Histogram(
        "bgpd_cni_request_duration_seconds",
        "Observed: time from a request of the CNI plugin to its answer, in seconds.",
        ["verb"],
        buckets=WIRE_BUCKETS_S,
        registry=registry,
    )
    return answered, duration


def _versions(exabgp: str | None) -> tuple[str, str]:
    if exabgp is None:
        try:
            exabgp = importlib.metadata.version("exabgp")
        except importlib.metadata.PackageNotFoundError:
            exabgp = ""
    return __version__, exabgp


# --- the snapshot as samples ------------------------------------------------------------------------------


class _State(Collector):
    """Yields the newest snapshot. It is read once a scrape, so that all its samples belong together."""

    def __init__(self, snapshot: Snapshot, versions: tuple[str, str]) -> None:
        self.snapshot = snapshot
        self._versions = versions

    def collect(self) -> Iterator[Family]:
        snapshot = self.snapshot
        yield from _about(snapshot, self._versions)
        yield from _sessions(snapshot)
        yield from _routes(snapshot)
        yield from _sources(snapshot)
        yield _objects(snapshot)
        yield from _masquerade(snapshot.masquerade)
        yield from _policy(snapshot.policy)
        yield from _cni(snapshot.cni)
        yield from _node_routes(snapshot.node_routes)

    def describe(self) -> Iterator[Family]:
        """The names, so that the registry refuses a second definition."""
        return self.collect()


def _gauge(name: str, help: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help, labels=labels)


def _about(snapshot: Snapshot, versions: tuple[str, str]) -> Iterator[Family]:
    build = _gauge("bgpd_build_info", "Constant 1: the versions of bgpd and ExaBGP.", ["version", "exabgp"])
    build.add_metric(versions, 1)
    yield build
    good = _gauge(
        "bgpd_config_last_reload_successful",
        "Observed: 1 when the newest configuration is in use, 0 when it has faults and the last good one is.",
    )
    good.add_metric((), snapshot.config_ok)
    yield good
    at = _gauge(
        "bgpd_config_last_reload_success_timestamp_seconds",
        "Observed: when the configuration in use was loaded, in seconds since the epoch.",
    )
    if snapshot.config_loaded_at is not None:
        at.add_metric((), snapshot.config_loaded_at)
    yield at
    connected = _gauge("bgpd_speaker_connected", "Observed: 1 when the speaker (ExaBGP) answers, else 0.")
    connected.add_metric((), snapshot.speaker_connected)
    yield connected
    bfd = _gauge("bgpd_bfd_connected", "Observed: 1 when BIRD answers, which speaks BFD, else 0; absent without.")
    if snapshot.bfd_connected is not None:
        bfd.add_metric((), snapshot.bfd_connected)
    yield bfd
    draining = _gauge("bgpd_bgp_draining", "Desired: 1 while the node is being drained or is drained, else 0.")
    draining.add_metric((), snapshot.draining)
    yield draining
    healthy = _gauge("bgpd_bgp_healthy", "Observed: 0 while a health check keeps everything withdrawn, else 1.")
    healthy.add_metric((), snapshot.healthy)
    yield healthy


def _sessions(snapshot: Snapshot) -> Iterator[Family]:
    labels = ["peer", "address"]
    up = _gauge("bgpd_bgp_session_up", "Observed: 1 when the session is Established, else 0.", labels)
    transitions = CounterMetricFamily(
        "bgpd_bgp_session_transitions",
        "Observed: times the session came up or went down since the speaker started.",
        labels=labels,
    )
    changed = _gauge(
        "bgpd_bgp_session_last_change_timestamp_seconds",
        "Observed: when the session last came up or went down, in seconds since the epoch.",
        labels,
    )
    bfd = _gauge(
        "bgpd_bfd_session_up", "Observed: 1 when BFD with the peer is up, else 0; absent where it has none.", labels
    )
    for peer in snapshot.peers:
        values = (peer.name, peer.address)
        up.add_metric(values, peer.up)
        transitions.add_metric(values, peer.transitions)
        if peer.last_change_at is not None:
            changed.add_metric(values, peer.last_change_at)
        if peer.bfd_up is not None:
            bfd.add_metric(values, peer.bfd_up)
    yield from (up, transitions, changed, bfd)


def _routes(snapshot: Snapshot) -> Iterator[Family]:
    labels = ["peer", "family"]
    wanted = _gauge("bgpd_bgp_routes_wanted", "Desired: routes to announce to the peer.", labels)
    advertised = _gauge(
        "bgpd_bgp_routes_advertised", "Observed: routes announced to the peer (its adj-rib-out, read back).", labels
    )
    refused = _gauge(
        "bgpd_bgp_routes_refused",
        "Desired: routes asked for and not announced to the peer; `bgpd routes` says why.",
        ["peer"],
    )
    end_of_rib = _gauge(
        "bgpd_bgp_end_of_rib_sent", "Observed: 1 when this session has had its End-of-RIB, else 0.", labels
    )
    for peer in snapshot.peers:
        for family, count in peer.wanted.items():
            wanted.add_metric((peer.name, family), count)
        for family, count in peer.advertised.items():
            advertised.add_metric((peer.name, family), count)
        for family, sent in peer.end_of_rib.items():
            end_of_rib.add_metric((peer.name, family), sent)
        refused.add_metric((peer.name,), peer.refused)
    yield from (wanted, advertised, refused, end_of_rib)


def _sources(snapshot: Snapshot) -> Iterator[Family]:
    synced = _gauge(
        "bgpd_source_synced", "Observed: 1 once the source has delivered a complete list, else 0.", ["source"]
    )
    reconnects = CounterMetricFamily(
        "bgpd_source_reconnects", "Observed: times the source had to be asked anew.", labels=["source"]
    )
    following = _gauge(
        "bgpd_source_following", "Observed: 1 while changes at the source arrive, 0 while it is lost.", ["source"]
    )
    failed = _gauge(
        "bgpd_source_last_error_timestamp_seconds",
        "Observed: when the source last failed, in seconds since the epoch.",
        ["source"],
    )
    faults = _gauge(
        "bgpd_source_faults",
        "Observed: files and objects at the source that cannot be read now; `bgpd status` names them.",
        ["source"],
    )
    for source in snapshot.sources:
        synced.add_metric((source.name,), source.synced)
        following.add_metric((source.name,), source.following)
        reconnects.add_metric((source.name,), source.reconnects)
        faults.add_metric((source.name,), source.faults)
        if source.last_error_at is not None:
            failed.add_metric((source.name,), source.last_error_at)
    yield from (synced, following, reconnects, faults, failed)


def _objects(snapshot: Snapshot) -> Family:
    objects = _gauge(
        "bgpd_reconcile_objects",
        "Observed: objects by state: done, retry (by itself, later), blocked (until its input changes).",
        ["subsystem", "state"],
    )
    for subsystem, counts in snapshot.objects.items():
        for state, count in (("done", counts.done), ("retry", counts.retry), ("blocked", counts.blocked)):
            objects.add_metric((subsystem, state), count)
    return objects


def _masquerade(now: Masquerade | None) -> Iterator[Family]:
    synced = _gauge(
        "bgpd_masquerade_document_synced",
        "Observed: 1 once a good document has been read, 0 while there is at most one remembered from before.",
    )
    faults = _gauge(
        "bgpd_masquerade_document_faults",
        "Observed: faults in the document; while it has any, the last good one is in use. `bgpd status` names them.",
    )
    findings = _gauge(
        "bgpd_masquerade_document_findings",
        "Observed: what in the document in use works and is probably not meant; `bgpd doctor` names it.",
    )
    entries = _gauge("bgpd_masquerade_entries", "Observed: entries of the list in the kernel.", ["family"])
    active = _gauge(
        "bgpd_masquerade_active",
        "Observed: 1 while the kernel masquerades what the list does not keep, else 0.",
        ["family"],
    )
    in_force = _gauge(
        "bgpd_masquerade_in_force",
        "Observed: 1 while the kernel has what is wanted (list, rule), else 0; `bgpd status` says why.",
        ["subsystem"],
    )
    flows = CounterMetricFamily(
        "bgpd_masquerade_flows",
        "Observed: pods' flows that the list decided on: listed keep their address, all others are masqueraded.",
        labels=["verdict"],
    )
    if now is not None:
        synced.add_metric((), now.document_synced)
        faults.add_metric((), now.document_faults)
        findings.add_metric((), now.findings())
        for family, count in now.entries.items():
            entries.add_metric((family,), count)
        for family, is_active in now.active.items():
            active.add_metric((family,), is_active)
        for subsystem, is_in_force in now.in_force.items():
            in_force.add_metric((subsystem,), is_in_force)
        for verdict, count in now.flows().items():
            flows.add_metric((verdict,), count)
    yield from (synced, faults, findings, entries, active, in_force, flows)


def _policy(now: Policy | None) -> Iterator[Family]:
    endpoints = _gauge(
        "bgpd_policy_endpoints",
        "Observed: interfaces of this node's pods by how policy stands with them; `bgpd endpoints` names them.",
        ["state"],
    )
    policies = _gauge("bgpd_policy_policies", "Desired: NetworkPolicies that isolate a pod of this node.")
    blocked = _gauge(
        "bgpd_policy_blocked",
        "Observed: NetworkPolicies that do not fit into a map, their pods held back; `bgpd policy list` names them.",
        ["map"],
    )
    in_force = _gauge(
        "bgpd_policy_in_force",
        "Observed: 1 while the kernel has what is wanted (maps, links, tables), else 0; `bgpd status` says why.",
        ["subsystem"],
    )
    entries = _gauge("bgpd_policy_map_entries", "Observed: entries of a map that policy is made of.", ["map"])
    capacity = _gauge("bgpd_policy_map_capacity", "Observed: entries that such a map has room for.", ["map"])
    packets = CounterMetricFamily(
        "bgpd_policy_packets",
        "Observed: packets of this node's pods that were judged, by verdict; audited ones pass and count twice.",
        labels=["verdict"],
    )
    lost = CounterMetricFamily(
        "bgpd_policy_events_lost",
        "Observed: dropped packets that `bgpd flows` does not show: over the rate of a pod, or for want of room.",
    )
    if now is not None:
        for state, count in now.endpoints.items():
            endpoints.add_metric((state,), count)
        policies.add_metric((), now.policies)
        for name, count in now.blocked.items():
            blocked.add_metric((name,), count)
        for subsystem, is_in_force in now.in_force.items():
            in_force.add_metric((subsystem,), is_in_force)
        for name, count in now.entries().items():
            entries.add_metric((name,), count)
        for name, count in now.capacity.items():
            capacity.add_metric((name,), count)
        for verdict, count in now.packets().items():
            packets.add_metric((verdict,), count)
        lost.add_metric((), now.events_lost())
    yield from (endpoints, policies, blocked, in_force, entries, capacity, packets, lost)


def _node_routes(now: NodeRoutes | None) -> Iterator[Family]:
    wanted = _gauge(
        "bgpd_node_routes_wanted", "Desired: routes to other nodes' pod CIDRs, by their way.", ["family", "way"]
    )
    without = _gauge(
        "bgpd_node_routes_without",
        "Observed: other nodes' pod CIDRs that get no route or keep an old one (held: somebody else has one, or they "
        "overlap; unreachable: no way there); `bgpd status` names them.",
        ["why"],
    )
    in_force = _gauge(
        "bgpd_node_routes_in_force",
        "Observed: 1 while the kernel has the routes that are wanted, else 0; `bgpd status` says why.",
    )
    if now is not None:
        for labels, count in now.wanted.items():
            wanted.add_metric(labels, count)
        without.add_metric(("held",), now.held)
        without.add_metric(("unreachable",), now.unreachable)
        in_force.add_metric((), now.in_force)
    yield from (wanted, without, in_force)


def _cni(now: Cni | None) -> Iterator[Family]:
    attachments = _gauge("bgpd_cni_attachments", "Observed: interfaces of pods that the CNI plugin has attached.")
    queued = _gauge("bgpd_cni_queued_dels", "Observed: DELs that came while nobody answered, still to be done.")
    published = _gauge(
        "bgpd_cni_published",
        "Observed: 1 while the chain that the runtime uses has the plugin in it, else 0; `bgpd status` says why.",
    )
    if now is not None:
        attachments.add_metric((), now.attachments())
        queued.add_metric((), now.queued_dels())
        published.add_metric((), now.published())
    yield from (attachments, queued, published)
