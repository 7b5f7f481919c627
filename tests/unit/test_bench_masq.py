"""What the benchmark of masquerade lists: entries that mean what it says. And how it reads what it measures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest

from tests.benchmarks import http, masq_traffic, policy_traffic, serial
from tests.benchmarks.masq_apply import edits
from tests.benchmarks.masq_contenders import iptables_chain, source
from tests.benchmarks.masq_packet import flatness
from tests.benchmarks.masq_stage import CABLE, FAR, LISTED, NODE, POD, document, prefixes
from tests.benchmarks.report import Result
from tests.benchmarks.turns import Sample, share


def test_no_entry_covers_another_or_what_is_sent_to() -> None:
    """Else a destination would be kept that is said to be masqueraded."""
    by_address = sorted(prefixes(2_000))
    assert not any(one.overlaps(other) for one, other in pairwise(by_address))
    assert not any(each.overlaps(used) for each in by_address for used in (FAR, CABLE))


def test_a_longer_list_goes_on_where_the_shorter_ends() -> None:
    assert prefixes(200)[:100] == prefixes(100)


def test_every_edit_replaces_one_entry() -> None:
    lists = edits(prefixes(60), 50)
    assert len(lists) == 11
    for before, after in pairwise(map(set, lists)):
        assert (len(after - before), len(before - after)) == (1, 1)


@pytest.mark.parametrize("count", [0, 3])
def test_the_document_and_the_chain_have_all_of_it(count: int) -> None:
    """The chain with the cluster's CIDR too, which the document leaves to the configuration."""
    said = json.loads(document(prefixes(count)))
    assert said["nonMasqueradeCIDRs"] == [str(each) for each in prefixes(count)]
    assert said["cidrLimit"] >= count
    assert iptables_chain(prefixes(count)).count(" -j RETURN\n") == count + 1


WRK = """Running 1s test @ http://198.18.0.2/
  2 threads and 10 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   283.30us  367.23us   4.74ms   92.93%
    Req/Sec     7.15k     2.08k   10.84k    66.67%
  14913 requests in 1.10s, 12.06MB read
"""
RATE = """Requests/sec:  13557.17
Transfer/sec:     10.96MB
"""


def test_what_wrk_tells_is_read() -> None:
    assert http.read(WRK + RATE) == http.Load(14913, 13557.17, 283.3)


@pytest.mark.parametrize(
    "more",
    ["  Socket errors: connect 0, read 3, write 0, timeout 0\n", "  Non-2xx or 3xx responses: 14913\n"],
)
def test_a_run_with_errors_is_none(more: str) -> None:
    """Refused connections would be the fastest of all."""
    with pytest.raises(RuntimeError, match="answers only"):
        http.read(WRK + more + RATE)


def test_who_only_forwards_shows_the_pod() -> None:
    assert {name: source(name) for name in ("nothing", "conntrack", "masquerade", "bgpd")} == {
        "nothing": POD,
        "conntrack": POD,
        "masquerade": NODE,
        "bgpd": NODE,
    }


def test_no_new_connection_is_to_what_is_listed() -> None:
    """Rounds count addresses up from the first; a stream that is to be translated goes to the same."""
    contenders = len(masq_traffic.CONNECTION_WAYS)
    assert LISTED.subnet_of(FAR)
    assert int(LISTED[0]) - int(FAR[0]) > contenders * max(serial.ROUNDS, http.ROUNDS)


IPERF3 = """{"start": {}, "end": {
  "sum_sent": {"seconds": 0.30, "bytes": 500000000, "bits_per_second": 13333333333, "retransmits": 12},
  "sum_received": {"seconds": 0.32, "bytes": 480000000, "bits_per_second": 12000000000},
  "cpu_utilization_percent": {"host_total": 80.0, "host_user": 1.0, "remote_total": 20.0, "remote_user": 2.0}
}}"""


def test_what_iperf3_tells_is_read() -> None:
    """What arrived, the processor time of both ends for it, and what was sent more than once."""
    sample = masq_traffic.read_stream(IPERF3)
    assert sample.rate == pytest.approx(12.0)
    assert sample.cpu_us == pytest.approx(0.32e6 / 480)
    assert sample.resent == pytest.approx(25)


def test_a_share_is_of_pairs() -> None:
    """The second round was slow for both, and neither is to be blamed."""
    taken = {"bgpd": _rates(90.0, 45.0, 80.0), "nothing": _rates(100.0, 50.0, 100.0)}
    assert share("x", taken, "bgpd", "nothing", 0.95).value == pytest.approx(0.9)
    assert share("x", taken, "bgpd", "nothing", 0.95).missed


def test_streams_are_told_by_what_becomes_of_them() -> None:
    """The goal is for the one that keeps its address; bare masquerade stands beside the one that is translated."""
    taken = {"nothing": _rates(10.0), "conntrack": _rates(9.5), "masquerade": _rates(8.0)}
    taken |= {masq_traffic.KEPT: _rates(9.6), masq_traffic.TRANSLATED: _rates(8.4)}
    found = _by_name(masq_traffic.stream_results(taken))
    assert found["throughput_vs_nothing"].value == pytest.approx(0.96)
    assert found["throughput_vs_none"].value == pytest.approx(9.6 / 9.5)
    assert found["throughput_vs_none"].goal == 0.95
    assert found["throughput_translated_vs_none"].value == pytest.approx(8.4 / 9.5)
    assert found["throughput_translated_vs_masquerade"].value == pytest.approx(1.05)
    assert set(found["throughput"].beside) == {"nothing", "conntrack"}


def test_goals_are_for_connections_one_after_the_other() -> None:
    """The same ratios over HTTP are told beside them, by names of their own."""
    taken = {name: _rates(100.0) for name in masq_traffic.CONNECTION_WAYS}
    one_by_one, web = masq_traffic.serial_results(taken), masq_traffic.http_results(taken)
    assert {it.name for it in one_by_one if it.goal} == {"cps_vs_none", "cps_vs_iptables_16k"}
    assert not any(it.goal for it in web)
    assert not {it.name for it in one_by_one} & {it.name for it in web}


def test_policies_are_compared_with_the_best_of_a_kind() -> None:
    names = ("nothing", "conntrack", *(f"{who}-{n}" for n in (10, 1000) for who in ("ipset", "nftables", "bgpd")))
    taken = {name: _rates(100.0) for name in names} | {"ipset-nft-1000": _rates(50.0), "bgpd-1000": _rates(300.0)}
    taken["ipset-nft-10"] = _rates(125.0)
    one_by_one, web = _by_name(policy_traffic.serial_results(taken)), _by_name(policy_traffic.http_results(taken))
    assert one_by_one["cps_vs_ipset_1k_policies"].value == pytest.approx(3.0)
    assert one_by_one["cps_vs_ipset_10_policies"].value == pytest.approx(0.8)
    assert one_by_one["cps_vs_ipset_10_policies"].missed
    assert not any(it.goal for it in web.values())
    assert not one_by_one.keys() & web.keys()


def test_flat_is_the_dearest_by_the_cheapest() -> None:
    assert flatness("x", {"0": 5.0, "100": 4.0, "16k": 6.0}).value == pytest.approx(1.5)


def _rates(*rates: float) -> list[Sample]:
    return [Sample(rate, 1e6 / rate) for rate in rates]


def _by_name(results: Iterable[Result]) -> dict[str, Result]:
    return {it.name: it for it in results}
