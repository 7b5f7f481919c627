"""`bgpd version`: ours and those of what we stand on, for a bug report."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version

from bgpd import __version__
from bgpd.cli.exits import FINE
from bgpd.cli.output import print_json, show

PARTS = ("exabgp", "kubernetes", "pyroute2", "prometheus-client", "structlog")


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    found = {"bgpd": __version__, "python": platform.python_version(), "kernel": platform.release()}
    found |= {part: version(part) for part in PARTS}
    if options.output == "json":
        print_json(found)
    else:
        show("".join(f"{name:<18} {text}\n" for name, text in found.items()))
    return FINE
