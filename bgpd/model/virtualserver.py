"""Virtual servers: an address and a port that lead to the pods behind a Service, and how these are monitored.

Values only. How a ConfigMap becomes one: `virtualservers.parse`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bgpd.model.policy import Protocol
from bgpd.model.prefix import Address

LABEL = ("f5type", "virtual-server")  # of the ConfigMaps
MARK = "virtual-servers"  # a file in the state directory, there since virtual servers were served here


class Balance(StrEnum):
    """Which member gets a new connection."""

    ROUND_ROBIN = "round-robin"
    LEAST_CONNECTIONS = "least-connections"


class MonitorProtocol(StrEnum):
    """What a monitor speaks to a member."""

    HTTP = "http"
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class Monitor:
    """`send` empty: nothing is sent. `recv` is an extended regular expression of POSIX; empty: any answer will do."""

    protocol: MonitorProtocol
    interval_s: int
    timeout_s: int
    send: bytes = b""
    recv: str = ""


@dataclass(frozen=True, slots=True)
class Frontend:
    """Where clients turn to."""

    address: Address
    protocol: Protocol
    port: int

    @property
    def order(self) -> tuple[int, int, int, int]:
        return self.address.version, int(self.address), self.protocol, self.port

    def __str__(self) -> str:
        return f"{self.protocol.name.lower()} {self.address} port {self.port}"


@dataclass(frozen=True, slots=True)
class Member:
    """A pod, as traffic and monitors reach it."""

    address: Address
    port: int

    @property
    def order(self) -> tuple[int, int, int]:
        return self.address.version, int(self.address), self.port

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class VirtualServer:
    """`name` is that of its ConfigMap, and `service` that of its Service: namespace/name.

    `created` is when the ConfigMap was, as the API writes it; empty where nobody says.
    """

    name: str
    frontend: Frontend
    service: str
    service_port: int
    monitors: tuple[Monitor, ...] = ()
    balance: Balance = Balance.ROUND_ROBIN
    created: str = ""

    @property
    def age(self) -> tuple[bool, str, str]:
        """The oldest is the lowest; one that nobody knows the age of is younger than all others."""
        return not self.created, self.created, self.name

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]
