"""`bgpd masq list`, `masq test IP`: which destinations see pods with their own addresses. `masq clear`: none of it.

`list` prints what `cilium bpf ipmasq list` prints, `-o json` included: an array of CIDRs, of objects with `--hits`.
What is odd about the list goes to stderr.

`clear` works without the daemon, and only without one that masquerades: after it is gone or has been told not to.
"""

from __future__ import annotations

import argparse
import sys

from bgpd.cli.ask import ask
from bgpd.cli.clear import cleared
from bgpd.cli.exits import FINE, USAGE
from bgpd.cli.output import print_json, show, table


def arguments(parser: argparse.ArgumentParser) -> None:
    text = (
        "list: what is in the kernel, as `cilium bpf ipmasq list` prints it; test: what becomes of flows to IP; "
        "clear: take rule, program and maps out of the kernel, once the daemon is gone"
    )
    parser.add_argument("what", choices=("list", "test", "clear"), help=text)
    parser.add_argument("address", nargs="?", metavar="IP", help="for test: a destination")
    parser.add_argument("--hits", action="store_true", help="for list: with the flows that each entry has covered")


def main(options: argparse.Namespace) -> int:
    if (options.what == "test") != (options.address is not None) or (options.hits and options.what != "list"):
        sys.stderr.write("usage: bgpd masq list [--hits] | bgpd masq test IP | bgpd masq clear\n")
        return USAGE
    return {"list": _list, "test": _test, "clear": _clear}[options.what](options)


def _list(options: argparse.Namespace) -> int:
    answer = ask(options, "masq list", {"hits": options.hits})
    if options.output == "json":
        print_json(answer["entries"] if options.hits else [row["prefix"] for row in answer["entries"]])
        return FINE
    columns = {"prefix": "IP PREFIX/ADDRESS"} | ({"hits": "HITS"} if options.hits else {})
    show(table(answer["entries"], columns) or "IP PREFIX/ADDRESS\n")
    for finding in answer["findings"]:
        sys.stderr.write(f"warning: {finding}\n")
    return FINE


def _test(options: argparse.Namespace) -> int:
    answer = ask(options, "masq test", {"address": options.address})
    if options.output == "json":
        print_json(answer)
        return FINE
    fate = {True: "kept", False: "SNATed", None: "unknown"}[answer["kept"]]
    to = f" to {answer['snatTo']}" if answer["snatTo"] else ""
    by = f": {answer['entry']}" if answer["entry"] else ""
    late = "" if answer.get("inForce", True) else "; not in force yet, `bgpd status` says why"
    show(f"{answer['address']}: {fate}{to} ({answer['why']}{by}){late}\n")
    return FINE


def _clear(options: argparse.Namespace) -> int:
    from bgpd.masq.masquerading import PINS, clear  # brings libbpf and nf_tables

    return cleared(options, "masquerade", lambda paths: clear(paths.bpf), PINS)
