"""`bgpd COMMAND`: the options every command shares, and which file runs which command.

Exit codes: 0 fine, 1 failed, 2 usage or configuration, 3 daemon not reachable, 4 degraded. A command module has
`HELP`, `arguments(parser)` and `main(options) -> int`, and is imported only when it is the one that was asked
for: `bgpd version` should not pay for the Kubernetes client.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from bgpd.cli.exits import FINE, Exit
from bgpd.cli.output import discard, flush

DEFAULT_CONFIG = Path("/etc/bgpd/bgpd.yaml")

COMMANDS = {
    "run": "run the daemon in the foreground (what bgpd.service does)",
    "check": "read the configuration as the daemon would, print its plan, touch nothing",
    "status": "one screen: is this node announcing what it should, and if not, why",
    "peers": "sessions: state, since when, how many routes, why down",
    "routes": "per prefix and peer: wanted, announced, why not",
    "masq": "the list of destinations that see pod addresses, and what it means for one of them",
    "noderoutes": "routes to the pods of other nodes: which way, and why not",
    "virtualservers": "virtual servers of the F5's ConfigMaps: which are served here, by which pods, and why not",
    "endpoints": "pods of this node: interface, addresses, which policies isolate them, and whether that is in force",
    "policy": "the NetworkPolicies that count on this node, and why a flow passes or does not",
    "flows": "packets that policy drops, or would drop in audit mode: the last ones, or as they come",
    "cni": "take the CNI plugin and its conflist off this node, once the daemon is gone",
    "doctor": "what this node can and cannot do, and what to change",
    "drain": "announce graceful-shutdown, wait, withdraw everything, confirm",
    "undrain": "announce again after a drain",
    "reload": "read the configuration again, as `systemctl reload bgpd` does, and say what was wrong with it",
    "speaker": "run or stop the BGP speaker (what bgpd-speaker.service does)",
    "bfd": "run the BFD daemon (what bgpd-bfd.service does)",
    "demo": "try bgpd against one peer from a temporary directory, with a Node manifest to edit",
    "version": "versions of bgpd and of what it stands on",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    name = next((word for word in words if word in COMMANDS), None)
    options = _parser(name).parse_args(words)
    try:
        code = int(importlib.import_module(f"bgpd.cli.{options.command}").main(options))
        flush()
    except Exit as end:
        return end.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of standard error, which may be the same pipe
        discard()
        return FINE
    return code


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """The parser; only the module of the command that was `asked` for is imported to add its own options."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: /etc/bgpd/bgpd.yaml"
    )
    shared.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")
    parser = argparse.ArgumentParser(
        prog="bgpd",
        description="Pod routes at the ToR switches by BGP, beside the CNI you already run.",
        parents=[shared],
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inherited = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    inherited.add_argument("--config", type=Path, metavar="FILE")
    inherited.add_argument("-o", "--output", choices=("table", "json"))
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[inherited])
        if name == asked:
            importlib.import_module(f"bgpd.cli.{name}").arguments(sub)
    return parser
