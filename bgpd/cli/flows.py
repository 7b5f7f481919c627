"""`bgpd flows`: packets that NetworkPolicy drops, or would drop where the namespace is in audit mode.

One line each, `-o json` one object each with `--follow`: the flow as its client began it, which rules deny it, how
many more of the pod were not told. Why there may be none goes to stderr: policy is not in force (exit 4), or the pod
is none of this node. What the daemon keeps in memory, or with `--follow` what comes from now on, until
it is interrupted or the daemon ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bgpd.cli.ask import ask
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import flush, print_json, show


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow", action="store_true", help="print what comes from now on, until interrupted")
    parser.add_argument("--verdict", choices=("dropped", "audited"), help="only these; default: both")
    parser.add_argument("--pod", metavar="NS/NAME", help="only flows from or to this pod")


def main(options: argparse.Namespace) -> int:
    asked = {"follow": options.follow, "verdict": options.verdict, "pod": options.pod}
    if options.follow:
        return _follow(options, asked)
    answer = ask(options, "flows", asked)
    if options.output == "json":
        print_json(answer)
        return DEGRADED if answer["notInForce"] else FINE
    for row in answer["flows"]:
        show(_line(row) + "\n")
    if answer["notInForce"]:
        sys.stderr.write(f"NOT IN FORCE: {answer['notInForce']}\n")
    for note in answer["notes"]:
        sys.stderr.write(f"note: {note}\n")
    for count, what in ((answer["forgotten"], "older ones are forgotten"), (answer["lost"], "were not told")):
        if count:
            sys.stderr.write(f"{count:,} {what}\n")
    return DEGRADED if answer["notInForce"] else FINE


def _follow(options: argparse.Namespace, asked: dict[str, Any]) -> int:
    """Ends as `ask` does, with the daemon, or with the operator."""
    as_json = options.output == "json"

    def tell(text: str) -> None:
        if not text:
            return  # it says that it is still there
        told = json.loads(text)
        if "note" in told:
            sys.stderr.write(f"note: {told['note']}\n")
            return
        show((text if as_json else _line(told)) + "\n")
        flush()

    ask(options, "flows", asked, tell)
    return FINE


def _line(row: dict[str, Any]) -> str:
    return f"{row['at']} {row['verdict']} {sentence(row)}"


def sentence(row: dict[str, Any]) -> str:
    """The flow, and why it is denied; of one packet whether it is a reply."""
    lost = f" (+{row['lost']:,} not told)" if row["lost"] else ""
    reply = ", a reply" if row.get("reply") else ""
    ends = f"{_end(row['client'])} -> {_end(row['server'])} {row['protocol']}{reply}"
    return f"{row['direction']} {ends}: {row['why']}{lost}"


def _end(end: dict[str, Any]) -> str:
    address = end["address"]
    if end["port"]:
        address = f"[{address}]:{end['port']}" if ":" in address else f"{address}:{end['port']}"
    return f"{end['pod']} {address}" if end["pod"] else str(address)
