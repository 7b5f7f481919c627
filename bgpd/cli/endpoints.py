"""`bgpd endpoints`: the pods of this node as NetworkPolicy sees them.

States: enforced; audit (what would be dropped is told and passes); unattached (enforced by the addresses that
Kubernetes shows, but what the pod sends as is not checked); closed (nothing passes: Kubernetes has not shown the pod
yet); blocked (not brought up to date, and why).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from bgpd.cli.ask import ask
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import print_json, show, table
from bgpd.model.brief import brief

COLUMNS = {
    "who": "POD",
    "interface": "INTERFACE",
    "kind": "KIND",
    "link": "LINK",
    "addresses": "ADDRESSES",
    "state": "STATE",
    "isolated": "ISOLATED BY",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    """Exit 4 when one is blocked."""
    rows = ask(options, "endpoints")["endpoints"]
    if options.output == "json":
        print_json(rows)
    else:
        show(table([_row(row) for row in rows], COLUMNS) or "no pods\n")
        show("".join(_reasons(rows)))
    return DEGRADED if any(row["state"] == "blocked" for row in rows) else FINE


def _reasons(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each once, with whom it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["why"]:
            about.setdefault(f"{row['state']}: {row['why']}", []).append(_who(row))
    for reason, names in about.items():
        yield f"\n{reason}\n  {', '.join(brief(names))}\n"


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"who": _who(row), "isolated": "; ".join(_isolated(row))}


def _who(row: dict[str, Any]) -> str:
    return str(row["pod"] or row["attachment"])


def _isolated(row: dict[str, Any]) -> list[str]:
    """By direction; by no policy: Kubernetes has not shown the pod."""
    shown = ((direction, row[direction]) for direction in ("ingress", "egress"))
    return [f"{direction} {' '.join(by) or 'closed'}" for direction, by in shown if by is not None]
