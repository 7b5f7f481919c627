"""What a scrape shows after what has happened."""

from __future__ import annotations

import re

from prometheus_client import generate_latest

from bgpd import __version__
from bgpd.observe.metrics import WIRE_BUCKETS_S, Metrics, Objects, RequestDone, Snapshot
from bgpd.observe.samples.bgp import Peer
from bgpd.observe.samples.cni import Cni
from bgpd.observe.samples.masquerade import Masquerade
from bgpd.observe.samples.policy import Policy
from bgpd.observe.samples.services import Services
from bgpd.observe.samples.sources import Source
from bgpd.runtime.reconcile import Round

TOR_A = Peer(
    name="tor-a",
    address="11.11.255.1",
    up=True,
    transitions=3,
    last_change_at=1700000000.0,
    wanted={"ipv4-unicast": 2, "ipv6-unicast": 1},
    advertised={"ipv4-unicast": 2, "ipv6-unicast": 0},
    refused=1,
    end_of_rib={"ipv4-unicast": True, "ipv6-unicast": False},
)
TOR_B = Peer(name="tor-b", address="11.11.255.2", up=False)


def scrape(metrics: Metrics) -> dict[str, float]:
    text = generate_latest(metrics.registry).decode()
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def a_round(
    added: int = 0,
    failed: int = 0,
    drift: int = 0,
    latency_s: float | None = None,
    suspicious: str = "",
    error: str = "",
) -> Round:
    failures = {str(i): "no" for i in range(failed)}
    return Round("routes", added, 0, 0, failures, drift, 0.02, latency_s, suspicious, error)


def test_counters_of_a_subsystem_start_at_zero() -> None:
    """A series is there before its first event, so that `increase()` sees that event."""
    shown = scrape(Metrics(("routes",)))
    assert shown['bgpd_reconcile_rounds_total{result="error",subsystem="routes"}'] == 0
    assert shown['bgpd_reconcile_drift_total{subsystem="routes"}'] == 0
    assert shown['bgpd_event_to_wire_seconds_count{subsystem="routes"}'] == 0


def test_a_round_is_counted_by_how_it_ended() -> None:
    """Done, failed and error are told apart; a round in trouble of both kinds is an error."""
    metrics = Metrics()
    for round in (a_round(added=1), a_round(added=1, failed=1), a_round(error="gone"), a_round(added=2)):
        metrics.observe_round(round)
    shown = scrape(metrics)
    counts = {it: shown[f'bgpd_reconcile_rounds_total{{result="{it}",subsystem="routes"}}'] for it in RESULTS}
    assert counts == {"done": 2, "failed": 1, "error": 1}
    assert shown['bgpd_reconcile_duration_seconds_count{subsystem="routes"}'] == 4


RESULTS = ("done", "failed", "error")


def test_drift_counts_objects_and_suspicion_counts_times() -> None:
    """Three objects that drifted are three; a source that became empty is one."""
    metrics = Metrics()
    metrics.observe_round(a_round(drift=3))
    metrics.observe_round(a_round(suspicious="became empty: 7 removals wait"))
    shown = scrape(metrics)
    assert shown['bgpd_reconcile_drift_total{subsystem="routes"}'] == 3
    assert shown['bgpd_reconcile_suspicious_total{subsystem="routes"}'] == 1


def test_latency_is_observed_only_where_there_was_an_event() -> None:
    """A resync has no event to measure from and stays out of the histogram, whose buckets span 1 ms to 10 s."""
    metrics = Metrics()
    metrics.observe_round(a_round(drift=1, latency_s=None))
    metrics.observe_round(a_round(added=1, latency_s=0.02))
    shown = scrape(metrics)
    assert shown['bgpd_event_to_wire_seconds_count{subsystem="routes"}'] == 1
    assert shown['bgpd_event_to_wire_seconds_bucket{le="0.025",subsystem="routes"}'] == 1
    assert (WIRE_BUCKETS_S[0], WIRE_BUCKETS_S[-1]) == (0.001, 10.0)


def test_a_session_is_shown_by_name_and_address() -> None:
    """Up or down, transitions and the time of the last change, per peer."""
    metrics = Metrics()
    metrics.publish(Snapshot(peers=(TOR_A, TOR_B)))
    shown = scrape(metrics)
    who = '{address="11.11.255.1",peer="tor-a"}'
    assert shown[f"bgpd_bgp_session_up{who}"] == 1
    assert shown['bgpd_bgp_session_up{address="11.11.255.2",peer="tor-b"}'] == 0
    assert shown[f"bgpd_bgp_session_transitions_total{who}"] == 3
    assert shown[f"bgpd_bgp_session_last_change_timestamp_seconds{who}"] == 1700000000


def test_a_time_that_is_not_known_is_not_shown() -> None:
    """No last change, no last error, no good load: no sample, rather than 1970."""
    metrics = Metrics()
    metrics.publish(Snapshot(peers=(TOR_B,), sources=(Source("manifests", synced=False),)))
    assert not [name for name in scrape(metrics) if "timestamp" in name]


def test_routes_wanted_and_seen_are_two_metrics() -> None:
    """A route that is wanted and not in the adj-rib-out shows as a difference of two series."""
    metrics = Metrics()
    metrics.publish(Snapshot(peers=(TOR_A,)))
    shown = scrape(metrics)
    family = '{family="ipv6-unicast",peer="tor-a"}'
    assert (shown[f"bgpd_bgp_routes_wanted{family}"], shown[f"bgpd_bgp_routes_advertised{family}"]) == (1, 0)
    assert shown[f"bgpd_bgp_end_of_rib_sent{family}"] == 0
    assert shown['bgpd_bgp_routes_refused{peer="tor-a"}'] == 1


def test_a_peer_that_is_gone_is_gone_from_the_scrape() -> None:
    """Removing a peer from the configuration removes all its series."""
    metrics = Metrics()
    metrics.publish(Snapshot(peers=(TOR_A, TOR_B)))
    metrics.publish(Snapshot(peers=(TOR_B,)))
    assert not [name for name in scrape(metrics) if "tor-a" in name]


def test_the_rest_of_the_snapshot() -> None:
    """Source, configuration, speaker, drain and object states come out under their names."""
    metrics = Metrics(exabgp="5.0.15")
    metrics.publish(
        Snapshot(
            sources=(Source("kubernetes", synced=True, reconnects=4, last_error_at=7.0),),
            objects={"routes": Objects(done=5, retry=2, blocked=1)},
            speaker_connected=True,
            draining=True,
            config_ok=False,
            config_loaded_at=9.0,
        )
    )
    shown = scrape(metrics)
    expected = {
        'bgpd_source_synced{source="kubernetes"}': 1,
        'bgpd_source_reconnects_total{source="kubernetes"}': 4,
        'bgpd_source_last_error_timestamp_seconds{source="kubernetes"}': 7,
        'bgpd_reconcile_objects{state="done",subsystem="routes"}': 5,
        'bgpd_reconcile_objects{state="retry",subsystem="routes"}': 2,
        'bgpd_reconcile_objects{state="blocked",subsystem="routes"}': 1,
        "bgpd_speaker_connected": 1,
        "bgpd_bgp_draining": 1,
        "bgpd_config_last_reload_successful": 0,
        "bgpd_config_last_reload_success_timestamp_seconds": 9,
        f'bgpd_build_info{{exabgp="5.0.15",version="{__version__}"}}': 1,
    }
    assert {name: shown[name] for name in expected} == expected


def test_masquerade_is_shown_while_it_is_on() -> None:
    """What is published, and what each scrape asks for anew."""
    flows, metrics = {"listed": 3, "not_listed": 4}, Metrics()
    now = Masquerade(
        document_synced=True,
        document_faults=2,
        entries={"ipv4": 12, "ipv6": 1},
        active={"ipv4": True, "ipv6": False},
        in_force={"masq_ipv4": False, "masq_rule": True},
        findings=lambda: 5,
        flows=lambda: flows,
    )
    metrics.publish(Snapshot(masquerade=now))
    expected = {
        "bgpd_masquerade_document_synced": 1,
        "bgpd_masquerade_document_faults": 2,
        "bgpd_masquerade_document_findings": 5,
        'bgpd_masquerade_entries{family="ipv4"}': 12,
        'bgpd_masquerade_entries{family="ipv6"}': 1,
        'bgpd_masquerade_active{family="ipv4"}': 1,
        'bgpd_masquerade_active{family="ipv6"}': 0,
        'bgpd_masquerade_in_force{subsystem="masq_ipv4"}': 0,
        'bgpd_masquerade_in_force{subsystem="masq_rule"}': 1,
        'bgpd_masquerade_flows_total{verdict="listed"}': 3,
        'bgpd_masquerade_flows_total{verdict="not_listed"}': 4,
    }
    assert {name: value for name, value in scrape(metrics).items() if "masquerade" in name} == expected
    flows["listed"] += 1
    assert scrape(metrics)['bgpd_masquerade_flows_total{verdict="listed"}'] == 4
    metrics.publish(Snapshot())
    assert not [name for name in scrape(metrics) if "masquerade" in name]


def test_policy_is_shown_while_it_is_on() -> None:
    """What is published, and what each scrape asks for anew."""
    packets, metrics = {"allowed": 3, "denied_ingress": 4}, Metrics()
    now = Policy(
        endpoints={"enforced": 5, "closed": 1},
        policies=2,
        blocked={"policy_ranges": 1},
        in_force={"policy_maps": True, "policy_tables": False},
        events_lost=lambda: 6,
        capacity={"policy_peers": 131072},
        entries=lambda: {"policy_peers": 10},
        packets=lambda: packets,
    )
    metrics.publish(Snapshot(policy=now))
    expected = {
        'bgpd_policy_endpoints{state="enforced"}': 5,
        'bgpd_policy_endpoints{state="closed"}': 1,
        "bgpd_policy_policies": 2,
        'bgpd_policy_blocked{map="policy_ranges"}': 1,
        'bgpd_policy_in_force{subsystem="policy_maps"}': 1,
        'bgpd_policy_in_force{subsystem="policy_tables"}': 0,
        "bgpd_policy_events_lost_total": 6,
        'bgpd_policy_map_capacity{map="policy_peers"}': 131072,
        'bgpd_policy_map_entries{map="policy_peers"}': 10,
        'bgpd_policy_packets_total{verdict="allowed"}': 3,
        'bgpd_policy_packets_total{verdict="denied_ingress"}': 4,
    }
    assert {name: value for name, value in scrape(metrics).items() if "policy" in name} == expected
    packets["allowed"] += 1
    assert scrape(metrics)['bgpd_policy_packets_total{verdict="allowed"}'] == 4
    metrics.publish(Snapshot())
    assert not [name for name in scrape(metrics) if "policy" in name]


def test_service_addresses_are_shown_while_any_are_meant() -> None:
    metrics = Metrics()
    assert [name for name in scrape(metrics) if "service" in name] == []
    metrics.publish(Snapshot(services=Services({"announced": 3, "kept": 1})))
    shown = {name: value for name, value in scrape(metrics).items() if "service" in name}
    assert shown == {
        'bgpd_service_addresses{state="announced"}': 3,
        'bgpd_service_addresses{state="kept"}': 1,
    }


def test_the_plugin_is_shown_while_it_is_on() -> None:
    waiting, metrics = [1, 2], Metrics()
    metrics.publish(Snapshot(cni=Cni(lambda: 3, lambda: len(waiting), lambda: False)))
    expected = {"bgpd_cni_attachments": 3, "bgpd_cni_queued_dels": 2, "bgpd_cni_published": 0}
    assert {name: value for name, value in scrape(metrics).items() if "cni" in name} == expected
    waiting.clear()
    assert scrape(metrics)["bgpd_cni_queued_dels"] == 0


def test_requests_of_the_plugin_are_counted_by_how_they_ended() -> None:
    """From zero, so that `increase()` sees the first that fails."""
    metrics = Metrics()
    metrics.begin_requests(["ADD", "DEL"])
    assert scrape(metrics)['bgpd_cni_requests_total{result="failed",verb="ADD"}'] == 0
    for failed in (False, True, False):
        metrics.observe_request(RequestDone("ADD", failed, 0.02))
    shown = scrape(metrics)
    assert shown['bgpd_cni_requests_total{result="done",verb="ADD"}'] == 2
    assert shown['bgpd_cni_requests_total{result="failed",verb="ADD"}'] == 1
    assert shown['bgpd_cni_request_duration_seconds_bucket{le="0.01",verb="ADD"}'] == 0
    assert shown['bgpd_cni_request_duration_seconds_bucket{le="0.025",verb="ADD"}'] == 3


def test_every_metric_says_what_it_is() -> None:
    """Ours start with bgpd_ and say desired or observed; names with a unit have it in the help text too."""
    families = list(Metrics(("routes",)).registry.collect())
    ours = [family for family in families if not family.name.startswith("process_")]
    assert [family.name for family in ours if not family.name.startswith("bgpd_")] == []
    said = re.compile(r"(Desired|Observed|Constant 1): .*\.$")
    assert [family.name for family in ours if not said.fullmatch(family.documentation)] == []
    timed = [family for family in ours if family.name.endswith("_seconds")]
    assert timed
    assert [family.name for family in timed if "seconds" not in family.documentation] == []


def test_the_process_is_measured() -> None:
    """Memory and processor time of the daemon itself are there, without the Python runtime's own metrics."""
    shown = scrape(Metrics())
    assert shown["process_resident_memory_bytes"] > 1e6
    assert not [name for name in shown if name.startswith("python_") or name.endswith("_created")]
