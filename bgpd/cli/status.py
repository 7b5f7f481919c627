"""`bgpd status`: one screen that answers whether this node announces what it should, and if not, why."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from bgpd.cli import peers
from bgpd.cli.ask import ask
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.output import by_family, duration, print_json, show
from bgpd.model.brief import brief


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    """Exit 4 when `problems` is not empty."""
    status = ask(options, "status")
    if options.output == "json":
        print_json(status)
    else:
        show(render(status))
    return DEGRADED if status["problems"] else FINE


def render(status: dict[str, Any]) -> str:
    """The screen."""
    source, speaker = status["source"], status["speaker"]
    lines = [
        f"node      {status['node']}, bgpd {status['version']}, up {duration(status['uptime_s'])}",
        f"config    {status['config']['file']}: {status['config']['state']}",
        *_pending(status["config"]),
        f"source    {source['kind']}: {source['state']}{_error(source)}",
        f"pod CIDRs {' '.join(brief(status['podCIDRs'])) or '-'}",
        f"speaker   {'connected' if speaker['connected'] else speaker['reason']}",
        f"drain     {status['drain']}",
        *_cilium_bgp(status.get("ciliumBGP")),
        *_masquerade(status.get("masquerade")),
        *_policy(status.get("policy")),
        *_node_routes(status.get("nodeRoutes")),
        *_host_routes(status.get("hostRoutes")),
        *_virtual_servers(status.get("virtualServers")),
        *_services(status.get("services")),
        "",
        peers.render(status["peers"]).rstrip("\n"),
    ]
    if status["problems"]:
        lines += ["", "problems:", *(f"  - {problem}" for problem in status["problems"])]
    return "\n".join(lines) + "\n"


def _pending(config: dict[str, Any]) -> Iterator[str]:
    """A line for each unit whose restart is waited for, with what waits."""
    for unit, waits in (("bgpd.service", "needsRestart"), ("bgpd-speaker.service", "needsSpeakerRestart")):
        if keys := config.get(waits):  # else nothing, or a daemon of an earlier release
            yield f"          not in use before {unit} is restarted: {', '.join(keys)}"


def _cilium_bgp(objects: dict[str, Any] | None) -> list[str]:
    """A line while Cilium's objects say what the sessions are."""
    if objects is None:
        return []
    chosen = objects["clusterConfig"]
    return [f"sessions  {f'CiliumBGPClusterConfig {chosen}' if chosen else 'no CiliumBGPClusterConfig selects it'}"]


def _masquerade(masquerade: dict[str, Any] | None) -> list[str]:
    """A line while it is on: the document, what became of it, what there is of it in the kernel."""
    if masquerade is None:  # off, or a daemon of an earlier release
        return []
    odd = "; `bgpd doctor` has warnings about it" if masquerade["findings"] else ""
    document = f"{masquerade['document']}: " if masquerade["document"] else "document "
    entries = f"{by_family(masquerade['entries'])} entries in the kernel"
    return [f"masq      {document}{masquerade['state']}, {entries}{odd}"]


def _policy(policy: dict[str, Any] | None) -> list[str]:
    """A line while it is on: how many endpoints are in which state, and of how many policies."""
    if policy is None:  # off, or a daemon of an earlier release
        return []
    endpoints = ", ".join(f"{count:,} {state}" for state, count in policy["endpoints"].items() if count)
    return [f"policy    {policy['policies']:,} NetworkPolicies isolate pods here; endpoints: {endpoints or 'none'}"]


def _node_routes(node_routes: dict[str, Any] | None) -> list[str]:
    """A line while they are on: how many, by their way, and how many pod CIDRs go without."""
    if node_routes is None:  # off, or a daemon of an earlier release
        return []
    counts = ", ".join(f"{count:,} {how}" for how, count in sorted(node_routes["routes"].items())) or "none"
    without = node_routes["held"] + node_routes["unreachable"]
    lacking = f"; {without:,} pod CIDRs without" if without else ""
    return [f"node rts  {node_routes['mode']}: {counts}{lacking}"]


def _host_routes(host_routes: dict[str, Any] | None) -> list[str]:
    """A line while they are on: how many addresses are announced one by one, and which are not."""
    if host_routes is None:  # off, or a daemon of an earlier release
        return []
    withheld = brief([f"{each['address']} of {each['pod']}" for each in host_routes["withheld"]])
    lacking = f"; withheld: {', '.join(withheld)}" if withheld else ""
    return [f"host rts  {len(host_routes['wanted']):,} wanted{lacking}"]


def _virtual_servers(servers: dict[str, Any] | None) -> list[str]:
    """A line while they are on: how many, and how many of them this node serves."""
    if servers is None:  # off, or a daemon of an earlier release
        return []
    odd = "; `bgpd virtualservers list` has warnings about them" if servers["warnings"] else ""
    return [f"virtual   {servers['served']:,} of {servers['virtualServers']:,} virtual servers are served here{odd}"]


def _services(services: dict[str, Any] | None) -> list[str]:
    """A line while any are meant: how many addresses, by what became of them."""
    if services is None:  # none are meant, or a daemon of an earlier release
        return []
    counts = ", ".join(f"{count:,} {state}" for state, count in services["addresses"].items() if count)
    return [f"services  addresses: {counts or 'none'}"]


def _error(source: dict[str, Any]) -> str:
    """What is wrong with it; of a source that is well again, what was."""
    if not source["lastError"]:
        return ""
    if source["state"] != "synced":
        return f" ({source['lastError']})"
    return f" (last error, {duration(source['lastErrorAgo_s'])} ago: {source['lastError']})"
