"""What `masq clear` and `policy clear` share: what was taken out of the kernel is said, or why it was not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bgpd.cli.exits import FAILED, FINE
from bgpd.cli.settings import without_passwords
from bgpd.runtime.reconcile import TargetError


def cleared(options: argparse.Namespace, clear: Callable[[Path], list[str]]) -> int:
    """`clear` is given the directory of pins and returns what it took away. TargetError: it could not."""
    try:
        removed = clear(without_passwords(options).paths.bpf)
    except TargetError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    for what in removed:
        sys.stdout.write(f"removed {what}\n")
    if not removed:
        sys.stdout.write("nothing was there\n")
    return FINE
