"""A node with four BFD sessions to one ToR: single hop and multihop, IPv4 and IPv6, a BGP session with each.

This decides addresses and what both ends are told. It does not decide what is done to the node (`test_bfd`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode
from tests.fabric.peer import IPV4, IPV6, Neighbor, Speaker
from tests.fabric.process import poll
from tests.fabric.topology import ASN, CABLE, TwoTorFabric


@dataclass(frozen=True, slots=True)
class Link:
    """One session: the node's address and the ToR's. Those that are `near` share a segment."""

    name: str
    ours: str
    theirs: str

    @property
    def near(self) -> bool:
        return self.name.startswith("near")

    @property
    def family(self) -> str:
        return IPV6 if ":" in self.ours else IPV4


LINKS = (
    # from a loopback of the node: FRR takes whatever is on a segment of its own for a single hop
    Link("far4", "11.9.0.63", "11.11.255.1"),
    Link("far6", "fd00:11:9::63", "fd00:11:11:255::1"),
    Link("near4", "11.8.37.163", "11.8.37.252"),
    Link("near6", "fd00:11:8:37::163", "fd00:11:8:37::252"),
)


class BfdSite:
    """The first node and the first ToR of the fabric; nothing else runs.

    `multiplier` is how many of our packets the ToR may miss; we miss three of its own.
    """

    def __init__(
        self,
        lab: Lab,
        kind: type[Speaker],
        interval_ms: int,
        *,
        graceful_restart: bool = True,
        multiplier: int = 3,
    ) -> None:
        self.fabric = TwoTorFabric(lab, speakers=(kind,))
        self.place, (self.tor,) = self.fabric.nodes[0], self.fabric.tors
        self.interval_ms, self.multiplier = interval_ms, multiplier
        self.place.namespace.add_address(CABLE, "11.8.37.163/24", "fd00:11:8:37::163/64")
        self.place.namespace.add_address("lo", "11.9.0.63/32", "fd00:11:9::63/128")
        self.fabric.fabric.add_route("11.9.0.63/32", via=self.place.address)
        self.fabric.fabric.add_route("fd00:11:9::63/128", via=self.place.address6)
        self.tor.speaker.reconfigure(
            neighbors=tuple(
                Neighbor(
                    address=it.ours,
                    asn=ASN,
                    local_address=it.theirs,
                    families=(it.family,),
                    graceful_restart=graceful_restart,
                    hold_time_s=90,
                    keepalive_s=30,
                    bfd_ms=interval_ms,
                    direct=it.near,
                )
                for it in LINKS
            )
        )
        bgp = {
            "localASN": ASN,
            "peers": [self._peer(it, graceful_restart) for it in LINKS],
            "advertisements": [{"advertisementType": "PodCIDR"}],
            "export": {"allow": ["188.188.0.0/16", "fd00:188:188::/48"]},
        }
        self.node = BgpdNode.at(self.place, bgp, *self.place.pod_cidrs)

    def start(self) -> BfdSite:
        """Everything up: sessions of both kinds, and the routes."""
        self.fabric.start()
        self.node.start_bfd()
        self.node.start()
        self.wait_up()
        return self

    def wait_up(self) -> None:
        self.node.wait_status(
            "BFD is not up everywhere",
            lambda it: all(row.get("bfd") and row["bfd"]["state"] == "up" for row in it["peers"]),
        )
        self.node.wait_healthy()
        poll(lambda: self.held() == {it.name for it in LINKS}, 20, lambda: str(self.tor.speaker.paths()))

    def held(self) -> set[str]:
        """The sessions whose routes the ToR has and would use."""
        names = {it.ours: it.name for it in LINKS}
        return {names[path.peer] for path in self.tor.speaker.paths() if path.peer in names and not path.stale}

    def cut(self) -> dict[str, float]:
        """The node's power goes; for each session, the milliseconds until the ToR had no route of it any more."""
        self.fabric.cut(self.place)
        began, gone = time.monotonic(), dict[str, float]()
        while len(gone) < len(LINKS):
            held = self.held()
            now = (time.monotonic() - began) * 1000
            gone |= {it.name: now for it in LINKS if it.name not in held and it.name not in gone}
            if now > 20_000:
                raise TimeoutError(f"after 20 s the ToR still has the routes of {held}")
        return gone

    def _peer(self, link: Link, graceful_restart: bool) -> dict[str, Any]:
        timers = {"transmitIntervalMilliseconds": self.interval_ms, "receiveIntervalMilliseconds": self.interval_ms}
        return {
            "name": link.name,
            "peerAddress": link.theirs,
            "peerASN": ASN,
            "localAddress": link.ours,
            "timers": {"holdTimeSeconds": 90},
            "gracefulRestart": {"enabled": graceful_restart},
            "bfd": {**timers, "detectMultiplier": self.multiplier, **({"multihop": False} if link.near else {})},
        }
