"""`bgpd drain`: see `bgpd.bgp.drain` for the order of events."""

from __future__ import annotations

import argparse

from bgpd.cli.ask import ask
from bgpd.cli.exits import FINE
from bgpd.cli.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "seconds between the two steps (default: bgp.drain.waitSeconds)"
    parser.add_argument("--wait", type=float, metavar="S", help=text)


def main(options: argparse.Namespace) -> int:
    """Returns once the daemon has confirmed every step."""
    result = ask(options, "drain", {"wait_s": options.wait})
    if options.output == "json":
        print_json(result)
    return FINE
