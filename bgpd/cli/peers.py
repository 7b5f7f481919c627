"""`bgpd peers`: the sessions, and for each that is not up the reason."""

from __future__ import annotations

import argparse
from typing import Any

from bgpd.cli.ask import ask
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import duration, print_json, show, table

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
    """Exit 4 when a session is not up, or has a WHY all the same: whenever `bgpd status` has a problem with it."""
    rows = ask(options, "peers")["peers"]
    if options.output == "json":
        print_json(rows)
    else:
        show(render(rows))
    return FINE if all(row["state"] == "up" and not _why(row) for row in rows) else DEGRADED


def render(rows: list[dict[str, object]]) -> str:
    """The table; also a part of `bgpd status`."""
    shown = [
        {
            **row,
            "bfd": row["bfd"]["state"] if row.get("bfd") else None,  # type: ignore[index]
            "since": duration(row.get("since_s")),  # type: ignore[arg-type]
            "routes": _announced(row),
            "eor": len(row.get("endOfRIB", ())) if row["state"] == "up" else None,  # type: ignore[arg-type]
            "why": _why(row),
        }
        for row in rows
    ]
    columns = COLUMNS
    if any(row["bfd"] for row in shown):
        before = list(COLUMNS).index("since")
        columns = dict([*list(COLUMNS.items())[:before], *BFD.items(), *list(COLUMNS.items())[before:]])
    return table(shown, columns)


def _why(row: dict[str, Any]) -> str:
    """What the daemon says; else that BFD does not answer, which to the daemon is one problem of the node's."""
    bfd = row.get("bfd")
    return row["why"] or ("BFD does not answer: see `bgpd status`" if bfd and bfd["state"] == "unknown" else "")


def _announced(row: dict[str, object]) -> str:
    """How many routes of how many; `?` when that is not known, `-` of a peer without a session."""
    if "wanted" not in row:
        return "-"
    return f"{'?' if row['announced'] is None else row['announced']}/{row['wanted']}"
