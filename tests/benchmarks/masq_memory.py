"""What a list of 16,000 entries adds to the daemon's resident memory.

Compared are daemons that were started the same way, with an empty list and with the long one; beside them one whose
long list has been edited again and again, which is what a daemon looks like after a while. What the reading of the
document took and Python's allocator has not given back is in all of these, as it is on a node. The maps are the
kernel's memory, not the daemon's.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.benchmarks.footprint import rss_mb
from tests.benchmarks.masq_contenders import LONG
from tests.benchmarks.masq_stage import MasqDaemon, Wire, prefixes
from tests.benchmarks.report import Result
from tests.fabric.netns import Lab

SETTLE_S = 5.0


def results(lab: Lab, place: Path, edited: MasqDaemon) -> list[Result]:
    daemons = {
        "empty": MasqDaemon(Wire(lab, "empty"), place).start(),
        "long": MasqDaemon(Wire(lab, "long"), place).start(prefixes(LONG)),
        "edited": edited,
    }
    time.sleep(SETTLE_S)
    rss = {name: rss_mb([daemon.process.pid]) for name, daemon in daemons.items()}
    return [
        Result(name="memory_16k_mb", value=rss["long"] - rss["empty"], unit="MB", goal=10.0),
        Result(name="memory_16k_edited_mb", value=rss["edited"] - rss["empty"], unit="MB"),
        Result(name="memory_empty_rss_mb", value=rss["empty"], unit="MB"),
    ]
