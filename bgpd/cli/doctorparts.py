"""What the parts that a configuration turns on take of this node, for `bgpd doctor`: kernel features, modules, paths.

Works without a running daemon, and changes nothing. What is tried is tried as the part itself does it, and leaves
nothing behind. A part that is off is not looked at, and what it needs is not loaded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bgpd.cli.finding import BAD, OK, WARN, Finding
from bgpd.config.field import SnatSource
from bgpd.config.masquerade import Masquerade, SnatAddress
from bgpd.config.schema import Config, NodeRoutes
from bgpd.netlink import lookup
from bgpd.observe.unixsocket import is_answered

CONNTRACK = Path("/proc/sys/net/netfilter")
CONNTRACK_FULL = 0.9
FORWARDING = {
    "IPv4": Path("/proc/sys/net/ipv4/ip_forward"),
    "IPv6": Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}


def of_parts(config: Config) -> Iterator[Finding]:
    """Part by part, in the order of the configuration."""
    if config.masquerade.enabled:
        yield from _datapath(config.masquerade, config.paths.bpf)
    if config.masquerade.translates:
        yield from _translation(config.masquerade.snat_address)
    if config.policy.enabled:
        yield from _policy(config)
        if config.cni.chaining_mode is not None:
            yield from _cni(config)
    if config.node_routes is not NodeRoutes.NONE:
        yield from _node_routes(config)
    if config.virtual_servers.enabled:
        yield from _virtual_servers(alone=not (config.masquerade.translates or config.policy.enabled))


def _datapath(masquerade: Masquerade, directory: Path) -> Iterator[Finding]:
    """What masquerade's maps rest on; with a datapath of our own, its program and its rule too."""
    from bgpd.datapath import features  # these bring libbpf and nf_tables, which nobody else needs
    from bgpd.masq.map import CILIUM

    place = directory if masquerade.translates else CILIUM
    for fact in features.probe(place, programs=masquerade.translates):
        state = OK if fact.ok else BAD if fact.needed else WARN
        yield Finding(f"masquerade: {fact.what}", state, fact.text)


def _translation(snat: SnatAddress) -> Iterator[Finding]:
    """What the rule takes, the addresses that it gives, and room in the table where the kernel remembers them."""
    from bgpd.netlink.owntables import NO_MATCH, PROGRAM_MATCH

    yield from _rules("masquerade", PROGRAM_MATCH, NO_MATCH)
    here = lookup.addresses()
    for family, address in (("ipv4", snat.ipv4), ("ipv6", snat.ipv6)):
        if not isinstance(address, SnatSource) and address not in here:
            text = f"{address} is not on this node: answers come only if the fabric routes it here; see `ip address`"
            yield Finding(f"masquerade: snatAddress.{family}", WARN, text)
    yield from _connections("masquerade")


def _rules(what: str, match: tuple[str, int], otherwise: str) -> Iterator[Finding]:
    """Whether rules can ask a program, and whether their table can be kept from others."""
    from bgpd.netlink.nftables import Connection, NftablesError
    from bgpd.netlink.owntables import can_own

    try:
        with contextlib.closing(Connection()) as connection:
            works, owns = connection.has_match(*match), can_own(connection)
    except (OSError, NftablesError) as error:
        yield Finding(f"{what}: nf_tables", BAD, f"{error}; it takes nf_tables in the kernel and CAP_NET_ADMIN")
        return
    yield Finding(f"{what}: xt_bpf", OK if works else BAD, "rules can ask a program" if works else otherwise)
    yield _owner(what, owns)


def _owner(what: str, owns: bool) -> Finding:
    shared = "missing, whoever may change nf_tables can change bgpd's, which puts them right again; Linux 6.9 has it"
    return Finding(
        f"{what}: table owner", OK if owns else WARN, "nobody else can change bgpd's tables" if owns else shared
    )


def _policy(config: Config) -> Iterator[Finding]:
    """What NetworkPolicy rests on, unless masquerade has told of the same, and where bridged pods are judged."""
    from bgpd.datapath import features
    from bgpd.netlink.owntables import NO_MATCH, PROGRAM_MATCH
    from bgpd.policy import bridges

    facts = list(() if config.masquerade.translates else features.probe(config.paths.bpf))
    if all(fact.ok for fact in facts if fact.needed):
        facts += [features.ring_buffer(), features.tcx(), features.sender_netns()]
    for fact in facts:
        yield Finding(f"policy: {fact.what}", OK if fact.ok else BAD if fact.needed else WARN, fact.text)
    if not config.masquerade.translates:
        yield from _rules("policy", PROGRAM_MATCH, NO_MATCH)
    if (CONNTRACK / "nf_conntrack_max").exists():
        yield Finding("policy: nf_conntrack", OK, "tells who began a flow")
    else:
        text = "not loaded; the first rule that asks for it does that, with CONFIG_NF_CONNTRACK and CONFIG_NFT_CT"
        yield Finding("policy: nf_conntrack", WARN, text)
    filtering = False
    with contextlib.suppress(OSError):  # of it `bgpd status` will tell
        filtering = bridges.are_filtering()
    at_bridge = bridges.unjudged(bridges.SETTINGS, filtering=filtering)
    for family, name in bridges.CALLS.items():
        where, reason = ("where it is forwarded", "is on")
        if family in at_bridge:
            where, reason = ("at the bridge", "is off, or a bridge filters VLANs")
        text = f"IPv{family} between pods of one bridge is judged {where} ({name} {reason})"
        yield Finding("policy: bridges", OK, text)


def _node_routes(config: Config) -> Iterator[Finding]:
    """Whether this node forwards, and who else sees to routes."""
    from bgpd.noderoutes import flannel

    for family, name in FORWARDING.items():
        try:
            forwards = name.read_text().strip() == "1"
        except OSError:
            continue  # a kernel without that family
        setting = ".".join(name.relative_to("/proc/sys").parts)
        remedy = "" if forwards else f"; {family} of other nodes' pods ends here: sysctl -w {setting}=1"
        yield Finding("nodeRoutes: forwarding", OK if forwards else BAD, f"{setting} is {int(forwards)}{remedy}")
    signs = flannel.signs(config.paths.flannel, config.paths.cni_conf)
    if signs:
        text = f"flannel sees to routes here ({', '.join(signs)}): bgpd makes none; take it out, or nodeRoutes: none"
        yield Finding("nodeRoutes: flannel", BAD, text)
    else:
        yield Finding("nodeRoutes: flannel", OK, "no sign of it")


def _connections(what: str) -> Iterator[Finding]:
    """How full conntrack is. When it is, the kernel drops what begins a flow, whoever sent it, and hardly says so."""
    try:
        count, limit = (int((CONNTRACK / f"nf_conntrack_{what}").read_text()) for what in ("count", "max"))
    except OSError:
        return  # nobody has needed it so far
    text = f"{count:,} of {limit:,} connections"
    if not limit or count < limit * CONNTRACK_FULL:  # 0 is no limit
        yield Finding(f"{what}: conntrack", OK, text)
        return
    remedy = f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}, or conntrack.maxPerCore where kube-proxy sets it"
    yield Finding(f"{what}: conntrack", WARN, f"{text}: when it is full the kernel drops new flows; {remedy}")


def _virtual_servers(*, alone: bool) -> Iterator[Finding]:
    """The table that spreads traffic, and who counts connections. `alone`: no other part has told of the same."""
    from bgpd.netlink.nftables import Connection, NftablesError
    from bgpd.netlink.owntables import can_own
    from bgpd.virtualservers import features

    try:
        with contextlib.closing(Connection()) as connection:
            features.try_nat(connection)
            yield Finding("virtualServers: NAT", OK, "nf_tables can spread connections, IPv4 and IPv6")
            if alone:
                yield _owner("virtualServers", can_own(connection))
    except (OSError, NftablesError) as error:
        yield Finding("virtualServers: NAT", BAD, f"{error}; {features.NAT_REMEDY}")
    what = "virtualServers: nf_conntrack_netlink"
    try:
        features.try_conntrack()
    except OSError as error:
        lost = "least-connections is round-robin, and datagrams stay with a pod that is out of service"
        yield Finding(what, WARN, f"{error.strerror or error}: {lost}; {features.CONNTRACK_REMEDY}")
    else:
        yield Finding(what, OK, "connections can be counted")
    if alone:
        yield from _connections("virtualServers")


def _cni(config: Config) -> Iterator[Finding]:
    """Where the container runtime looks for chain and plugin, where it keeps results, and who serves the plugin."""
    from bgpd.cni.publish import settings
    from bgpd.model.attachment import OWN_FILE

    paths = config.paths
    own = paths.cni_conf / OWN_FILE
    yield from _conflist(config, own)
    yield _plugin(paths.cni_bin)
    yield _results(paths.cni_cache)
    socket = settings(config).socket
    if is_answered(socket):
        yield Finding("cni: socket", OK, f"{socket} answers the plugin")
    elif os.access(own, os.F_OK):
        text = f"nobody answers at {socket}: no pod starts while {own} is there; is bgpd.service running?"
        yield Finding("cni: socket", BAD, text)
    else:
        yield Finding("cni: socket", WARN, f"nobody answers at {socket} yet; bgpd.service does")


def _conflist(config: Config, own: Path) -> Iterator[Finding]:
    """The chain as the daemon would make it of what is there now."""
    from bgpd.cni.conflist import Action, chained
    from bgpd.cni.publish import files, settings

    what, name = "cni: conflist", config.cni.config_map
    if name is not None:
        there = os.access(own, os.F_OK)
        text = f"{own} is there, from ConfigMap {name}" if there else f"bgpd will write {own} from ConfigMap {name}"
        yield Finding(what, OK if there else WARN, text)
        return
    try:
        found = files(own.parent)
    except OSError as error:
        yield Finding(what, BAD, f"{error.filename}: {error.strerror}; paths.cniConf is where the runtime looks")
        return
    plan = chained(found, settings(config))
    yield from (Finding(what, WARN, text) for text in plan.warnings)
    if plan.problem:
        yield Finding(what, BAD, f"{own.parent}: {plan.problem}; paths.cniConf is where the runtime looks")
    elif plan.action is Action.REMOVE:
        yield Finding(what, OK, f"{own.parent / plan.target} has the plugin in it")
    elif found.get(own.name) == plan.content:
        yield Finding(what, OK, f"{own} is {plan.target} with the plugin behind it")
    else:
        state = "is not that of now" if own.name in found else "is not there yet"
        text = f"{own} {state}: bgpd writes it from {plan.target} once a pod can be given its policy"
        yield Finding(what, WARN, text)


def _plugin(directory: Path) -> Finding:
    from bgpd.cni.protocol import PLUGIN_TYPE
    from bgpd.cni.publish import program

    what, file = "cni: plugin", directory / PLUGIN_TYPE
    try:
        wanted = program()
        there = file.read_bytes() if file.exists() else None
    except OSError as error:
        return Finding(what, BAD, f"{error.filename}: {error.strerror}")
    if there is not None and not os.access(file, os.X_OK):
        return Finding(what, BAD, f"{file} cannot be executed: a mount with noexec? see `findmnt -T {directory}`")
    if there == wanted:
        return Finding(what, OK, f"{file} is this release's")
    state = "is not there yet" if there is None else "is another release's"
    if not os.access(next(each for each in (directory, *directory.parents) if each.exists()), os.W_OK):
        remedy = "and cannot be written: read-only, or not root? paths.cniBin is where the runtime looks"
        return Finding(what, BAD, f"{file} {state}, {remedy}")
    return Finding(what, WARN, f"{file} {state}: bgpd puts it there with the conflist")


def _results(directory: Path) -> Finding:
    """What pods that ran before the plugin was chained are known by."""
    from bgpd.cni.cache import RESULTS

    what, places = "cni: results", [directory / each for each in RESULTS]
    try:
        count = sum(1 for place in places if place.is_dir() for _ in place.iterdir())
    except OSError as error:
        return Finding(what, BAD, f"{error.filename}: {error.strerror}; pods that run already are not found")
    if any(place.is_dir() for place in places):
        return Finding(what, OK, f"{count:,} in {directory}: what runs already is found")
    text = f"{places[0]} does not exist: no pod has been started here, or paths.cniCache is not where the runtime"
    return Finding(what, WARN, f"{text} keeps them, and pods that run already are not found")
