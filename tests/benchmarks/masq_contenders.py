"""Who masquerades: the daemon, and what an operator would use in its place, on a wire each.

This decides how each of them is set up for the same job: pod traffic that leaves the node gets the node's address,
but for the list. It does not decide what is measured. What ip-masq-agent writes is written here as the agent does
it, a chain with a rule per CIDR, only without its comment on each, which would make it slower. Every masquerade is
`fully-random`, as all of these do it by themselves.

Three of them have no list at all, to see what is paid for what: `nothing` only forwards, `conntrack` also follows
connections, as on a node that has kube-proxy, and `masquerade` translates whatever leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from pathlib import Path

from tests.benchmarks.masq_stage import CLUSTER, FAR, LISTED, NODE, POD, POD_CIDR, MasqDaemon, Wire, prefixes
from tests.fabric.netns import Lab

LONG, SHORT = 16_000, 1_000
FORWARD_ONLY = ("nothing", "conntrack")
PROGRAMS = ("nft", "iptables-nft-restore", "iptables-legacy-restore", "ipset", "conntrack")


def nothing(wire: Wire) -> None:
    """Forwards, and no more."""


def conntrack(wire: Wire) -> None:
    _nft(wire, "type filter hook forward priority 0; ct state established accept")


def masquerade(wire: Wire) -> None:
    rule = f"ip saddr {POD_CIDR} ip daddr != {CLUSTER} oifname eth0 masquerade fully-random"
    _nft(wire, f"type nat hook postrouting priority 100; {rule}")


def _nft(wire: Wire, chain: str) -> None:
    wire.node.run(["nft", "-f", "-"], stdin=f"table ip bench {{ chain bench {{ {chain}; }}; }}")


def iptables_chain(entries: Sequence[IPv4Network]) -> str:
    """What ip-masq-agent gives to `iptables-restore --noflush` at every change, and every minute: its whole chain."""
    rules = "".join(f"-A IP-MASQ -d {entry} -j RETURN\n" for entry in (IPv4Network(CLUSTER), *entries))
    return f"*nat\n:IP-MASQ - [0:0]\n{rules}-A IP-MASQ -j MASQUERADE --random-fully\nCOMMIT\n"


def iptables(wire: Wire, entries: Sequence[IPv4Network]) -> None:
    wire.node.run(["iptables-nft-restore", "--noflush"], stdin=iptables_chain(entries))
    wire.node.run(["iptables-nft-restore", "--noflush"], stdin=_jump("-j IP-MASQ"))


def ipset_lines(entries: Sequence[IPv4Network]) -> str:
    """For `ipset restore`: the whole set beside the one in use, then exchanged for it."""
    made = "hash:net family inet maxelem 65536"
    adds = "".join(f"add new {entry}\n" for entry in (IPv4Network(CLUSTER), *entries))
    return f"create -exist masq {made}\ncreate new {made}\n{adds}swap new masq\ndestroy new\n"


def ipset(wire: Wire, entries: Sequence[IPv4Network]) -> None:
    wire.node.run(["ipset", "restore"], stdin=ipset_lines(entries))
    match = "-m set ! --match-set masq dst"
    wire.node.run(["iptables-nft-restore", "--noflush"], stdin=_jump(f"{match} -j MASQUERADE --random-fully"))


def _jump(rest: str) -> str:
    """The agent's rule in POSTROUTING."""
    return f"*nat\n-A POSTROUTING -m addrtype ! --dst-type LOCAL {rest}\nCOMMIT\n"


def bgpd(wire: Wire, pins: Path) -> None:
    MasqDaemon(wire, pins).start((*prefixes(LONG - 1), LISTED))


def wires(lab: Lab, pins: Path, names: Sequence[str]) -> dict[str, Wire]:
    """A wire for each of these contenders, with it at work. RuntimeError: one of them does not do its job."""
    setups: dict[str, Callable[[Wire], None]] = {
        "nothing": nothing,
        "conntrack": conntrack,
        "masquerade": masquerade,
        "iptables-1k": lambda wire: iptables(wire, prefixes(SHORT)),
        "iptables-16k": lambda wire: iptables(wire, prefixes(LONG)),
        "ipset-16k": lambda wire: ipset(wire, prefixes(LONG)),
        "bgpd": lambda wire: bgpd(wire, pins),
    }
    found = {}
    for name in names:
        found[name] = Wire(lab, name)
        setups[name](found[name])
        seen = found[name].source_seen(str(FAR[1]))
        if seen != source(name):
            raise RuntimeError(f"with {name} the outside sees {seen}")
        if (found[name].flows() == 0) != (name == "nothing"):
            raise RuntimeError(f"with {name} conntrack knows {found[name].flows()} flows")
    return found


def source(name: str) -> str:
    """Who the outside takes the other end of a flow for, if no list has the outside's address."""
    return POD if name in FORWARD_ONLY else NODE
