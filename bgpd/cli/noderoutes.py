"""`bgpd noderoutes list`: how each other node's pods are reached, and why some are not. `clear`: no longer.

`clear` works without the daemon, and only without one that keeps node routes: it would put them back.
"""

from __future__ import annotations

import argparse

from bgpd.cli.ask import ask
from bgpd.cli.clear import cleared
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import print_json, show, table

COLUMNS = {"prefix": "PREFIX", "node": "NODE", "via": "VIA", "interface": "INTERFACE", "why": "WHY NOT"}


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "list: each pod CIDR of other nodes; clear: take routes and device out, once the daemon is gone"
    parser.add_argument("what", choices=("list", "clear"), help=text)


def main(options: argparse.Namespace) -> int:
    """Exit 4 when a pod CIDR is not reached as it should be."""
    if options.what == "clear":
        from bgpd.noderoutes.target import clear

        return cleared(options, "nodeRoutes", lambda paths: clear(paths.state))
    rows = ask(options, "noderoutes list")["routes"]
    if options.output == "json":
        print_json(rows)
    else:
        show(table(rows, COLUMNS) or "no other node has a pod CIDR\n")
    return DEGRADED if any(row["why"] for row in rows) else FINE
