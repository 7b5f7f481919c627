"""How many flows were kept and masqueraded, as the kernel has counted them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest

from bgpd.datapath import pins
from bgpd.datapath.layout import COUNTER, MAPS, PRESENT, Verdict
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.loader import Installed
from bgpd.masq.flows import hits, judged
from bgpd.model.lpm import LpmKey
from tests.bpf.packets import packet
from tests.bpf.program import run

LISTED, UNLISTED = IPv4Address("11.8.37.4"), IPv4Address("192.0.2.1")
NONE = {verdict.name.lower(): 0 for verdict in Verdict}


def test_every_verdict_is_there_before_its_first_flow(masq: Installed, directory: Path) -> None:
    """A rate sees the first one then."""
    assert judged(directory) == NONE


def test_a_flow_counts_for_good_though_its_entry_goes(masq: Installed, directory: Path) -> None:
    """The hits of an entry go with it; what was counted here stays."""
    entry = LpmKey.of(ip_network(f"{LISTED}/32"))
    masq.maps["ipmasq_v4"].update({entry: PRESENT})
    masq.maps["ipmasq_hits_v4"].update({entry: COUNTER.pack(0)})
    for to in (LISTED, LISTED, UNLISTED):
        run(masq.programs["masquerade"].pin, packet(to))
    assert hits(directory) == {entry: 2}
    for name in ("ipmasq_v4", "ipmasq_hits_v4"):
        masq.maps[name].delete([entry])
    assert hits(directory) == {}
    assert judged(directory) == NONE | {"listed": 2, "not_listed": 1}


def test_nothing_is_counted_where_nothing_masquerades(directory: Path) -> None:
    """Before the first start, and after `bgpd masq clear`."""
    assert judged(directory) == {}
    assert hits(directory) == {}


def test_a_map_of_somebody_else_is_not_read(directory: Path) -> None:
    """Its numbers would mean something else: /metrics shows none, and who asks for hits is told."""
    for spec in (MAPS["masq_verdicts"], MAPS["ipmasq_hits_v6"]):
        pins.open_or_create(directory / spec.name, replace(spec, max_entries=2))
    assert judged(directory) == {}
    with pytest.raises(DatapathError, match="ipmasq_hits_v6 is another map"):
        hits(directory)
