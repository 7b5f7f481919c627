"""What an operator would write instead: watches the node at the API server and rewrites a BGP daemon's routes.

    watch_script.py bird  --file ROUTES --control SOCKET       rewrites a part of bird.conf, `birdc configure`
    watch_script.py gobgp --target API --next-hop ADDRESS      `gobgp global rib add`, then `del`
    (both)  --server HOST:PORT --ca FILE --token FILE --node NAME

An honest opponent for `latency`: a list, then one watch on a connection that stays open, without a client
library in between, and as few processes started per change as the daemon's own tools allow. It does what is
needed for that and nothing of what a daemon owes: no retry, no check, no memory. Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Announce = Callable[[set[str], set[str]], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("daemon", choices=("bird", "gobgp"))
    for name in ("server", "ca", "token", "node"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("file", "control", "target", "next-hop"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    follow(options, with_bird(options) if options.daemon == "bird" else with_gobgp(options))


def follow(options: argparse.Namespace, announce: Announce) -> None:
    """Announces the pod CIDRs the node has, and again whenever it has others."""
    connection = http.client.HTTPSConnection(options.server, context=ssl.create_default_context(cafile=options.ca))
    path = f"/api/v1/nodes?fieldSelector=metadata.name%3D{options.node}"
    headers = {"Authorization": f"Bearer {Path(options.token).read_text().strip()}"}
    connection.request("GET", path, headers=headers)
    listing = json.load(connection.getresponse())
    announced: set[str] = set()
    for node in listing["items"]:
        announced = settle(announced, node, announce)
    version = listing["metadata"]["resourceVersion"]
    connection.request("GET", f"{path}&watch=true&resourceVersion={version}", headers=headers)
    stream = connection.getresponse()
    while line := stream.readline():
        event = json.loads(line)
        if event["type"] in ("ADDED", "MODIFIED"):
            announced = settle(announced, event["object"], announce)


def settle(announced: set[str], node: dict[str, Any], announce: Announce) -> set[str]:
    wanted = set(node.get("spec", {}).get("podCIDRs", ()))
    if not wanted or wanted == announced:
        return announced
    announce(wanted, announced - wanted)
    return wanted


def with_bird(options: argparse.Namespace) -> Announce:
    file = Path(options.file)

    def announce(wanted: set[str], gone: set[str]) -> None:
        temporary = file.with_suffix(".new")
        temporary.write_text("".join(f"route {prefix} blackhole;\n" for prefix in sorted(wanted)))
        temporary.rename(file)
        subprocess.run(["birdc", "-s", options.control, "configure"], stdout=subprocess.DEVNULL, check=True)

    return announce


def with_gobgp(options: argparse.Namespace) -> Announce:
    def tell(*words: str) -> None:
        subprocess.run(["gobgp", "--target", options.target, "global", "rib", *words], check=True)

    def announce(wanted: set[str], gone: set[str]) -> None:
        for prefix in sorted(wanted):
            tell("add", prefix, "nexthop", options.next_hop)
        for prefix in sorted(gone):
            tell("del", prefix)

    return announce


if __name__ == "__main__":
    main()
