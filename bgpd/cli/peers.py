"""`bgpd peers`: the sessions, and for each that is not up the reason."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bgpd.cli.ask import ask
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import duration, print_json, table

BFD = {"bfd": "BFD"}  # a column where a peer has it
COLUMNS = {
    "peer": "PEER",
    "address": "ADDRESS",
    "asn": "ASN",
    "state": "STATE",
    "since": "SINCE",
    "flaps": "FLAPS",
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
            "bfd": row["bfd"]["state"] if row.get("bfd") else None,  # type: ignore[index]
            "since": duration(row.get("since_s")),  # type: ignore[arg-type]
            "routes": _announced(row),
            "eor": len(row.get("endOfRIB", ())) if row["state"] == "up" else None,  # type: ignore[arg-type]
            "why": row["why"] or _unwatched(row.get("bfd")),
        }
        for row in rows
    ]
    columns = COLUMNS
    if any(row["bfd"] for row in shown):
        before = list(COLUMNS).index("since")
        columns = dict([*list(COLUMNS.items())[:before], *BFD.items(), *list(COLUMNS.items())[before:]])
    return table(shown, columns)


def _unwatched(bfd: Any) -> str:
    """Of a session that is well itself. To the daemon this is one problem of the node's, not one of each peer's."""
    return "BFD does not answer: see `bgpd status`" if bfd and bfd["state"] == "unknown" else ""


def _announced(row: dict[str, object]) -> str:
    """How many routes of how many; `?` when that is not known, `-` of a peer without a session."""
    if "wanted" not in row:
        return "-"
    return f"{'?' if row['announced'] is None else row['announced']}/{row['wanted']}"
