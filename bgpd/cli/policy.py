"""`bgpd policy list`: the NetworkPolicies that count on this node. `policy explain SRC DST[:PORT/PROTO]`: why.

`policy audit [NAMESPACE]`: what ending audit mode would drop. `policy clear`: none of it, once the daemon is gone or
has been told not to.

`explain` says what the maps in the kernel make of a flow, and holds that to what the policies say. Its exit code is 4
where the two differ, or where what is in the maps is not in force.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from bgpd.cli.ask import ask
from bgpd.cli.clear import cleared
from bgpd.cli.exits import DEGRADED, FINE, USAGE
from bgpd.cli.flows import sentence
from bgpd.cli.output import print_json, show
from bgpd.model.brief import brief

USAGE_TEXT = (
    "usage: bgpd policy list | bgpd policy explain SRC DST[:PORT/PROTO] | bgpd policy audit [NAMESPACE] "
    "| bgpd policy clear\n"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    text = (
        "list: those that select pods of this node; explain: whether and why SRC reaches DST; "
        "audit: what would be dropped if NAMESPACE, or each that is in audit mode, no longer was; "
        "clear: take tables, programs and maps out of the kernel, once the daemon is gone"
    )
    parser.add_argument("what", choices=("list", "explain", "audit", "clear"), help=text)
    end = "a pod as namespace/name, or an address"
    parser.add_argument("client", nargs="?", metavar="SRC", help=f"for explain: {end}; for audit: a namespace")
    text = f"for explain: {end}, IPv6 in brackets; :80 is :80/tcp; without a port it is about a ping"
    parser.add_argument("server", nargs="?", metavar="DST[:PORT/PROTO]", help=text)


def main(options: argparse.Namespace) -> int:
    is_meant = options.client is None or options.what in ("explain", "audit")
    if (options.what == "explain") != (options.server is not None) or not is_meant:
        sys.stderr.write(USAGE_TEXT)
        return USAGE
    return {"list": _list, "explain": _explain, "audit": _audit, "clear": _clear}[options.what](options)


def _list(options: argparse.Namespace) -> int:
    answer = ask(options, "policy list")
    if options.output == "json":
        print_json(answer["policies"])
    else:
        blocks = [_policy(row) for row in answer["policies"]]
        show("\n".join(blocks) or "no policy selects a pod of this node\n")
    for problem in answer["problems"]:
        sys.stderr.write(f"{problem}\n")
    return DEGRADED if answer["problems"] else FINE


def _policy(row: dict[str, Any]) -> str:
    lines = [f"{row['policy']}  ({_size(row)})", f"  pods     {' '.join(row['pods'])}"]
    lines += [f"  PROBLEM  {problem}" for problem in row["problems"]]
    for direction in ("ingress", "egress"):
        rules = row[direction]
        if rules is not None:
            lines += [f"  {direction:<8} {rule}" for rule in brief(rules) or ["nothing"]]
    return "\n".join(lines) + "\n"


def _size(row: dict[str, Any]) -> str:
    """Of a policy that is held back what is in force is what it said before, to some pods."""
    entries, blocked = f"{row['entries']:,} entries", row["blocked"]
    if blocked is None:
        return entries
    return f"blocked: {blocked['entries']:,} new entries do not fit into {blocked['map']}; {entries} are in force"


def _explain(options: argparse.Namespace) -> int:
    answer = ask(options, "policy explain", {"client": options.client, "server": options.server})
    if options.output == "json":
        print_json(answer)
    else:
        show("\n".join(_answer(answer)) + "\n")
    return DEGRADED if answer["disagreement"] or answer["notInForce"] else FINE


def _answer(answer: dict[str, Any]) -> Iterator[str]:
    if answer["disagreement"]:
        yield f"DISAGREEMENT: {answer['disagreement']}"
    if answer["notInForce"]:
        yield f"NOT IN FORCE: {answer['notInForce']}"
    yield from (f"note: {note}" for note in answer["notes"])
    for flow in answer["flows"]:
        port = f":{flow['port']}" if flow["port"] else ""
        ends = f"{_end(flow['client'])} -> {_end(flow['server'])}, {flow['protocol']}{port}"
        here = all(flow[direction]["judgedHere"] for direction in ("egress", "ingress"))
        fate = "PASSES" if here else "PASSES as far as this node judges"
        yield f"{ends}: {fate if flow['passes'] else 'DROPPED'}"
        for direction in ("egress", "ingress"):
            yield from _direction(direction, flow[direction])


def _direction(name: str, shown: dict[str, Any]) -> Iterator[str]:
    by = f": {shown['rule']}" if shown["rule"] else ""
    yield f"  {name:<8} {shown['verdict'] if shown['judgedHere'] else 'not here'}, {shown['why']}{by}"
    if shown["policies"]:
        yield f"           isolated by {', '.join(shown['policies'])}"
    yield from (f"           {text}" for text in brief(shown["wouldChange"]))
    if shown["disagreement"]:
        yield f"           DISAGREEMENT: {shown['disagreement']}"


def _end(shown: dict[str, Any]) -> str:
    return f"{shown['pod']} ({shown['address']})" if shown["pod"] else str(shown["address"])


def _audit(options: argparse.Namespace) -> int:
    answer = ask(options, "policy audit", {"namespace": options.client})
    if options.output == "json":
        print_json(answer)
    else:
        show("".join(f"{line}\n" for line in _audited(answer)) or "no namespace is in audit mode\n")
        if answer["forgotten"]:
            sys.stderr.write(f"{answer['forgotten']:,} older flows are forgotten\n")
        if answer["notInForce"]:
            sys.stderr.write(f"NOT IN FORCE: {answer['notInForce']}\n")
    return DEGRADED if answer["notInForce"] else FINE


def _audited(answer: dict[str, Any]) -> Iterator[str]:
    for row in answer["namespaces"]:
        yield f"{row['namespace']}: of {row['pods']:,} pods on this node {row['isolated']:,} are isolated"
        flows = [flow for flow in answer["flows"] if flow["namespace"] == row["namespace"]]
        for flow in flows:
            yield f"  {flow['last']} {flow['times']:,}x {sentence(flow)}"
        if not flows:
            yield "  nothing that would be dropped was seen since bgpd started"


def _clear(options: argparse.Namespace) -> int:
    from bgpd.cni.journal import namespaces
    from bgpd.policy.clear import PINS, clear  # brings nf_tables

    return cleared(options, "policy", lambda paths: clear(paths.bpf, namespaces(paths.state)), PINS)
