"""All metrics: what happens is defined here, what is in `samples`, each once, with its labels and meaning.

The meaning says whether it is what we want or what we see. What happens (rounds, latencies) is counted as it
happens. What is (sessions, routes, sources) is a `Snapshot` that the daemon publishes whole and that a scrape turns
into samples, so a peer that is gone is gone from the next scrape, and a scrape in another thread never sees half a
change. Of these, what takes a while to find out is asked for by the scrape, in its thread. What the values are is
the daemon's business; how they are served is `http`'s.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from bgpd import __version__
from bgpd.observe.log import Round
from bgpd.observe.samples import (
    bgp,
    cni,
    hostroutes,
    masquerade,
    noderoutes,
    policy,
    services,
    sources,
    virtualservers,
)
from bgpd.observe.samples.bgp import Peer
from bgpd.observe.samples.cni import Cni
from bgpd.observe.samples.family import gauge
from bgpd.observe.samples.hostroutes import HostRoutes
from bgpd.observe.samples.masquerade import Masquerade
from bgpd.observe.samples.noderoutes import NodeRoutes
from bgpd.observe.samples.policy import Policy
from bgpd.observe.samples.services import Services
from bgpd.observe.samples.sources import Source
from bgpd.observe.samples.virtualservers import VirtualServers

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
class Objects:
    """How a reconciler's objects stand."""

    done: int = 0
    retry: int = 0
    blocked: int = 0


@dataclass(frozen=True, slots=True)
class RequestDone:
    """A request of the CNI plugin that has been answered."""

    verb: str
    failed: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is rather than happens. `config_loaded_at`: Unix seconds of the last good load.

    `masquerade` to `virtual_servers` None: it is off. `bfd_connected` None: no peer has BFD.
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
    host_routes: HostRoutes | None = None
    virtual_servers: VirtualServers | None = None
    services: Services | None = None


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
        yield from bgp.sessions(snapshot.peers)
        yield from bgp.routes(snapshot.peers)
        yield from sources.samples(snapshot.sources)
        yield _objects(snapshot)
        yield from masquerade.samples(snapshot.masquerade)
        yield from policy.samples(snapshot.policy)
        yield from cni.samples(snapshot.cni)
        yield from noderoutes.samples(snapshot.node_routes)
        yield from hostroutes.samples(snapshot.host_routes)
        yield from virtualservers.samples(snapshot.virtual_servers)
        yield from services.samples(snapshot.services)

    def describe(self) -> Iterator[Family]:
        """The names, so that the registry refuses a second definition."""
        return self.collect()


def _about(snapshot: Snapshot, versions: tuple[str, str]) -> Iterator[Family]:
    build = gauge("bgpd_build_info", "Constant 1: the versions of bgpd and ExaBGP.", ["version", "exabgp"])
    build.add_metric(versions, 1)
    yield build
    good = gauge(
        "bgpd_config_last_reload_successful",
        "Observed: 1 when the newest configuration is in use, 0 when it has faults and the last good one is.",
    )
    good.add_metric((), snapshot.config_ok)
    yield good
    at = gauge(
        "bgpd_config_last_reload_success_timestamp_seconds",
        "Observed: when the configuration in use was loaded, in seconds since the epoch.",
    )
    if snapshot.config_loaded_at is not None:
        at.add_metric((), snapshot.config_loaded_at)
    yield at
    connected = gauge("bgpd_speaker_connected", "Observed: 1 when the speaker (ExaBGP) answers, else 0.")
    connected.add_metric((), snapshot.speaker_connected)
    yield connected
    bfd = gauge("bgpd_bfd_connected", "Observed: 1 when BIRD answers, which speaks BFD, else 0; absent without.")
    if snapshot.bfd_connected is not None:
        bfd.add_metric((), snapshot.bfd_connected)
    yield bfd
    draining = gauge("bgpd_bgp_draining", "Desired: 1 while the node is being drained or is drained, else 0.")
    draining.add_metric((), snapshot.draining)
    yield draining
    healthy = gauge("bgpd_bgp_healthy", "Observed: 0 while a health check keeps everything withdrawn, else 1.")
    healthy.add_metric((), snapshot.healthy)
    yield healthy


def _objects(snapshot: Snapshot) -> Family:
    objects = gauge(
        "bgpd_reconcile_objects",
        "Observed: objects by state: done, retry (by itself, later), blocked (until its input changes).",
        ["subsystem", "state"],
    )
    for subsystem, counts in snapshot.objects.items():
        for state, count in (("done", counts.done), ("retry", counts.retry), ("blocked", counts.blocked)):
            objects.add_metric((subsystem, state), count)
    return objects


