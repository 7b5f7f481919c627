"""Finds out where peers are that are not given by address, and lets them find us. A shell; `places` decides.

    kernel: links, addresses, default routes, neighbors ──► Uplinks ──► plan
    router solicitation, router advertisement ◄── every few seconds, on links where a peer is expected

It reads all of it again whenever the kernel tells of a change that may matter, and now and then in any case. A node
whose peers all have addresses costs nothing: then it neither looks, listens nor sends.

What cannot be sent (no CAP_NET_RAW) is told as the reason why a peer is not found; what is found already stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface

from bgpd.bgp.places import HOLD_S, after, interfaces, places
from bgpd.config.bgp import Peer
from bgpd.config.load import Loaded
from bgpd.model.prefix import Address, link_local
from bgpd.model.uplink import NO_UPLINKS, NOT_READ, Gateway, Link, Route, Uplinks
from bgpd.netlink import link as rtlink
from bgpd.netlink import route as rtnetlink
from bgpd.netlink import uplink as rtuplink
from bgpd.netlink.ndisc import Sender
from bgpd.netlink.rtsocket import (
    GROUP_IPV4_ADDRESS,
    GROUP_IPV4_ROUTE,
    GROUP_IPV6_ADDRESS,
    GROUP_IPV6_ROUTE,
    GROUP_LINK,
    GROUP_NEIGH,
    Request,
    RtSocket,
    RtWatch,
)
from bgpd.observe import log
from bgpd.runtime.store import Revision, Store

GROUPS = (GROUP_LINK, GROUP_NEIGH, GROUP_IPV4_ADDRESS, GROUP_IPV4_ROUTE, GROUP_IPV6_ADDRESS, GROUP_IPV6_ROUTE)
ADVERTISE_S = (3.0, 4.0)  # RFC 4861 section 6.2.1: as often as may be, because a switch that came back waits for it
CALM_S = 0.05  # a burst of news is one look
VERIFY_S = 5.0  # each answer is news, and news is another look
SETTLE_S = 15.0  # a peer that is not found by then is not there: FRR advertises every 10 s


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the kernel. `indexes` and `macs` are those of `uplinks.links`. `verified`: somebody was asked.

    `interfaces`: all there are.
    """

    uplinks: Uplinks
    interfaces: frozenset[str] = frozenset()
    indexes: Mapping[str, int] = field(default_factory=dict)
    macs: Mapping[str, str] = field(default_factory=dict)
    verified: bool = False


class Discovery:
    """Keeps `uplinks` as the kernel has them. Unsynced: a peer is not found that may be there all the same."""

    def __init__(self, config: Store[Loaded], uplinks: Store[Uplinks]) -> None:
        self._config, self.uplinks = config, uplinks
        self._look = Look(NO_UPLINKS)
        self._verified = -VERIFY_S
        self._joined = asyncio.Event()
        self._sender: Sender | None = None
        self._refused = ""
        self._log = log.get("discovery")

    async def run(self) -> None:
        """For ever; cancel it."""
        started: float | None = None
        while True:
            revision = self._config.newest.revision
            if not self._wanted:
                # Unsynced: peers that come later, as with Cilium's objects, must not be missed before the first look.
                self.uplinks.publish(NOT_READ, synced=False)
                started = None
                await self._config.newer_than(revision)
                continue
            started = time.monotonic() if started is None else started
            await self._follow(revision, started)

    @property
    def _wanted(self) -> bool:
        return any(peer.peer_address is None for peer in self._config.newest.value.config.bgp.peers)

    @property
    def _interfaces(self) -> frozenset[str]:
        """Where a peer is expected: as configured, and where default routes have link-local gateways."""
        gateways = self.uplinks.newest.value.gateways
        configured = interfaces(self._config.newest.value.config.bgp.peers)
        return configured | {gateway.interface for gateway in gateways if gateway.interface}

    async def _follow(self, revision: Revision, started: float) -> None:
        """Until the configuration is another one."""
        watch = RtWatch(GROUPS)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._observe(watch, started), name="observe uplinks"),
                    group.create_task(self._advertise(), name="advertise on uplinks"),
                ]
                await self._config.newer_than(revision)
                for task in tasks:
                    task.cancel()
        finally:
            watch.close()

    # --- what is there ------------------------------------------------------------------------------------

    async def _observe(self, watch: RtWatch, started: float) -> None:
        while True:
            await self.look(time.monotonic() - started)
            await asyncio.sleep(CALM_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await self._news(watch)

    async def _news(self, watch: RtWatch) -> None:
        """Waits for some that another look is worth its while for."""
        interfaces = frozenset(self._look.indexes.values())
        while (news := await watch.news()) is not None:
            if any(rtuplink.concerns(each, interfaces) for each in news):
                return

    async def look(self, age_s: float) -> None:
        """Reads what is there now, and publishes it. `age_s`: since when that is done."""
        verify = time.monotonic() - self._verified >= VERIFY_S
        try:
            self._look = await asyncio.to_thread(look, self._interfaces, verify)
        except OSError as error:
            self._log.warning("uplinks cannot be read", error=str(error))
            return
        if self._look.verified:
            self._verified = time.monotonic()
        before = self.uplinks.newest.value
        new_to = self._look.interfaces if age_s < HOLD_S else None
        now = replace(self._look.uplinks, problem=self._refused, new_to=new_to)
        found = after(before, now, time.monotonic())
        peers = self._config.newest.value.config.bgp.peers
        all_found = all(place.address is not None for place in places(peers, found))
        self._tell(before, found)
        if _sendable(found).keys() - _sendable(before).keys():
            self._joined.set()
        self.uplinks.publish(found, synced=age_s > SETTLE_S or all_found)

    def _tell(self, before: Uplinks, now: Uplinks) -> None:
        for name, link in now.links.items():
            was = before.links.get(name)
            if link.peer is not None and (was is None or was.peer != link.peer):
                self._log.info("router found", interface=name, address=str(link.peer))
        for gateway, route in now.gateways.items():
            was_gone = gateway not in before.gateways or before.gateways[gateway].gone_at is not None
            where = {"address": str(gateway.address)}
            if gateway.interface:
                where["interface"] = gateway.interface
            if route.gone_at is None and was_gone:
                self._log.info("default gateway", **where)
            elif route.gone_at is not None and not was_gone:
                self._log.warning("no default route by this gateway any more, it is kept for now", **where)
        for gateway in before.gateways.keys() - now.gateways.keys():
            self._log.warning("default gateway given up", address=str(gateway.address))

    # --- who we are ---------------------------------------------------------------------------------------

    async def _advertise(self) -> None:
        """Tells the links where peers are expected that we are there, and asks who else is. A new link at once."""
        try:
            while True:
                self._joined.clear()
                self._send()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(*ADVERTISE_S)):  # noqa: S311 - nodes do not keep step
                        await self._joined.wait()
        finally:
            if self._sender is not None:
                self._sender.close()
                self._sender = None

    def _send(self) -> None:
        try:
            self._sender = self._sender or Sender()
        except OSError as error:
            remedy = "; bgpd needs CAP_NET_RAW for that" if isinstance(error, PermissionError) else ""
            self._refused = f"router advertisements cannot be sent: {error.strerror}{remedy}"
            return
        self._refused = ""
        for name, local in _sendable(self.uplinks.newest.value).items():
            if name in self._look.indexes:
                ask = not self.uplinks.newest.value.links[name].routers
                self._send_on(self._sender, name, local, ask=ask)

    def _send_on(self, sender: Sender, name: str, source: IPv6Address, *, ask: bool) -> None:
        """A link that takes nothing is nothing to the others."""
        index, mac = self._look.indexes[name], self._look.macs[name]
        try:
            sender.advertise(index, source, mac)
            if ask:
                sender.solicit(index, source, mac)
        except PermissionError:
            self._refused = f"router advertisements cannot be sent on {name}: a firewall of this node drops them"
        except OSError as error:  # the link has gone since
            self._log.debug("router advertisement", interface=name, error=str(error))


def _sendable(uplinks: Uplinks) -> dict[str, IPv6Address]:
    """The links that something can be sent on, and from where."""
    return {name: link.local for name, link in uplinks.links.items() if link.is_up and link.local is not None}


@dataclass(frozen=True, slots=True)
class _Found:
    """Addresses and routers by the index of their interface. `trusted`: the routers the kernel does not ask."""

    own: Mapping[int, Sequence[IPv6Address]]
    subnets: Sequence[tuple[int, IPv4Interface | IPv6Interface]]
    routers: Mapping[int, frozenset[IPv6Address]]
    trusted: frozenset[tuple[int, IPv6Address]]

    @classmethod
    def of(cls, addresses: Sequence[bytes], neighbors: Sequence[bytes]) -> _Found:
        own: dict[int, list[IPv6Address]] = defaultdict(list)
        for index, address in sorted(filter(None, map(rtuplink.link_local, addresses))):  # the lowest counts
            own[index].append(address)
        routers: dict[int, set[IPv6Address]] = defaultdict(set)
        for index, address in filter(None, map(rtuplink.router, neighbors)):
            routers[index].add(address)
        usable = sorted(filter(rtuplink.is_usable, addresses), key=rtuplink.is_passing)
        subnets = list(filter(None, map(rtnetlink.found_address, usable)))
        trusted = filter(None, map(rtuplink.router, filter(rtuplink.is_trusted, neighbors)))
        by_index = {index: frozenset(found) for index, found in routers.items()}
        return cls(own, subnets, by_index, frozenset(trusted))

    def link(self, index: int, is_up: bool) -> Link:
        own = self.own.get(index, ())
        return Link(is_up, next(iter(own), None), self.routers.get(index, frozenset()), ours=frozenset(own))

    def route(self, gateway: Address, index: int) -> Route:
        """With our addresses that go with the gateway's."""
        theirs: Sequence[Address] = [ip.ip for at, ip in self.subnets if at == index and gateway in ip.network]
        if link_local(gateway):
            theirs = self.own.get(index, ())
        return Route(next(iter(theirs), None), ours=frozenset(theirs))


def now(peers: Sequence[Peer]) -> Uplinks:
    """What a daemon that is started now would find at once. OSError: the kernel cannot be asked."""
    if all(peer.peer_address is not None for peer in peers):
        return NO_UPLINKS
    return after(NO_UPLINKS, look(interfaces(peers), verify=True).uplinks, time.monotonic())


def look(wanted: frozenset[str], verify: bool) -> Look:
    """What the kernel shows of these interfaces, and all gateways. `verify`: of several routers, ask who is there.

    A switch that was replaced may be trusted for 45 s more when the link came back before its loss was noticed.
    """
    with RtSocket() as netlink:
        links = {rtlink.link(body).name: body for body in netlink.dump(rtlink.GETLINK, rtlink.link_request(None))}
        names = {rtlink.link_index(body): name for name, body in links.items()}
        addresses = netlink.dump(rtnetlink.GETADDR, rtnetlink.addresses_request())
        neighbors = netlink.dump(rtnetlink.GETNEIGH, rtnetlink.neighbors_request(rtnetlink.FAMILY[6], 0))
        hops = {
            hop
            for version in (4, 6)
            for body in netlink.dump(rtnetlink.GETROUTE, rtnetlink.routes_request(version))
            for hop in rtuplink.gateways(body)
        }
        wanted |= {names[index] for address, index in hops if link_local(address) and index in names}
        found = _Found.of(addresses, neighbors)
        indexes = {name: rtlink.link_index(links[name]) for name in wanted if name in links}
        there = {
            name: found.link(index, rtuplink.carries(links[name])) for name, index in indexes.items()
        }
        rivals = {indexes[name] for name, link in there.items() if verify and len(link.routers) > 1}
        doubtful = [rtuplink.verification(address, index) for index, address in found.trusted if index in rivals]
        netlink.change([Request(rtnetlink.NEWNEIGH, 0, body) for body in doubtful])
    gateways = {
        Gateway(address, names[index] if link_local(address) else ""): found.route(address, index)
        for address, index in hops
        if index in names
    }
    macs = {name: rtlink.link(links[name]).mac for name in there}
    return Look(Uplinks(there, gateways), frozenset(links), indexes, macs, verified=bool(doubtful))
