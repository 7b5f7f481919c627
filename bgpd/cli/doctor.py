"""`bgpd doctor`: looks at this node as BGP will find it and says what to change. Changes nothing.

Works without a running daemon; with one, its problems are part of the report. Every finding is one line:
what was looked at, how it is, and, when it is not right, what to do.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bgpd.bgp import bird, discovery, launch
from bgpd.bgp.places import places
from bgpd.cli.client import NotReachable, Refused, request
from bgpd.cli.doctorparts import of_parts
from bgpd.cli.exits import DEGRADED, FINE
from bgpd.cli.finding import BAD, OK, WARN, Finding
from bgpd.cli.output import by_family, print_json, show, table
from bgpd.cli.rundirectory import run_directory
from bgpd.config.bgp import PeersFrom
from bgpd.config.load import Loaded, load
from bgpd.config.schema import Config
from bgpd.model.fault import FaultsError
from bgpd.model.prefix import parse_address
from bgpd.netlink import lookup


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(options: argparse.Namespace) -> int:
    """Exit 4 when something is bad."""
    findings = list(_examine(options))
    if options.output == "json":
        print_json([asdict(finding) for finding in findings])
    else:
        columns = {"what": "WHAT", "state": "STATE", "text": "FINDING"}
        show(table([asdict(finding) for finding in findings], columns))
    return DEGRADED if any(finding.state == BAD for finding in findings) else FINE


def _examine(options: argparse.Namespace) -> Iterator[Finding]:
    yield Finding("kernel", OK, platform.release())
    yield _exabgp()
    loaded = None
    try:
        loaded = load(options.config)
    except FaultsError as error:
        for fault in error.faults:
            yield Finding("config", BAD, str(fault))
    else:
        yield Finding("config", OK, str(options.config))
        for warning in loaded.warnings:
            yield Finding("config", WARN, str(warning))
    run = run_directory(options.config)
    yield from _directories(run, loaded)
    if loaded is not None:
        yield from _kubeconfig(loaded.config)
        yield from _peers(loaded)
        if loaded.config.bgp.peers_from is PeersFrom.FILE:
            yield from _port(loaded.config.bgp.listen_port)
        if any(peer.bfd for peer in loaded.config.bgp.peers):
            yield from _bfd(loaded.config)
        yield from of_parts(loaded.config)
    yield from _daemon(run)


def _kubeconfig(config: Config) -> Iterator[Finding]:
    """Whether it can be read, and what it names. What the API server says to it the daemon tells."""
    kubernetes = config.source.kubernetes
    if kubernetes is None or kubernetes.kubeconfig is None:
        return
    from bgpd.kube.credentials import read_kubeconfig  # who reads manifests does without

    try:
        read_kubeconfig(kubernetes.kubeconfig)
    except FaultsError as error:
        yield from (Finding("kubeconfig", BAD, str(fault)) for fault in error.faults)
    else:
        yield Finding("kubeconfig", OK, str(kubernetes.kubeconfig))


def _exabgp() -> Finding:
    program = launch.exabgp()
    if not os.access(program, os.X_OK):
        return Finding("exabgp", BAD, f"{program} is missing; install again: pip install bgpd")
    return Finding("exabgp", OK, f"{version('exabgp')} at {program}")


def _directories(run: Path, loaded: Loaded | None) -> Iterator[Finding]:
    paths = [run] if loaded is None else [run, loaded.config.paths.state]
    for path in paths:
        if not path.is_dir():
            yield Finding("paths", WARN, f"{path} does not exist yet; bgpd.service creates it")
        elif not os.access(path, os.W_OK):
            yield Finding("paths", BAD, f"{path} is not writable by uid {os.geteuid()}: read-only, or not root?")
        else:
            yield Finding("paths", OK, f"{path} is writable")


def _peers(loaded: Loaded) -> Iterator[Finding]:
    here = lookup.addresses()
    bgp = loaded.config.bgp
    if any(peer.name in loaded.passwords for peer in loaded.config.bgp.peers):
        works = lookup.md5_works()
        text = "TCP MD5 signatures work" if works else "this kernel refuses TCP_MD5SIG (CONFIG_TCP_MD5SIG, FIPS)"
        yield Finding("md5", OK if works else BAD, text)
    for place in places(bgp.peers, discovery.now(bgp.peers)):
        what, peer = f"peer {place.name}", place.peer
        if place.address is None:
            yield Finding(what, BAD, place.why)
            continue
        if place.interface:
            yield Finding(what, OK, f"{place.address} is on {place.interface}, where we are {place.local}")
            continue
        if peer.local_address is not None and peer.local_address not in here:
            yield Finding(what, BAD, f"localAddress {peer.local_address} is not on this node; see `ip address`")
            continue
        way = lookup.way_to(place.address, peer.local_address)
        if way is None:
            yield Finding(what, BAD, f"no route to {place.address}; see `ip route get {place.address}`")
            continue
        via = f"via {way.gateway} on {way.interface}" if way.gateway else f"on {way.interface}"
        external = peer.peer_asn != (peer.local_asn or bgp.local_asn)
        if way.gateway and external and peer.ebgp_multihop is None:
            text = f"{place.address} is {via}: an external peer behind a router needs ebgpMultihop, there too"
            yield Finding(what, WARN, text)
        elif way.gateway and peer.ttl_security:
            text = f"{place.address} is {via}: ttlSecurity accepts directly connected peers only"
            yield Finding(what, BAD, text)
        else:
            yield Finding(what, OK, f"{place.address} is {via}")


def _bfd(config: Config) -> Iterator[Finding]:
    """The daemon for it, and whether each peer is as far away as its kind of BFD has it."""
    program = bird.program()
    socket = bird.BirdFiles(config.paths.run).socket
    if program is None:
        yield Finding("bfd", BAD, bird.MISSING)
    elif not socket.exists():
        yield Finding("bfd", BAD, f"{program} does not run for bgpd: systemctl status bgpd-bfd")
    else:
        yield Finding("bfd", OK, f"{program} runs, with its socket at {socket}")
    for peer in config.bgp.peers:
        if peer.bfd is None or peer.peer_address is None:
            continue  # one that is found is on our own link
        way = lookup.way_to(peer.peer_address, peer.local_address)
        if way is None:
            continue
        multihop = peer.bfd_is_multihop(config.bgp.local_asn)
        if way.gateway and not multihop:
            text = f"single-hop BFD, but {peer.peer_address} is via {way.gateway}: set bfd.multihop: true, there too"
            yield Finding(f"peer {peer.name}", BAD, text)
        elif multihop and not way.gateway:
            text = f"multihop BFD with {peer.peer_address}, which is on {way.interface}: the peer must see it so too"
            yield Finding(f"peer {peer.name}", WARN, f"{text}, else bfd.multihop: false")


def _port(port: int) -> Iterator[Finding]:
    if not port:
        return
    match lookup.listener_on(port):
        case "":
            yield Finding("listen", OK, f"port {port}: nobody listens yet")
        case "exabgp" | "steady.py":  # as `launch` starts it
            yield Finding("listen", OK, f"port {port}: ExaBGP listens")
        case "?":
            yield Finding("listen", WARN, f"port {port}: somebody listens; root can see who")
        case other:
            remedy = "stop it (BIRD or FRR left over?) or set bgp.listenPort: 0"
            yield Finding("listen", BAD, f"port {port}: {other} listens; {remedy}")


def _daemon(run: Path) -> Iterator[Finding]:
    try:
        status = request(run / "status.sock", "status", {}, lambda text: None)
    except (NotReachable, Refused) as error:
        yield Finding("daemon", WARN, str(error))
        return
    yield Finding("daemon", OK, f"bgpd {status['version']} answers on {run / 'status.sock'}")
    for problem in status["problems"]:
        yield Finding("daemon", BAD, problem)
    masquerade = status.get("masquerade")  # a daemon of an earlier release does not tell
    if masquerade is not None and masquerade["document"] is not None:
        yield from _document(masquerade)
    yield from _host_routes(status.get("hostRoutes") or {"wanted": ()})
    for text in (status.get("virtualServers") or {"warnings": ()})["warnings"]:
        yield Finding("virtualServers", WARN, text)


def _host_routes(host_routes: dict[str, Any]) -> Iterator[Finding]:
    """Whether what comes for a pod finds it: a fixed address has a route here only if the CNI plugin makes one."""
    astray = 0
    for each in host_routes["wanted"]:
        way = lookup.way_to(parse_address(each["address"]))
        if way is None or way.gateway is not None:
            astray += 1
            where = f"leads back, to {way.gateway} on {way.interface}" if way else "is none"
            text = f"{each['address']} of {each['pod']} is announced, and the route to it here {where}"
            yield Finding("hostRoutes", BAD, f"{text}: the CNI plugin must make one to the pod; `ip route get` it")
    if host_routes["wanted"] and not astray:
        yield Finding("hostRoutes", OK, f"{len(host_routes['wanted']):,} addresses of pods have routes to them here")


def _document(masquerade: dict[str, Any]) -> Iterator[Finding]:
    """What the daemon has found in the masquerade document that works and is probably not meant."""
    what = "masquerade: document"
    state = OK if masquerade["state"] == "in use" else WARN
    entries = f"{by_family(masquerade['entries'])} entries in the kernel"
    yield Finding(what, state, f"{masquerade['document']}: {masquerade['state']}, {entries}")
    for text in masquerade["findings"]:
        yield Finding(what, WARN, text)
