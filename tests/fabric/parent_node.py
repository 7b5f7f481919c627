"""What nodes of macvlan and of ipvlan have in common: a parent, an outside on its wire, and rules written by hand.

This decides which addresses they have, how rules get into the maps, and how one asks who reaches whom. How pods are
wired, and what is asked where, is for `macvlan_node` and `ipvlan_node`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar

from bgpd.datapath import layout, loader
from bgpd.datapath.layout import Action, PolicyVerdict, Port, Rule, RuleFlag
from tests.fabric.masq_node import echoed, udp_client, udp_echo
from tests.fabric.netns import Namespace
from tests.fabric.policy_node import link, verdicts
from tests.fabric.reach import ping, source_seen

T = TypeVar("T")
CLASS = {"a": 101, "b": 102, "c": 103, "outside": 105}
PORT = 8080


@dataclass(frozen=True)
class Plan:
    """The addresses of one family, all on one wire."""

    version: int
    a: str
    b: str
    c: str
    node: str
    outside: str
    length: int

    def of(self, name: str) -> str:
        return str(getattr(self, name))


IPV4 = Plan(4, "198.51.100.10", "198.51.100.11", "198.51.100.12", "198.51.100.1", "198.51.100.2", 24)
IPV6 = Plan(6, "fd50::10", "fd50::11", "fd50::12", "fd50::1", "fd50::2", 64)
PLANS = (IPV4, IPV6)


class ParentPlace:
    """Its namespaces; `pods` are by name."""

    node: Namespace
    outside: Namespace
    pods: dict[str, Namespace]

    def namespace(self, name: str) -> Namespace:
        return {"outside": self.outside, "node": self.node, **self.pods}[name]

    def mac(self, name: str) -> bytes:
        return link(self.namespace(name), "eth0")[1]

    def here(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What it returns, run as the daemon of this node would."""
        return self.node.call(lambda: asyncio.run(function()))


class RulesByHand:
    """In the maps of `policy`."""

    policy: loader.Installed

    def isolate(self, name: str, *, egress: int = 0, ingress: int = 0, flags: int = 0) -> None:
        """Sets of rules, 0: not isolated; see `allow`."""
        value = layout.PEER.pack(CLASS[name], egress, ingress, flags)
        keys = [layout.policy_address(ip_address(plan.of(name))) for plan in PLANS]
        self.policy.maps["policy_peers"].update(dict.fromkeys(keys, value))

    def open(self) -> None:
        """Nobody is isolated (any more)."""
        for name in CLASS:
            self.isolate(name)

    def allow(self, number: int, *names: str, ports: Iterable[tuple[int, int]] = ()) -> None:
        """The set `number` allows these ends: everything, or only (protocol, port)."""
        pairs = list(ports)
        rule = Rule(number, Action.DENY if pairs else Action.ALLOW, RuleFlag.HAS_PORTS if pairs else 0, 0, number)
        one = layout.PORT.pack(*Port(Action.ALLOW, 0, 0, number))
        self.policy.maps["policy_ports"].update({layout.port_key(number, *pair): one for pair in pairs})
        keys = [layout.rule_key(number, CLASS[name]) for name in names]
        self.policy.maps["policy_rules"].update(dict.fromkeys(keys, layout.RULE.pack(*rule)))

    def forbid(self, number: int, *names: str) -> None:
        self.policy.maps["policy_rules"].delete([layout.rule_key(number, CLASS[name]) for name in names])

    def verdicts(self) -> dict[PolicyVerdict, int]:
        return verdicts(self.policy.maps["policy_verdicts"])


def reaches(
    node: ParentPlace, client: str, server: str, plan: Plan, silence_s: float
) -> tuple[bool, bool, bool]:
    """By TCP, UDP and ping. `silence_s`: for so long nothing must come."""
    one, other, to, source = node.namespace(client), node.namespace(server), plan.of(server), plan.of(client)
    seen = source_seen(one, other, to, port=PORT, source=source, timeout_s=silence_s)
    pinged = ping(one, to, source=source, timeout_s=silence_s)
    return seen == source, datagram(node, client, server, plan, silence_s), pinged


def datagram(node: ParentPlace, client: str, server: str, plan: Plan, silence_s: float) -> bool:
    """Whether one is answered."""
    to = plan.of(server)
    with udp_echo(node.namespace(server), to, PORT), udp_client(node.namespace(client), to, PORT) as dialer:
        dialer.settimeout(silence_s)
        with contextlib.suppress(TimeoutError):
            return echoed(dialer) == b"x"
    return False
