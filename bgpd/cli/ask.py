"""Asks the running daemon something and turns failure into the exit codes every command shares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from bgpd.cli.client import NotReachable, Refused, request
from bgpd.cli.exits import NOT_REACHABLE, Exit
from bgpd.cli.rundirectory import run_directory
from bgpd.config.files import UnreadableError, read_limited
from bgpd.config.parse import LIMITS


def to_stderr(text: str) -> None:
    """Where progress goes as it comes, so that stdout stays parseable."""
    print(text, file=sys.stderr)


def ask(
    options: argparse.Namespace,
    command: str,
    arguments: dict[str, Any] | None = None,
    on_progress: Callable[[str], object] = to_stderr,
) -> dict[str, Any]:
    """The daemon's answer."""
    socket = run_directory(options.config) / "status.sock"
    try:
        return request(socket, command, arguments or {}, on_progress)
    except NotReachable as error:
        sys.stderr.write(f"bgpd: {error}\n")
        try:
            read_limited(options.config, LIMITS.bytes)
        except UnreadableError as unreadable:
            sys.stderr.write(f"bgpd: {options.config}: {unreadable}; {socket.parent} is the default of paths.run\n")
        raise Exit(NOT_REACHABLE) from None
    except Refused as error:
        sys.stderr.write(f"bgpd: {error}\n")
        raise Exit(error.exit) from None
