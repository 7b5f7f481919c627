"""What the `clear` of several commands share: not beside a daemon that would put it back; what was taken out is said,
or why it was not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from bgpd.cli.client import NotReachable, Refused, request
from bgpd.cli.exits import FAILED, FINE
from bgpd.cli.output import show
from bgpd.cli.settings import without_passwords
from bgpd.config.schema import Paths
from bgpd.observe.unixsocket import is_answered
from bgpd.runtime.reconcile import TargetError


def cleared(
    options: argparse.Namespace, part: str, clear: Callable[[Paths], list[str]], patterns: Collection[str] = ()
) -> int:
    """`clear` is given the configured paths and returns what it took away. TargetError: it could not.

    `part`: the key of `bgpd status -o json` that a daemon has set which does it. `patterns`: of the maps that it
    has open then, be its sockets elsewhere.
    """
    paths = without_passwords(options).paths
    if who := _keeper(paths, part, patterns):
        sys.stderr.write(f"bgpd runs and would put it back ({who}); stop that first\n")
        return FAILED
    try:
        removed = clear(paths)
    except TargetError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    for what in removed:
        show(f"removed {what}\n")
    if not removed:
        show("nothing was there\n")
    return FINE


def _keeper(paths: Paths, part: str, patterns: Collection[str]) -> str:
    """By what a daemon is known that keeps it; empty: there is none that is known."""
    socket = paths.run / "status.sock"
    if _is_kept(socket, part):
        return f"{socket} answers"
    if not patterns:
        return ""
    from bgpd.datapath.holders import daemon_with  # brings libbpf

    daemon = daemon_with(paths.bpf, patterns)
    return "" if daemon is None else f"process {daemon} has its maps open"


def _is_kept(socket: Path, part: str) -> bool:
    """Whether a daemon is there and keeps it; one that does not say may."""
    if not is_answered(socket):
        return False
    try:
        return request(socket, "status", {}, lambda text: None)[part] is not None
    except (NotReachable, Refused):
        return is_answered(socket)  # it may have ended just then
