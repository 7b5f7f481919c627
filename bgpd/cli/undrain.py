"""`bgpd undrain`: see `bgpd.bgp.drain` for the order of events."""

from __future__ import annotations

import argparse

from bgpd.cli.ask import ask
from bgpd.cli.exits import FINE
from bgpd.cli.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    """Returns once the daemon has confirmed every step."""
    result = ask(options, "undrain")
    if options.output == "json":
        print_json(result)
    return FINE
