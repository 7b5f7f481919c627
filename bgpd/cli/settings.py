"""What a command takes from the configuration file, and how it complains about it."""

from __future__ import annotations

import argparse
import sys

from bgpd.cli.exits import USAGE, Exit
from bgpd.config.files import UnreadableError, read_limited
from bgpd.config.load import Loaded, load
from bgpd.config.parse import parse
from bgpd.config.schema import Config
from bgpd.model.fault import Fault, FaultsError


def configuration(options: argparse.Namespace) -> Loaded:
    """The configuration with the passwords it names, or Exit(2) with every fault printed."""
    try:
        return load(options.config)
    except FaultsError as error:
        raise _refused(error) from None


def without_passwords(options: argparse.Namespace) -> Config:
    """The configuration for a process that may not read the passwords; Exit(2) with every fault printed."""
    try:
        contents = read_limited(options.config)
        return parse(contents.data, str(options.config)).config
    except UnreadableError as error:
        raise _refused(FaultsError((Fault(str(options.config), 0, 0, "", str(error)),))) from None
    except FaultsError as error:
        raise _refused(error) from None


def _refused(error: FaultsError) -> Exit:
    for fault in error.faults:
        sys.stderr.write(f"{fault}\n")
    return Exit(USAGE)
