"""How many flows our datapath has seen, from the kernel's own counters: by entry of the list, and by verdict.

They count on while no daemon runs. Those of the verdicts never go down and are for /metrics; an entry's goes with
the entry, and there may be 16,000 of them: they are for `bgpd masq list --hits`. Opened anew by their pins at each
look, so that any thread may look at any time.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from pathlib import Path

from bgpd.datapath import layout, pins
from bgpd.datapath.layout import Verdict
from bgpd.datapath.libbpf import DatapathError
from bgpd.model.lpm import LpmKey


def judged(directory: Path) -> Mapping[str, int]:
    """Flows by verdict since the maps in `directory` were made; empty while there are none or nobody may look."""
    try:
        found = _read(directory, "masq_verdicts")
    except DatapathError:
        return {}  # the loop that keeps the maps says so, with its reason
    return {Verdict(struct.unpack("I", key)[0]).name.lower(): count for key, count in found.items()}


def hits(directory: Path) -> Mapping[LpmKey, int]:
    """Flows that each entry has covered since it is listed. DatapathError: the counters cannot be read."""
    found = _read(directory, "ipmasq_hits_v4") | _read(directory, "ipmasq_hits_v6")
    return {LpmKey.read(key): count for key, count in found.items()}


def _read(directory: Path, name: str) -> dict[bytes, int]:
    """Empty: there is no such map."""
    counters = pins.open_map(directory / name, layout.MAPS[name])
    if counters is None:
        return {}
    with contextlib.closing(counters):
        return {key: layout.COUNTER.unpack(value)[0] for key, value in counters.entries().items()}
