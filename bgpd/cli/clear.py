"""What the `clear` of several commands share: what was taken out is said, or why it was not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from bgpd.cli.exits import FAILED, FINE
from bgpd.cli.output import show
from bgpd.cli.settings import without_passwords
from bgpd.config.schema import Paths
from bgpd.runtime.reconcile import TargetError


def cleared(options: argparse.Namespace, clear: Callable[[Paths], list[str]]) -> int:
    """`clear` is given the configured paths and returns what it took away. TargetError: it could not."""
    try:
        removed = clear(without_passwords(options).paths)
    except TargetError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    for what in removed:
        show(f"removed {what}\n")
    if not removed:
        show("nothing was there\n")
    return FINE
