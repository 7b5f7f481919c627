"""`bgpd cni clear`: takes the CNI plugin and its conflist off this node, once the daemon is gone.

A script is left in the plugin's place while the runtime remembers pods that were attached with it; which command
removes it later is said.
"""

from __future__ import annotations

import argparse
import sys

from bgpd.cli.exits import FAILED, FINE
from bgpd.cli.output import show
from bgpd.cli.settings import without_passwords
from bgpd.cni.clear import Cleared, clear
from bgpd.cni.conflist import SOCKET
from bgpd.cni.publish import Places
from bgpd.observe.unixsocket import is_answered


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "clear: remove the conflist and the plugin, which makes the node's own network configuration count again"
    parser.add_argument("what", choices=("clear",), help=text)


def main(options: argparse.Namespace) -> int:
    paths = without_passwords(options).paths
    served = paths.run / SOCKET.name
    if is_answered(served):
        sys.stderr.write(f"bgpd runs and would write them again ({served} answers); stop that first\n")
        return FAILED
    try:
        _tell(clear(Places(paths.cni_conf, paths.cni_bin), paths.cni_cache))
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return FAILED
    return FINE


def _tell(cleared: Cleared) -> None:
    for file in cleared.removed:
        show(f"removed {file}\n")
    if cleared.needed_by:
        count = len(cleared.needed_by)
        show(
            f"left {cleared.plugin}, which now only lets pods go: the runtime remembers {count} attachment"
            f"{'s' * (count > 1)} made with it ({cleared.needed_by[0].parent}). Once those pods are gone: "
            f"rm {cleared.plugin}\n"
        )
    elif not cleared.removed:
        show("nothing was there\n")
