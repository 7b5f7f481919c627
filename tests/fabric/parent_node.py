"""What nodes of macvlan and of ipvlan have in common: a parent, and an outside on its wire.

This decides which addresses they have, and how one asks who reaches whom. How pods are
wired, and what is asked where, is for `macvlan_node` and `ipvlan_node`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tests.fabric.masq_node import echoed, udp_client, udp_echo
from tests.fabric.netns import Namespace
from tests.fabric.policy_node import link
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
    classes: ClassVar[Mapping[str, int]] = CLASS

    def addresses(self, name: str) -> list[str]:
        return [plan.of(name) for plan in PLANS]

    def namespace(self, name: str) -> Namespace:
        return {"outside": self.outside, "node": self.node, **self.pods}[name]

    def mac(self, name: str) -> bytes:
        return link(self.namespace(name), "eth0")[1]

    def here(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What it returns, run as the daemon of this node would."""
        return self.node.call(lambda: asyncio.run(function()))


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
