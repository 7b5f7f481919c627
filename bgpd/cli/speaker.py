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
from bgpd.cli.rundirectory import run_directory
from bgpd.config.defaults import MAX_BYTES
from bgpd.config.files import UnreadableError, read_limited

STOP_TIMEOUT_S = 20.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("run", "stop"))


def main(options: argparse.Namespace) -> int:
    """`run` does not return unless ExaBGP cannot be started."""
    if options.action == "stop":
        return _stop(options)
    files = launch.SpeakerFiles(run_directory(options.config))
    try:
        settings = _settings(options)
        if settings is None or not files.is_prepared(settings):
            files = _prepared(options, settings)
        command = launch.command(files)
        os.execve(command[0], command, launch.environment(files))  # noqa: S606 - no shell is meant
    except OSError as error:
        sys.stderr.write(f"bgpd speaker: {error}\n")
        return FAILED


def _settings(options: argparse.Namespace) -> bytes | None:
    """The configuration file; None: it cannot be read, which `_prepared` tells."""
    try:
        return read_limited(options.config, MAX_BYTES).data
    except UnreadableError:
        return None


def _prepared(options: argparse.Namespace, settings: bytes | None) -> launch.SpeakerFiles:
    """By the whole configuration. To read it takes longer than the rest of the start: it is done once for each."""
    from bgpd.cli.settings import without_passwords  # brings pydantic, and all it builds

    config = without_passwords(options)
    files = launch.SpeakerFiles(config.paths.run)
    files.prepare(launch.header(files, config.bgp.end_of_rib_timeout_seconds), settings)
    return files


def _stop(options: argparse.Namespace) -> int:
    files = launch.SpeakerFiles(run_directory(options.config))
    try:
        withdraw_everything(files.socket, STOP_TIMEOUT_S, lambda text: print(f"speaker: {text}", file=sys.stderr))
    except StopError as error:
        sys.stderr.write(f"bgpd speaker: {error}\n")
        return FAILED
    return FINE
