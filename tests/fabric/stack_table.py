"""The inet table as the daemon has it for pods on ipvlans of mode L3 and L3S, and rules of others beside it.

This decides how it gets into a node's namespace. What should become of packets is for the tests to say.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from pathlib import Path

from bgpd.datapath.loader import Installed
from bgpd.model.outcome import DONE
from bgpd.model.prefix import Address
from bgpd.netlink.nftables import Connection
from bgpd.netlink.owntables import TableActuator, can_own
from bgpd.policy.chains import Family
from bgpd.policy.table import TABLES, Table, inet_table, key
from bgpd.runtime.diff import Change
from tests.fabric.masq_node import NETLINK_NETFILTER
from tests.fabric.netns import Namespace

INET = key(Family.INET)


class StackTable:
    """`policy` has the programs, whose pins are in `directory`."""

    def __init__(self, node: Namespace, policy: Installed, directory: Path) -> None:
        self._node, self._policy, self._directory = node, policy, directory
        self._connection = Connection(node.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))
        self._tables = TableActuator(self._connection, TABLES, owned=can_own(self._connection))

    def close(self) -> None:
        self._connection.close()

    def wanted(self, addresses: Iterable[Address], parent: int) -> Table:
        """Where pods of `parent` have these addresses."""
        number = {name: each.id for name, each in self._policy.programs.items()}
        place = str(self._directory)
        stack = [(parent, each) for each in addresses]
        return inet_table(place, number["policy"], number["policy_reply"], [], stack, number["policy_bridge"])

    def apply(self, have: Table | None, want: Table) -> None:
        assert list(asyncio.run(self._tables.apply([Change(INET, want, have)]))) == [DONE]
        assert asyncio.run(self._tables.observe()) == {INET: want}

    def translate(self, version: int, pod: str, node: str) -> None:
        """What the pod sends is masqueraded, and who pings the node's address is answered by the pod."""
        family, echo = ("ip", "icmp") if version == 4 else ("ip6", "icmpv6")
        lines = (
            f"table {family} services {{",
            " chain leaving { type nat hook postrouting priority srcnat;",
            f"  {family} saddr {pod} masquerade\n }}",
            " chain service { type nat hook prerouting priority dstnat;",
            f"  {echo} type echo-request {family} daddr {node} dnat to {pod}\n }}",
            "}",
        )
        self._node.run(["nft", "-f", "-"], stdin="\n".join(lines))
