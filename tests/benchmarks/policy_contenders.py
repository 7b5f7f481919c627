"""Who enforces a tenant's policies: the daemon, and what an operator would use in its place, on a wire each.

This decides how each of them is set up for the same job. It does not decide what is measured. `ipset` is what
kube-router (2.x, pkg/controllers/netpol) writes for these policies, chain by chain and rule by rule, without the
comment on each, which would make it slower: a jump for every pod of the node in FORWARD, a chain for every pod that
goes through all its policies, a chain for every policy that asks two sets, and a mark for the verdict. It comes in
both flavours of iptables. `nftables` is the same in nftables' own words, with a map from pods to their chains in the
place of the jumps, which is the best that can be made of that layout.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from bgpd.observe.unixsocket import is_answered
from tests.benchmarks.masq_contenders import FORWARD_ONLY, conntrack, nothing
from tests.benchmarks.masq_stage import FAR, POD, Wire
from tests.benchmarks.policy_cluster import PORT, Tenant
from tests.benchmarks.policy_stage import READY_S, Stage, node_addresses, start
from tests.contract.cni_runtime import PLUGIN, call
from tests.fabric.policy_node import link
from tests.fabric.process import poll

PROGRAMS = ("nft", "iptables-nft-restore", "iptables-legacy-restore", "ipset", "conntrack")

WHO = ("ipset", "ipset-nft", "nftables", "bgpd")
MARK, ACCEPTED = "0x10000/0x10000", "0x20000/0x20000"
SILENCE_S = 0.5
_ICMP = ("echo-request", "destination-unreachable", "time-exceeded")


def tenant(count: int) -> Tenant:
    """With so many policies, and peers of its own."""
    return Tenant(f"tenant-node-{count}", tuple(node_addresses()), count, first=20_000 + 20 * count)


# --- kube-router's --------------------------------------------------------------------------------------------------


def ipset_lines(of: Tenant) -> str:
    """For `ipset restore`: for each policy the pods that it selects, and those that its rule speaks of."""
    lines: list[str] = []
    for number in range(of.policies):
        for kind, addresses in (("SRC", of.addresses), ("DST", of.peers(number))):
            name = f"KUBE-{kind}-{number}"
            lines.append(f"create {name} hash:ip family inet timeout 0\n")
            lines += (f"add {name} {address} timeout 0\n" for address in addresses)
    return "".join(lines)


def iptables_chains(of: Tenant) -> str:
    """For `iptables-restore`: the filter table."""
    chains = ["KUBE-ROUTER-FORWARD", "KUBE-NWPLCY-COMMON", "KUBE-NWPLCY-DEFAULT"]
    chains += (f"KUBE-NWPLCY-{number}" for number in range(of.policies))
    chains += (f"KUBE-POD-FW-{number}" for number in range(len(of.addresses)))
    rules = ["FORWARD -j KUBE-ROUTER-FORWARD"]
    rules += ("KUBE-NWPLCY-COMMON -m conntrack --ctstate INVALID -j DROP",)
    rules += ("KUBE-NWPLCY-COMMON -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",)
    rules += (f"KUBE-NWPLCY-COMMON -p icmp --icmp-type {each} -j ACCEPT" for each in _ICMP)
    rules.append(f"KUBE-NWPLCY-DEFAULT -j MARK --set-xmark {MARK}")
    for number in range(of.policies):
        sets = f"-m set --match-set KUBE-SRC-{number} src -m set --match-set KUBE-DST-{number} dst"
        rules.append(f"KUBE-NWPLCY-{number} {sets} -p tcp --dport {PORT} -j MARK --set-xmark {MARK}")
        rules.append(f"KUBE-NWPLCY-{number} {sets} -p tcp --dport {PORT} -m mark --mark {MARK} -j RETURN")
    for number, address in enumerate(of.addresses):
        rules += _pod_chain(f"KUBE-POD-FW-{number}", address, of.policies)
    rules.append(f"KUBE-ROUTER-FORWARD -m mark --mark {ACCEPTED} -j ACCEPT")
    lines = [*(f":{name} - [0:0]" for name in chains), *(f"-A {rule}" for rule in rules)]
    return "\n".join(["*filter", *lines, "COMMIT", ""])


def _pod_chain(chain: str, address: str, policies: int) -> Iterator[str]:
    """And the jumps to it. The pod is isolated in egress only."""
    for end in ("-d", "-s"):
        yield f"KUBE-ROUTER-FORWARD -m physdev --physdev-is-bridged {end} {address} -j {chain}"
        yield f"KUBE-ROUTER-FORWARD {end} {address} -j {chain}"
    yield f"{chain} -j KUBE-NWPLCY-COMMON"
    yield f"{chain} -d {address} -m addrtype --src-type LOCAL -j ACCEPT"
    yield f"{chain} -d {address} -j KUBE-NWPLCY-DEFAULT"
    yield from (f"{chain} -s {address} -j KUBE-NWPLCY-{number}" for number in range(policies))
    yield f"{chain} -m mark ! --mark {MARK} -m limit --limit 10/minute --limit-burst 10 -j NFLOG --nflog-group 100"
    yield f"{chain} -m mark ! --mark {MARK} -j REJECT"
    yield f"{chain} -j MARK --set-xmark 0/0x10000"
    yield f"{chain} -j MARK --set-xmark {ACCEPTED}"


def ipset(flavour: str, of: Tenant, wire: Wire) -> None:
    wire.node.run(["ipset", "restore"], stdin=ipset_lines(of))
    wire.node.run([f"iptables-{flavour}-restore", "--noflush"], stdin=iptables_chains(of))


# --- in nftables' own words -----------------------------------------------------------------------------------------


def nftables_text(of: Tenant) -> str:
    """For `nft -f`."""
    mark, accepted = (each.partition("/")[0] for each in (MARK, ACCEPTED))
    parts: list[str] = []
    for number in range(of.policies):
        for kind, addresses in (("src", of.addresses), ("dst", of.peers(number))):
            parts.append(f"set {kind}{number} {{ type ipv4_addr; elements = {{ {', '.join(addresses)} }}; }}")
        match = f"ip saddr @src{number} ip daddr @dst{number} tcp dport {PORT}"
        parts.append(f"chain policy{number} {{ {match} meta mark set meta mark | {mark}; }}")
    known = "ct state invalid drop; ct state established,related accept"
    icmp = f"icmp type {{ {', '.join(('time-exceeded', 'destination-unreachable', 'echo-request'))} }} accept"
    parts.append(f"chain common {{ {known}; {icmp}; }}")
    verdict = f"meta mark & {mark} == 0 reject; meta mark set meta mark & 0xfffeffff | {accepted}"
    for number, address in enumerate(of.addresses):
        jumps = "; ".join(f"ip saddr {address} jump policy{each}" for each in range(of.policies))
        local = f"ip daddr {address} fib saddr type local accept"
        ingress = f"{local}; ip daddr {address} meta mark set meta mark | {mark}"
        parts.append(f"chain pod{number} {{ jump common; {ingress}; {jumps}; {verdict}; }}")
    for kind in ("saddr", "daddr"):
        jumps = ", ".join(f"{address} : jump pod{number}" for number, address in enumerate(of.addresses))
        parts.append(f"map by_{kind} {{ type ipv4_addr : verdict; elements = {{ {jumps} }}; }}")
    dispatch = "ip daddr vmap @by_daddr; ip saddr vmap @by_saddr"
    parts.append(f"chain forward {{ type filter hook forward priority 0; {dispatch}; }}")
    return "\n".join(["table ip bench {", *parts, "}", ""])


def nftables(of: Tenant, wire: Wire) -> None:
    wire.node.run(["nft", "-f", "-"], stdin=nftables_text(of), timeout_s=120.0)


# --- ours -----------------------------------------------------------------------------------------------------------


def bgpd(stage: Stage, of: Tenant, wire: Wire) -> None:
    """With the pod attached through the plugin, so that it may send from its own addresses only."""
    cluster = stage.join(of.node, wire.node)
    start(cluster, len(of.addresses))
    run = cluster.node.directory / "run"
    poll(lambda: is_answered(run / "cni.sock"), READY_S, lambda: cluster.node.bgpd("status", check=False))
    inside = {"name": "eth0", "mac": link(wire.pod, "eth0")[1].hex(":"), "sandbox": str(wire.pod.path)}
    result = {"cniVersion": "1.0.0", "interfaces": [inside], "ips": [{"address": f"{POD}/24", "interface": 0}]}
    entry = {"type": "bgpd-cni", "socket": str(run / "cni.sock"), "queue": str(run / "queue"), "prevResult": result}
    environment = {
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": str(wire.pod.path),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGIN.parent),
        "CNI_ARGS": f"K8S_POD_NAMESPACE={of.name};K8S_POD_NAME=pod-0",
    }
    request = {"cniVersion": "1.0.0", "name": "cluster", **entry}
    answer = call(PLUGIN, "ADD", request, environment, netns=wire.node.path)
    if answer.status:
        raise RuntimeError(f"the pod is not attached: {answer.printed or answer.said}")


def wires(
    stage: Stage, tenants: Iterable[Tenant], make: type[Wire], names: Iterable[str], where: str = "wire"
) -> dict[str, Wire]:
    """A wire for each of these contenders, with it at work: `nothing`, `conntrack`, one of `WHO` with the number of
    policies behind it. `where` tells wires of one name apart. RuntimeError: one of them does not do its job."""
    setups: dict[str, Callable[[Wire], None]] = {"nothing": nothing, "conntrack": conntrack}
    for of in tenants:
        each = (
            partial(ipset, "legacy", of),
            partial(ipset, "nft", of),
            partial(nftables, of),
            partial(bgpd, stage, of),
        )
        setups |= {f"{who}-{of.policies}": setup for who, setup in zip(WHO, each, strict=True)}
    found = {}
    for name in names:
        wire = found[name] = make(stage.lab, f"{where}-{name}")
        setups[name](wire)
        if _is_open(wire) != (name in FORWARD_ONLY):
            raise RuntimeError(f"with {name} the pod {'reaches' if _is_open(wire) else 'does not reach'} everybody")
    return found


def _is_open(wire: Wire) -> bool:
    """Whether the pod reaches an address that no policy speaks of."""
    with (
        wire.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        wire.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        listener.bind(("", 0))
        listener.settimeout(SILENCE_S)
        sender.sendto(b"?", (str(FAR[1]), listener.getsockname()[1]))
        with contextlib.suppress(TimeoutError):
            return bool(listener.recv(64))
    return False
