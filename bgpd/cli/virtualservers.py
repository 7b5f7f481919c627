"""`bgpd virtualservers list`: each virtual server with its pods here, and what its monitors say. `clear`: none of it.

`clear` works without the daemon, and only without one that serves virtual servers: it would put the table back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from bgpd.cli.ask import ask
from bgpd.cli.clear import cleared
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import print_json, show, table
from bgpd.model.virtualserver import LABEL

COLUMNS = {"name": "VIRTUAL SERVER", "frontend": "ADDRESS", "member": "POD", "state": "STATE", "why": "WHY"}


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "list: addresses, pods and what the monitors say; clear: take the table out, once the daemon is gone"
    parser.add_argument("what", choices=("list", "clear"), help=text)


def main(options: argparse.Namespace) -> int:
    """Exit 4 when a virtual server is not served, or a pod of one is down."""
    if options.what == "clear":
        from bgpd.virtualservers.serving import clear

        return cleared(options, "virtualServers", lambda paths: clear(paths.state))
    servers = ask(options, "virtualservers list")["virtualServers"]
    if options.output == "json":
        print_json(servers)
    else:
        rows = [row for server in servers for row in _rows(server)]
        show(table(rows, COLUMNS) or f"no ConfigMap has the label {'='.join(LABEL)}\n")
        for text in (text for server in servers for text in (*server["faults"], *server["warnings"])):
            sys.stderr.write(f"{text}\n")
    return DEGRADED if any(server["why"] for server in servers) else FINE


def _rows(server: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The first has the virtual server itself, each of the others a pod."""
    frontend = f"{server['address']} {server['port']}/{server['protocol']}" if server["address"] else ""
    status = "served" if server["served"] else "not served"
    if server["lastResort"]:
        status = "last resort"
    row = {"name": server["name"], "frontend": frontend, "member": "", "state": status, "why": server["why"]}
    yield row
    for member in server["members"]:
        host = f"[{member['address']}]" if ":" in member["address"] else member["address"]
        state = {"member": f"{host}:{member['port']}", "state": member["state"], "why": _said(member)}
        yield dict.fromkeys(("name", "frontend"), "") | state


def _said(member: dict[str, Any]) -> str:
    """Of its monitors: what is failing, else what is strange."""
    failing = [each["lastFailure"] for each in member["monitors"] if each["failing"]]
    notes = [each["note"] for each in member["monitors"] if each["note"] and not each["failing"]]
    return "; ".join(failing or notes)
