"""`bgpd bfd run`: what bgpd-bfd.service calls. It becomes BIRD, with the configuration that the daemon writes."""

from __future__ import annotations

import argparse
import os
import sys

from bgpd.bgp.bird import MISSING, BirdFiles, program
from bgpd.cli.exits import FAILED
from bgpd.cli.rundirectory import run_directory


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("run",))


def main(options: argparse.Namespace) -> int:
    """Does not return unless BIRD cannot be started."""
    bird, files = program(), BirdFiles(run_directory(options.config))
    if bird is None:
        sys.stderr.write(f"bgpd bfd: {MISSING}\n")
        return FAILED
    try:
        files.prepare()
        command = files.command(bird)
        os.execv(command[0], command)  # noqa: S606 - no shell is meant
    except OSError as error:
        sys.stderr.write(f"bgpd bfd: {error}\n")
        return FAILED
