"""What the benchmark of masquerade lists: entries that mean what it says of them. And what wrk tells it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from tests.benchmarks import http
from tests.benchmarks.masq_apply import edits
from tests.benchmarks.masq_contenders import iptables_chain
from tests.benchmarks.masq_stage import CABLE, FAR, document, prefixes


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
