"""`bgpd peers`: the sessions, and for each that is not up the reason."""

from __future__ import annotations

import argparse
import sys

from bgpd.cli.ask import ask
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import duration, print_json, table

COLUMNS = {
    "peer": "PEER",
    "address": "ADDRESS",
    "asn": "ASN",
    "state": "STATE",
    "since": "SINCE",
    "routes": "ANNOUNCED",
    "eor": "EOR",
    "why": "WHY",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    """Exit 4 when a session that should be up is not."""
    rows = ask(options, "peers")["peers"]
    if options.output == "json":
        print_json(rows)
    else:
        sys.stdout.write(render(rows))
    return FINE if all(row["state"] in ("up", "idle") for row in rows) else DEGRADED


def render(rows: list[dict[str, object]]) -> str:
    """The table; also a part of `bgpd status`."""
    shown = [
        {
            **row,
            "since": duration(row.get("since_s")),  # type: ignore[arg-type]
            "routes": f"{row['announced']}/{row['wanted']}" if "wanted" in row else "-",
            "eor": len(row.get("endOfRIB", ())) if row["state"] == "up" else None,  # type: ignore[arg-type]
        }
        for row in rows
    ]
    return table(shown, COLUMNS)
