"""Where the sockets of this node's processes are, without reading the configuration as a whole.

That takes a third of a second of processor time, which a speaker that has to be back does not have.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from bgpd.config.defaults import MAX_BYTES, RUN_DIRECTORY
from bgpd.config.files import UnreadableError, read_limited


def run_directory(configuration: Path) -> Path:
    """Found also in a file that has become faulty: a daemon may run on its last good one."""
    try:
        document = yaml.safe_load(read_limited(configuration, MAX_BYTES).data)
        return Path(document["paths"]["run"])
    except (UnreadableError, yaml.YAMLError, RecursionError, KeyError, TypeError, ValueError):
        return RUN_DIRECTORY
