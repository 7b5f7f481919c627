"""`bgpd run`: the daemon in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import sys

from bgpd.cli.exits import FAILED, FINE
from bgpd.cli.settings import configuration


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    """Returns when the daemon was asked to stop (0) or could not start (1, 2)."""
    loaded = configuration(options)
    from bgpd.daemon import Daemon, StartError  # not before the configuration is known to be good

    try:
        asyncio.run(Daemon(options.config, loaded).run())
    except StartError as error:
        sys.stderr.write(f"bgpd: {error}\n")
        return FAILED
    return FINE
