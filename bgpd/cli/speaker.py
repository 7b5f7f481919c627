"""`bgpd speaker run|stop`: what bgpd-speaker.service calls.

`run` becomes ExaBGP. `stop` withdraws everything first, so that graceful restart does not keep the routes of a
node that leaves; systemd sends SIGTERM afterwards.
"""

from __future__ import annotations

import argparse
import os
import sys

from bgpd.bgp import launch
from bgpd.bgp.stop import StopError, withdraw_everything
from bgpd.cli.exits import FAILED, FINE
from bgpd.cli.settings import run_directory, without_passwords

STOP_TIMEOUT_S = 20.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("run", "stop"))


def main(options: argparse.Namespace) -> int:
    """`run` does not return unless ExaBGP cannot be started."""
    if options.action == "stop":
        return _stop(options)
    config = without_passwords(options)
    files = launch.SpeakerFiles(config.paths.run)
    try:
        files.prepare(launch.header(files, config.bgp.end_of_rib_timeout_seconds))
        command = launch.command(files)
        os.execve(command[0], command, launch.environment(files))  # noqa: S606 - no shell is meant
    except OSError as error:
        sys.stderr.write(f"bgpd speaker: {error}\n")
        return FAILED


def _stop(options: argparse.Namespace) -> int:
    files = launch.SpeakerFiles(run_directory(options))
    try:
        withdraw_everything(files.socket, STOP_TIMEOUT_S, lambda text: print(f"speaker: {text}", file=sys.stderr))
    except StopError as error:
        sys.stderr.write(f"bgpd speaker: {error}\n")
        return FAILED
    return FINE
