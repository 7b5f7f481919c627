"""What the benchmark of masquerade lists: entries that mean what it says of them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

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
