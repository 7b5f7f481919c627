"""`bgpd reload`: makes the daemon read its configuration again and says what came of it."""

from __future__ import annotations

import argparse

from bgpd.cli.ask import ask
from bgpd.cli.exits import FINE
from bgpd.cli.output import print_json, show


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    """Exit 2, with every fault, when the file is refused; the daemon then keeps its last good one."""
    result = ask(options, "reload")
    if options.output == "json":
        print_json(result)
        return FINE
    show("configuration loaded\n")
    for text in result["warnings"]:
        show(f"warning: {text}\n")
    for unit, keys in (
        ("bgpd.service", result["needsRestart"]),
        ("bgpd-speaker.service", result["needsSpeakerRestart"]),
    ):
        for key in keys:
            show(f"{key} takes effect at the next restart of {unit}\n")
    return FINE
