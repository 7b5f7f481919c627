"""`bgpd routes [--peer P]`: per prefix and peer what is wanted, what is announced, and why not."""

from __future__ import annotations

import argparse

from bgpd.cli.ask import ask
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import print_json, show, table

COLUMNS = {
    "prefix": "PREFIX",
    "peer": "PEER",
    "wanted": "WANTED",
    "announced": "ANNOUNCED",
    "nextHop": "NEXT HOP",
    "communities": "COMMUNITIES",
    "why": "WHY NOT",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", metavar="P", help="only routes towards this peer")


def main(options: argparse.Namespace) -> int:
    """Exit 4 when something wanted is not announced."""
    rows = ask(options, "routes", {"peer": options.peer})["routes"]
    if options.output == "json":
        print_json(rows)
    else:
        show(table(rows, COLUMNS) or "no routes are wanted, none are announced\n")
    return FINE if all(row["announced"] and not row["why"] for row in rows if row["wanted"]) else DEGRADED
