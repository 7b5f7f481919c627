"""What every BGP speaker of the lab has in common: what it is told, what it reports, how one waits for it.

This decides the words (`Options`, `Neighbor`, `ReceivedRoute`, `PeerSession`, `Capabilities`) and the life
cycle of a speaker. It does not decide how a particular program is configured or asked: that is `bird`,
`frr` and `gobgp`. The words are those of RFC 4271 (sessions, attributes), 4724 (graceful restart), 5492
(capabilities), 8092 (large communities).
"""

from __future__ import annotations

import dataclasses
import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tests.fabric.netns import Namespace
from tests.fabric.process import Process, poll

IPV4 = "ipv4-unicast"
IPV6 = "ipv6-unicast"
FAMILIES = (IPV4, IPV6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbor:
    """One session as this speaker holds it. All that is received is accepted; `originate` is announced.

    `multihop` None: the speaker's own default (internal sessions may cross routers, external ones not); a
    number is the most hops. With `ttl_security` it is the distance that is still believed (RFC 5082), 1
    when None. With `graceful_restart` False the session neither offers it nor keeps routes for the peer.
    `bfd_ms` is the interval of BFD in both directions, three of which are a silence; the first neighbor that
    names one speaks for all. `direct`: an internal session with a neighbor on the same segment; only BIRD has to
    be told.
    `interface`: a neighbor on this link, unnumbered; for FRR it is the `address` too, because that is found out.
    `extra` is put verbatim where this speaker describes the neighbor.
    """

    address: str
    asn: int
    port: int = 179
    local_address: str | None = None
    password: str | None = None
    ttl_security: bool = False
    multihop: int | None = None
    passive: bool = False
    hold_time_s: int = 9
    keepalive_s: int = 3
    families: tuple[str, ...] = (IPV4,)
    graceful_restart: bool = True
    restart_time_s: int = 120
    long_lived_s: int | None = None
    extended_next_hop: bool = False
    bfd_ms: int | None = None
    direct: bool = False
    interface: str | None = None
    extra: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A whole speaker. `originate` are prefixes announced to every neighbor, of any number (100,000 is fine).

    `install_routes` puts what was received into the kernel of the namespace, so that it forwards packets.
    `extra` is put verbatim at the top level of the configuration.
    """

    asn: int
    router_id: str
    neighbors: tuple[Neighbor, ...] = ()
    originate: tuple[str, ...] = ()
    listen_port: int = 179
    install_routes: bool = False
    extra: str = ""

    def neighbor(self, address: str) -> Neighbor:
        """The neighbor with this address; `KeyError` otherwise."""
        for neighbor in self.neighbors:
            if neighbor.address == address:
                return neighbor
        raise KeyError(f"no neighbor {address}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRoute:
    """One path as a speaker holds it. `peer` is the address of the neighbor it came from.

    `next_hops` are those of the BGP message: the global address and, for v6, a link-local one after it.
    None of `med`, `local_pref` means the speaker reports none. Communities read `64512:100`, large ones
    `64512:1:2`; well-known ones as numbers too. `best` is the path in use, `usable` says that its next hop
    could be resolved. `stale` is kept through a graceful restart (RFC 4724) or its long-lived kind (RFC
    9494) and not yet refreshed.
    """

    prefix: str
    peer: str
    next_hops: tuple[str, ...]
    as_path: tuple[int, ...] = ()
    origin: str = "igp"
    local_pref: int | None = None
    med: int | None = None
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    best: bool = True
    usable: bool = True
    stale: bool = False

    @property
    def next_hop(self) -> str:
        return self.next_hops[0] if self.next_hops else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the other end offered in its OPEN; `restart_families` are those listed in its graceful restart."""

    families: frozenset[str] = frozenset()
    four_octet_asn: bool = False
    route_refresh: bool = False
    enhanced_refresh: bool = False
    extended_message: bool = False
    extended_next_hop: bool = False
    add_path: bool = False
    graceful_restart: bool = False
    restart_time_s: int | None = None
    restart_families: frozenset[str] = frozenset()
    long_lived: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSession:
    """One session as the speaker reports it. `state` is one of RFC 4271 section 8.2.2, in lower case.

    `capabilities` are the peer's and empty unless established; `notification` is the (code, subcode) last
    sent or received where the speaker tells numbers, `last_error` is its own words. `BgpCapture` knows what
    was on the wire.
    """

    address: str
    state: str
    uptime_s: float | None = None
    hold_time_s: float | None = None
    keepalive_s: float | None = None
    remote_id: str | None = None
    capabilities: Capabilities = Capabilities()
    last_error: str = ""
    notification: tuple[int, int] | None = None

    @property
    def established(self) -> bool:
        return self.state == "established"


class Speaker(ABC):
    """A real BGP speaker in a namespace; the lab ends it. `stop`, `kill`, `start` may come in any order."""

    kind: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]

    def __init__(self, namespace: Namespace, options: Options, name: str | None = None) -> None:
        self.namespace = namespace
        self.options = options
        self.name = name or self.kind
        self.directory: Path = namespace.lab.directory / f"{namespace.name}-{self.name}"
        self.directory.mkdir(mode=0o755)
        self.process: Process | None = None

    @abstractmethod
    def start(self, *, restarting: bool = False) -> Self:
        """Start and wait until it answers. `restarting` sets the R bit (RFC 4724) where the speaker can."""

    @abstractmethod
    def paths(self, prefix: str | None = None) -> list[ReceivedRoute]:
        """Every path received from every neighbor, or only those for exactly `prefix`."""

    @abstractmethod
    def route_count(self, address: str) -> int:
        """How many routes it holds from one neighbor; cheap also with 100,000."""

    @abstractmethod
    def session(self, address: str) -> PeerSession:
        """The session with this neighbor; `KeyError` when none is configured."""

    @abstractmethod
    def _apply(self, before: Options) -> None:
        """Make the running program follow `self.options`, leaving untouched sessions alone."""

    def stop(self) -> None:
        """End it with SIGTERM, as an operator would; peers see what this program says when it leaves."""
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        """End it with SIGKILL: no last words, the kernel closes its connections."""
        if self.process is not None:
            self.process.kill()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is said, until `resume` or the hold time is over."""
        if self.process is not None:
            self.process.pause()

    def resume(self) -> None:
        if self.process is not None:
            self.process.resume()

    def reconfigure(self, **changes: Any) -> None:
        """Replace fields of the options (`neighbors`, `originate`, ...) and apply them without a restart."""
        before = self.options
        self.options = dataclasses.replace(before, **changes)
        self._apply(before)

    def reconfigure_neighbor(self, address: str, **changes: Any) -> None:
        """Replace fields of one neighbor and apply them without a restart."""
        self.options.neighbor(address)
        self.reconfigure(
            neighbors=tuple(
                dataclasses.replace(it, **changes) if it.address == address else it
                for it in self.options.neighbors
            )
        )

    @property
    def bfd_ms(self) -> int | None:
        """The interval of BFD; None: nobody has it."""
        return next((it.bfd_ms for it in self.options.neighbors if it.bfd_ms is not None), None)

    def routes(self, peer: str | None = None) -> dict[str, ReceivedRoute]:
        """The best path of each prefix, or with `peer` the path that neighbor gave, best or not."""
        held = self.paths()
        if peer is not None:
            return {path.prefix: path for path in held if path.peer == peer}
        return {path.prefix: path for path in held if path.best}

    def route(self, prefix: str, peer: str | None = None) -> ReceivedRoute | None:
        """The best path for exactly this prefix, or the one from `peer`; None when there is none."""
        for path in self.paths(prefix):
            if path.peer == peer or (peer is None and path.best):
                return path
        return None

    def wait_established(self, address: str, timeout_s: float = 20.0) -> PeerSession:
        """Wait until the session with `address` is established, and return it."""

        def probe() -> PeerSession | None:
            session = self.session(address)
            return session if session.established else None

        return poll(
            probe, timeout_s, lambda: self._complaint(f"no session with {address}: {self.session(address)}")
        )

    def wait_down(self, address: str, timeout_s: float = 20.0) -> PeerSession:
        """Wait until the session with `address` is not established, and return what is left of it."""

        def probe() -> PeerSession | None:
            session = self.session(address)
            return None if session.established else session

        return poll(probe, timeout_s, lambda: self._complaint(f"the session with {address} stays up"))

    def wait_route(
        self,
        prefix: str,
        timeout_s: float = 20.0,
        *,
        peer: str | None = None,
        where: Callable[[ReceivedRoute], bool] = lambda route: True,
    ) -> ReceivedRoute:
        """Wait for a usable route for exactly `prefix` (from `peer`, if said) for which `where` holds."""

        def probe() -> ReceivedRoute | None:
            route = self.route(prefix, peer)
            return route if route is not None and route.usable and where(route) else None

        return poll(
            probe, timeout_s, lambda: self._complaint(f"no such route {prefix}; held: {self.paths(prefix)}")
        )

    def wait_no_route(self, prefix: str, timeout_s: float = 20.0, *, peer: str | None = None) -> None:
        """Wait until there is no route for exactly `prefix` (from `peer`, if said)."""
        poll(
            lambda: self.route(prefix, peer) is None,
            timeout_s,
            lambda: self._complaint(f"the route {prefix} stays: {self.paths(prefix)}"),
        )

    def wait_route_count(self, address: str, count: int, timeout_s: float = 60.0) -> None:
        """Wait until exactly `count` routes are held from this neighbor."""
        poll(
            lambda: self.route_count(address) == count,
            timeout_s,
            lambda: self._complaint(f"{self.route_count(address)} routes from {address}, not {count}"),
        )

    def _complaint(self, text: str) -> str:
        tail = "(never started)" if self.process is None else self.process.log_tail()
        return f"{self.kind} in {self.namespace.name}: {text}\n{tail}"


def many_prefixes(count: int, base: str = "100.64.0.0/10", length: int = 28) -> Iterator[str]:
    """The first `count` prefixes of this length inside `base`, as text; `ValueError` when it holds fewer."""
    network = ipaddress.ip_network(base)
    if count > 1 << (length - network.prefixlen):
        raise ValueError(f"{base} holds fewer than {count} /{length}")
    step = 1 << (network.max_prefixlen - length)
    first = int(network.network_address)
    make = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
    for index in range(count):
        yield f"{make(first + index * step)}/{length}"
