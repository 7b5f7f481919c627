"""The kernel as node routes' target: reads what is there, writes what differs, many messages at a time. A shell.

A route is made only where nobody has one to the same prefix, whatever its metric, and taken away only as exactly the
one that is ours; nor is one replaced that may be another's by now: a foreign route is never touched. What anything
should be is decided by `noderoutes.plan`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from bgpd.model.noderoute import (
    DEVICE,
    MARK,
    Device,
    DeviceKey,
    ForwardingKey,
    Key,
    NeighborKey,
    OwnAddressKey,
    Route,
    RouteKey,
    Value,
)
from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.model.prefix import Prefix
from bgpd.netlink import link
from bgpd.netlink import route as rtnetlink
from bgpd.netlink.rtsocket import APPEND, CREATE, EXCLUSIVE, EXT_ACK, REPLACE, STRICT, Refusal, Request, RtSocket
from bgpd.noderoutes.observed import Dumps, Observed, device_of, read
from bgpd.runtime.diff import Change, Kind
from bgpd.runtime.reconcile import TargetError

_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL)  # it is not there: then it need not go
_NO_FAMILY = (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)  # IPv6 is not in the kernel, or has no table yet


@dataclass(frozen=True, slots=True)
class _Swap:
    """One route of ours for another; the bodies of both. `same_hop`: they differ in something else."""

    key: Key
    old: bytes
    new: bytes
    same_hop: bool


class Target:
    """`prefixes` are those to look for foreign routes to; `flannel` looks for signs of it."""

    def __init__(self, prefixes: Callable[[], Collection[Prefix]], flannel: Callable[[], Sequence[str]]) -> None:
        self._prefixes, self._flannel = prefixes, flannel
        self._routes: RtSocket | None = None
        self._looked_for: frozenset[Prefix] = frozenset()
        self.seen = Observed()

    @property
    def port(self) -> int:
        """Of the socket that changes things; 0: none is open."""
        return self._routes.port if self._routes is not None else 0

    def close(self) -> None:
        """What is in the kernel stays."""
        if self._routes is not None:
            self._routes.close()
            self._routes = None

    async def observe(self) -> dict[Key, Value]:
        prefixes = frozenset(self._prefixes())
        try:
            self.seen = await asyncio.to_thread(self._read, prefixes)
        except OSError as error:
            raise TargetError(f"rtnetlink cannot be asked: {error}") from None
        self._looked_for = prefixes
        return dict(self.seen.have)

    async def apply(self, changes: Sequence[Change[Key, Value]]) -> Sequence[Outcome]:
        return await asyncio.to_thread(self._apply, changes)

    # --- reading ------------------------------------------------------------------------------------------

    def _read(self, prefixes: frozenset[Prefix]) -> Observed:
        return look(self._open(), prefixes, self._flannel())

    def _open(self) -> RtSocket:
        self._routes = self._routes or opened()
        return self._routes

    # --- writing ------------------------------------------------------------------------------------------

    def _apply(self, changes: Sequence[Change[Key, Value]]) -> list[Outcome]:
        outcomes: dict[Key, Outcome] = {}
        requests: list[tuple[Change[Key, Value], Request]] = []
        swaps: list[_Swap] = []
        indexes = dict(self.seen.indexes)
        for change in changes:
            if isinstance(change.key, DeviceKey) and change.want is not None:
                outcomes[change.key] = self._make_device(change, indexes)
            elif isinstance(refused := self._foreign(change), Retry):
                outcomes[change.key] = refused
            else:
                request = _request(change, indexes)
                if request is None:
                    outcomes[change.key] = Retry(f"{change.key}: there is no interface {_interface(change)} yet")
                elif isinstance(change.key, RouteKey) and change.kind is Kind.UPDATE:
                    swaps.append(_Swap(change.key, *_bodies(change, indexes)))
                else:
                    requests.append((change, request))
        answers = self._open().change([request for _, request in requests])
        for (change, _), answer in zip(requests, answers, strict=True):
            outcomes[change.key] = _outcome(change, answer)
        outcomes |= self._swap(swaps)
        return [outcomes[change.key] for change in changes]

    def _swap(self, swaps: Sequence[_Swap]) -> dict[Key, Outcome]:
        """One of ours for another, with no moment between them, and never for one that somebody has put there since.

        What replaces a route replaces whatever is there. So the new one goes behind the old one, which is then taken
        away as exactly what it was; where that is gone, the new one goes too. Both by one next hop there cannot be.
        """
        beside = [swap for swap in swaps if not swap.same_hop]
        refused = self._each(rtnetlink.NEWROUTE, CREATE | APPEND, {swap.key: swap.new for swap in beside})
        left = [swap for swap in swaps if swap.key not in refused]
        lost = self._each(rtnetlink.DELROUTE, 0, {swap.key: swap.old for swap in left})
        self._each(rtnetlink.DELROUTE, 0, {swap.key: swap.new for swap in beside if swap.key in lost})
        instead = {swap.key: swap.new for swap in left if swap.same_hop and swap.key not in lost}
        refused |= self._each(rtnetlink.NEWROUTE, CREATE | EXCLUSIVE, instead)
        outcomes: dict[Key, Outcome] = {key: Retry(f"{key}: {answer}") for key, answer in refused.items()}
        outcomes |= {key: Retry(f"{key}: somebody has just changed it ({answer})") for key, answer in lost.items()}
        return {swap.key: outcomes.get(swap.key, DONE) for swap in swaps}

    def _each(self, kind: int, flags: int, bodies: dict[Key, bytes]) -> dict[Key, Refusal]:
        """Those that the kernel refused."""
        answers = self._open().change([Request(kind, flags, body) for body in bodies.values()])
        return {key: answer for key, answer in zip(bodies, answers, strict=True) if answer is not None}

    def _foreign(self, change: Change[Key, Value]) -> Retry | None:
        """A look for somebody else's route to a prefix that nobody asked for when all was last read."""
        if change.kind is not Kind.ADD or not isinstance(change.key, RouteKey):
            return None
        prefix = change.key.prefix
        if prefix in self._looked_for:
            return None
        try:
            (answer,) = self._open().ask(rtnetlink.GETROUTE, rtnetlink.best_request(prefix))
        except OSError as error:  # a blackhole, say: the next plan knows whose
            return None if error.errno == errno.ENETUNREACH else Retry(f"{prefix} cannot be looked up: {error}")
        best = rtnetlink.found_route(answer)
        if best is None or best.key.prefix != prefix or best.protocol == rtnetlink.PROTOCOL:
            return None
        return Retry(f"{prefix} has a route already that is not ours")  # which stands in the next plan

    def _make_device(self, change: Change[Key, Value], indexes: dict[str, int]) -> Outcome:
        """Makes it, or puts right what can be: a number, a port or an address that is another means another one."""
        have, want = change.have, change.want
        assert isinstance(want, Device)
        if isinstance(have, Device) and have.kind != want.kind:
            return Blocked(f"there is an interface {DEVICE} of kind {have.kind} that is not ours; rename it")
        requests = []
        renewed = isinstance(have, Device) and _identity(have) != _identity(want)
        on_it = list(self._on_device()) if renewed else []
        if renewed:
            requests.append(Request(link.DELLINK, 0, rtnetlink.no_device(DEVICE)))
        there = have if isinstance(have, Device) and not renewed else None
        if there is None:
            requests.append(Request(link.NEWLINK, CREATE | EXCLUSIVE, rtnetlink.device(DEVICE, want)))
        settings = rtnetlink.device_settings(DEVICE, want, there or want)
        requests += [Request(link.NEWLINK, 0, body) for body in settings]
        for refusal in self._open().change(requests):
            if refusal is not None:
                remedy = _remedy(refusal) or f"is CONFIG_VXLAN there, and UDP port {want.port} free?"
                return Retry(f"{DEVICE} cannot be made: {refusal}; {remedy}")
        device = device_of(_links(self._open()))
        if device is not None:
            indexes[DEVICE] = device.index
            self.seen = _with_index(self.seen, device.index)
        # what is refused here the next round, which reads all anew, tries again or names
        self._open().change([request for it in on_it if (request := _request(it, indexes)) is not None])
        return Retry(f"{DEVICE} was made anew, for {want.local}; what lies on it follows") if renewed else DONE

    def _on_device(self) -> Iterator[Change[Key, Value]]:
        """What makes all that lies on the device, for one in its place: nothing is to wait for another round."""
        have = look(self._open(), frozenset(), ()).have
        for key in sorted(have, key=lambda key: key.order):
            change: Change[Key, Value] = Change(key, have[key], None)
            if not isinstance(key, DeviceKey) and _interface(change) == DEVICE:
                yield change


def opened() -> RtSocket:
    """A socket that minds what it is asked for, and says in words what it refuses."""
    return RtSocket((EXT_ACK, STRICT))


def look(routes: RtSocket, prefixes: frozenset[Prefix], flannel: Sequence[str]) -> Observed:
    """All that concerns node routes. OSError: the kernel cannot be asked."""
    links = _links(routes)
    device = device_of(links)
    forwarding, neighbors = [], []
    if device is not None:
        request = partial(rtnetlink.neighbors_request, interface=device.index)
        forwarding = _dumped(routes, rtnetlink.GETNEIGH, request(rtnetlink.AF_BRIDGE))
        for family in rtnetlink.FAMILY.values():
            neighbors += _dumped(routes, rtnetlink.GETNEIGH, request(family))
    addresses = routes.dump(rtnetlink.GETADDR, rtnetlink.addresses_request())
    dumps = Dumps(links, addresses, _all_routes(routes), forwarding, neighbors)
    return read(dumps, set(map(rtnetlink.prefix_key, prefixes)), flannel)


def _links(routes: RtSocket) -> list[rtnetlink.FoundLink]:
    return list(map(rtnetlink.found_link, routes.dump(link.GETLINK, link.link_request(None))))


def _all_routes(routes: RtSocket) -> list[bytes]:
    requests = map(rtnetlink.routes_request, rtnetlink.FAMILY)
    return [body for request in requests for body in _dumped(routes, rtnetlink.GETROUTE, request)]


def _dumped(routes: RtSocket, kind: int, request: bytes) -> list[bytes]:
    """Nothing, where the kernel has no such family, or the device has just gone."""
    try:
        return routes.dump(kind, request)
    except OSError as error:
        if error.errno in (*_NO_FAMILY, errno.ENODEV):
            return []
        raise


def clear(state: Path) -> list[str]:
    """Takes all routes of ours, and the device, out of the kernel; what there was. TargetError: it cannot be done.

    `state`: the directory in which a file says that there may be some.
    """
    try:
        with opened() as routes:
            found = list(_ours(routes))
            answers = routes.change([request for _, request in found])
    except OSError as error:
        raise TargetError(f"node routes cannot be taken out: {error}") from None
    refused = [(what, answer) for (what, _), answer in zip(found, answers, strict=True) if answer is not None]
    for what, answer in refused:
        if answer.errno not in _GONE:
            raise TargetError(f"{what} cannot be taken out: {answer}; {_remedy(answer) or 'try again'}")
    (state / MARK).unlink(missing_ok=True)
    return [what for what, _ in found]


def _ours(routes: RtSocket) -> Iterator[tuple[str, Request]]:
    for body in _all_routes(routes):
        found = rtnetlink.found_route(body) if rtnetlink.protocol_of(body) == rtnetlink.PROTOCOL else None
        if found is not None:
            value = Route(found.via, "", found.onlink)
            request = Request(rtnetlink.DELROUTE, 0, rtnetlink.route(found.key, value, found.interface))
            yield str(found.key), request
    device = device_of(_links(routes))
    if device is not None and device.kind == "vxlan":
        yield DEVICE, Request(link.DELLINK, 0, rtnetlink.no_device(DEVICE))


def _request(change: Change[Key, Value], indexes: dict[str, int]) -> Request | None:
    """None: the interface that it takes is not there."""
    key, want, value = change.key, change.want, change.want if change.want is not None else change.have
    index = indexes.get(_interface(change), 0)
    if not index and want is not None:
        return None
    match key, value:
        case RouteKey(), Route():
            kind = rtnetlink.NEWROUTE if want is not None else rtnetlink.DELROUTE
            return Request(kind, CREATE | EXCLUSIVE if want is not None else 0, rtnetlink.route(key, value, index))
        case NeighborKey(), str():
            body, kinds = rtnetlink.neighbor(key.address, value, index), (rtnetlink.NEWNEIGH, rtnetlink.DELNEIGH)
        case ForwardingKey(), IPv4Address() | IPv6Address():
            body, kinds = rtnetlink.forwarding(key.mac, value, index), (rtnetlink.NEWNEIGH, rtnetlink.DELNEIGH)
        case OwnAddressKey(), _:
            body, kinds = rtnetlink.own_address(key.address, index), (rtnetlink.NEWADDR, rtnetlink.DELADDR)
        case _:
            return Request(link.DELLINK, 0, rtnetlink.no_device(DEVICE))
    return Request(kinds[want is None], CREATE | REPLACE if want is not None else 0, body)


def _bodies(change: Change[Key, Value], indexes: dict[str, int]) -> tuple[bytes, bytes, bool]:
    """Of the route that is there and of the one that is to be, and whether both have one next hop."""
    key, old, new = change.key, change.have, change.want
    assert isinstance(key, RouteKey)
    assert isinstance(old, Route)
    assert isinstance(new, Route)
    before, after = (rtnetlink.route(key, value, indexes.get(value.interface, 0)) for value in (old, new))
    return before, after, (old.via, old.interface) == (new.via, new.interface)


def _interface(change: Change[Key, Value]) -> str:
    value = change.want if change.want is not None else change.have
    return value.interface if isinstance(value, Route) else DEVICE


def _outcome(change: Change[Key, Value], answer: Refusal | None) -> Outcome:
    if answer is None or (change.want is None and answer.errno in _GONE):
        return DONE
    if answer.errno == errno.EEXIST:
        return Retry(f"{change.key}: somebody else has just made one")
    return Retry(f"{change.key}: {answer}" + (f"; {remedy}" if (remedy := _remedy(answer)) else ""))


def _remedy(answer: Refusal) -> str:
    return "it takes CAP_NET_ADMIN: run as root" if answer.errno == errno.EPERM else ""


def _identity(device: Device) -> Iterable[object]:
    return device.vni, device.port, device.local, device.learns


def _with_index(seen: Observed, index: int) -> Observed:
    return Observed(seen.have, seen.host, {**seen.indexes, DEVICE: index}, seen.links, seen.addresses)
