"""Pods on ipvlans: who is behind their parents, and the programs that are asked there and in the pods.

What one pod of a parent sends to another never meets the parent, and a sender with CAP_NET_RAW bypasses whatever is
asked where it sends. So both ends' rules are asked where the receiver gets it (`podhooks`), those of the outside at
the parent (`parents`, `filters`). All share the parent's MAC address: what tells one from another is its address, and
an address that nobody behind a parent has does not leave by it.

Four loops, in this order: the maps that tell whose address it is, the program that those in the pods go on with,
the programs in the pods, those at the parents.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bgpd.config.load import Loaded
from bgpd.datapath import layout, loader
from bgpd.datapath.layout import OwnerFlag
from bgpd.datapath.loader import Datapath
from bgpd.model.endpoint import Endpoint, Endpoints, IpvlanLink, IpvlanMode
from bgpd.model.policy import Tampering
from bgpd.model.prefix import Address, Prefix
from bgpd.netlink.links import Links, own_cookie
from bgpd.netlink.rtsocket import GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS, GROUP_LINK, GROUP_TC, RtWatch
from bgpd.policy import filters, parents, podhooks
from bgpd.policy.behind import Behind, Entry, full, left_out
from bgpd.policy.ondemand import Needs, OnDemand, applied, heed, looked_at, then
from bgpd.policy.parents import Kind, Programs
from bgpd.policy.podhooks import FILTER, Meddling, Place
from bgpd.runtime.reconcile import Actuator, Desired, Reconciler, Round
from bgpd.runtime.store import Store

KIND = Kind("ipvlan", alone=(FILTER,))
LOOK_S = 1.0  # how long a pod may go without its program where it can remove it, should the kernel not tell of it
_ADDRESSES, _PODS, _FOREIGN, _VLANS = "ipvlan_addresses", "ipvlan_pods", "ipvlan_foreign", "ipvlan_vlans"
_TUNNELS = "ipvlan_tunnels"
_NOBODY = bytes(16)  # the address that stands for the node itself
_FEWER = (
    "name their prefixes by `policy.foreignCIDRs`, or have fewer: each counts once for each parent, and kube-proxy "
    "in IPVS mode gives the node every Service's"
)


# --- who is behind a parent -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Own:
    """What the node has: by the index of a parent the addresses on ipvlans of its own there; all its addresses, in
    the order of their interfaces; the parents that there are; the cookie of its network namespace, 0 where the kernel
    has none; and its interfaces in VLANs, see `parents.vlans_among`.
    """

    beside: Mapping[int, frozenset[Address]]
    addresses: tuple[Address, ...]
    interfaces: frozenset[int]
    netns: int
    vlans: Mapping[bytes, int] = field(default_factory=dict)


NOTHING = Own({}, (), frozenset(), 0)


def refusal(link: IpvlanLink) -> str:
    """Why policy cannot be enforced on it; empty: it can."""
    if link.reflecting:
        return (
            "an ipvlan with the flag vepa sends to other pods of the node by the switch, and nobody can tell what it "
            "gives back from what somebody forges; use the flag bridge"
        )
    return ""


def on_ipvlans(endpoints: Iterable[Endpoint]) -> list[tuple[Endpoint, IpvlanLink]]:
    return [(each, each.link) for each in endpoints if isinstance(each.link, IpvlanLink)]


def on_stack(endpoints: Iterable[Endpoint]) -> list[tuple[Endpoint, IpvlanLink]]:
    """Those that send by the node's stack."""
    return [(each, link) for each, link in on_ipvlans(endpoints) if link.mode is not IpvlanMode.L2]


def parents_of(endpoints: Iterable[Endpoint]) -> frozenset[int]:
    """The interfaces that these are on."""
    return frozenset(link.parent for _, link in on_ipvlans(endpoints))


def number_of(endpoint: Endpoint, link: IpvlanLink) -> int:
    """By which its program finds a pod: no two of a parent have one address, and a pod keeps its own."""
    told = b"".join(sorted(map(layout.policy_address, endpoint.addresses)))
    (number,) = struct.unpack("=Q", hashlib.sha256(struct.pack("=I", link.parent) + told).digest()[:8])
    return int(number) or 1


def places(endpoints: Iterable[Endpoint]) -> dict[int, Place]:
    """Where each pod's program is to be, by its number."""
    return {number_of(each, link): Place(link.place, link.index) for each, link in on_ipvlans(endpoints)}


def entries(
    endpoints: Iterable[Endpoint],
    own: Own,
    at: Collection[int],
    closed: Collection[int] = (),
    foreign: Iterable[Prefix] = (),
    tunnels: Iterable[int] = (),
) -> dict[Entry, bytes]:
    """What the maps are to hold, the most important first; `at` are the parents, `closed` the numbers of pods that
    are cut off, `foreign` where the node sends from without having it, `tunnels` the UDP ports of its tunnels.
    """
    want = {(_FOREIGN, layout.policy_prefix(prefix)): layout.PRESENT for prefix in foreign}
    want |= {(_TUNNELS, layout.transport_port(port)): layout.PRESENT for port in tunnels}
    endpoints = list(endpoints)
    node = layout.IPVLAN_OWNER.pack(0, own.netns, 0, 0)
    above = layout.IPVLAN_OWNER.pack(0, own.netns, OwnerFlag.STACK, 0)
    stack = {link.parent for _, link in on_stack(endpoints)}
    want.update({_address_key(parent, _NOBODY): above if parent in stack else node for parent in at})
    want.update({(_VLANS, key): value for key, value in parents.vlan_entries(own.vlans, at).items()})
    for endpoint, link in on_ipvlans(endpoints):
        want.update(entries_of(endpoint, link, closed))
    beside = layout.IPVLAN_OWNER.pack(0, own.netns, OwnerFlag.BESIDE, 0)
    for parent in at:
        for address in own.beside.get(parent, ()):
            want.setdefault(_address_key(parent, layout.policy_address(address)), beside)
    for address in own.addresses:  # of the first interfaces at every parent, then others'
        for parent in at:
            want.setdefault(_address_key(parent, layout.policy_address(address)), node)
    return want


def entries_of(endpoint: Endpoint, link: IpvlanLink, closed: Collection[int] = ()) -> dict[Entry, bytes]:
    """What they are to hold of one pod."""
    number = number_of(endpoint, link)
    first = parents.first_addresses(endpoint.addresses)
    pod = layout.IPVLAN_POD.pack(*first, link.parent, 0)
    flags = OwnerFlag.CLOSED if number in closed else OwnerFlag(0)
    if link.mode is IpvlanMode.L3S:
        flags |= OwnerFlag.STACK
    owner = layout.IPVLAN_OWNER.pack(number, link.netns, flags, 0)
    addresses = (_address_key(link.parent, layout.policy_address(address)) for address in endpoint.addresses)
    return {_pod_key(number): pod, **dict.fromkeys(addresses, owner)}


def _pod_key(number: int) -> Entry:
    return _PODS, layout.POD_NUMBER.pack(number)


def _address_key(parent: int, address: bytes) -> Entry:
    return _ADDRESSES, layout.IPVLAN_ADDRESS_KEY.pack(parent, address)


def _told_at(have: Iterable[Entry]) -> frozenset[int]:
    """The parents of which the programs know."""
    return frozenset(layout.IPVLAN_ADDRESS_KEY.unpack(key)[0] for name, key in have if name == _ADDRESSES)


def _closed_in(have: Mapping[Entry, bytes]) -> frozenset[int]:
    """The numbers of pods that are closed."""
    owners = (layout.IPVLAN_OWNER.unpack(value) for (name, _), value in have.items() if name == _ADDRESSES)
    return frozenset(number for number, _, flags, _ in owners if flags & OwnerFlag.CLOSED)


def neighbors(installed: loader.Installed, directory: Path) -> Behind[Own]:
    """The actuator of these maps."""
    return Behind(installed, directory, (_ADDRESSES, _PODS, _FOREIGN, _VLANS, _TUNNELS), NOTHING, _own)


def _own() -> Own:
    with Links() as found:
        interfaces, addresses = found.all_here(), found.addresses_here()
    ipvlans = {each.index: each.other for each in interfaces if each.kind == "ipvlan" and each.other_netns is None}
    beside: dict[int, set[Address]] = {}
    in_order = sorted(addresses, key=lambda each: each[0])
    for index, address in addresses:
        if (parent := ipvlans.get(index)) is not None:
            beside.setdefault(parent, set()).add(address)
    return Own(
        {parent: frozenset(each) for parent, each in beside.items()},
        tuple(dict.fromkeys(address for _, address in in_order if not address.is_loopback)),
        frozenset(each.index for each in interfaces),
        own_cookie(),
        parents.vlans_among(interfaces),
    )




# --- put together ---------------------------------------------------------------------------------------------------


class Ipvlans:
    """Keeps maps and programs as planned. On a node without such pods nothing is loaded for them.

    `removed` counts the times that somebody has taken a pod's program away. `written`: whether all maps have been, so
    that programs of another release may go.
    """

    def __init__(
        self,
        config: Store[Loaded],
        endpoints: Store[Endpoints],
        datapath: Datapath,
        report: Callable[[Round], None],
        written: Callable[[], bool],
    ) -> None:
        self._config, self._endpoints, self._datapath, self._written = config, endpoints, datapath, written
        self._behind: Behind[Own] | None = None
        self._at_parents = OnDemand(self._open_parents, lambda: self._behind is not None)
        self._meddling, self._recalled = Meddling(), False
        self._left_out: frozenset[Entry] = frozenset()
        self._deaf, self._removable = False, False
        self.removed = 0
        self.neighbors: Reconciler[Entry, bytes] = Reconciler(
            "policy_ipvlans",
            self._want_neighbors,
            OnDemand(self._open_neighbors, self._has_ipvlans),
            str,
            then(report, self._neighbors_written),
        )
        self.shared: Reconciler[str, int] = Reconciler(
            "policy_ipvlan_shared",
            self._want_shared,
            OnDemand(self._open_shared, lambda: self._behind is not None),
            str,
            then(report, lambda: self.pods.kick(stale=True)),
        )
        self.pods: Reconciler[int, Place] = Reconciler(
            "policy_ipvlan_pods",
            self._want_pods,
            OnDemand(self._open_pods, lambda: self._behind is not None),
            int,
            then(report, lambda: self.neighbors.kick()),
            resync_s=lambda: LOOK_S,
        )
        self.parents: Reconciler[int, Programs] = Reconciler(
            "policy_ipvlan_parents",
            self._want_parents,
            self._at_parents,
            int,
            then(report, lambda: self.neighbors.kick()),
        )
        config.on_change(self.neighbors.kick)

    @property
    def loops(self) -> tuple[Reconciler[Any, Any], ...]:
        return (self.neighbors, self.shared, self.pods, self.parents)

    def inputs_changed(self) -> None:
        for loop in self.loops:
            loop.kick(stale=self._has_ipvlans())

    @property
    def knows_asked(self) -> bool:
        """Whether it is known which programs are asked at parents."""
        return self._at_parents.looked or not self._has_ipvlans()

    @property
    def asks_others(self) -> bool:
        """Whether some of these, as far as known, are not ours."""
        return self._behind is not None and parents.asks_others(self._behind.installed, self.parents.have, KIND)

    def needs(self, endpoint: Endpoint, link: IpvlanLink) -> Needs:
        """What polices it, each after what it takes: of each loop the objects without which it is not."""
        told = (_address_key(link.parent, _NOBODY), *entries_of(endpoint, link))
        number = number_of(endpoint, link)
        hooks = (self.shared, (FILTER,)), (self.pods, (number,)), (self.parents, (link.parent,))
        return (self.neighbors, told), *hooks

    def overflow(self, endpoint: Endpoint) -> str:
        """Why there is no room for what it needs; empty: there is, or it is on no ipvlan."""
        if not self._left_out or not isinstance(endpoint.link, IpvlanLink):
            return ""
        lacking = self._left_out.intersection(entries_of(endpoint, endpoint.link))
        return next((f"{full(name)}; have fewer pods on ipvlans, with fewer addresses" for name, _ in lacking), "")

    def problems(self) -> Iterator[str]:
        """Pods that have meddled with what polices them, and addresses of the node's that there is no room for."""
        pods = self._endpoints.newest.value.values()
        meddled = self._meddling.among(places(pods))
        for each, link in on_ipvlans(pods):
            if number_of(each, link) in meddled:
                closed = "; it is closed until it is started anew" if self._closes else "; it was put back"
                yield f"policy: somebody in {each} removed the program that it is policed by{closed}"
        if self._deaf and self._removable and self._has_ipvlans():
            yield (
                "policy: bgpd is not told when a pod on an ipvlan removes the program that it is policed by, and "
                "notices it late; give its unit CAP_NET_BROADCAST (systemd/ipvlan.conf)"
            )
        if node := sum(name == _ADDRESSES for name, _ in self._left_out):
            yield (
                f"policy: {full(_ADDRESSES)}: at parents of ipvlans what the node sends from {node:,} more of its "
                f"addresses is dropped before Linux 6.15; {_FEWER}"
            )

    async def follow(self) -> None:
        """Interfaces, addresses and filters here, interfaces and filters in pods' namespaces too. Until cancelled."""
        own = RtWatch((GROUP_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS))

        def look_at_own() -> None:
            if self._has_ipvlans():
                self.neighbors.kick(stale=True)

        def look_at_pods() -> None:
            if self._has_ipvlans():
                self.pods.suspect()

        async with asyncio.TaskGroup() as group:
            group.create_task(heed(own, look_at_own), name="what the node has on parents of ipvlans")
            group.create_task(heed(self._watch_pods(), look_at_pods), name="what pods on ipvlans change")
            group.create_task(
                filters.watch(lambda: self.parents.have, self.parents.suspect), name="filters at parents of ipvlans"
            )
            group.create_task(self._start_programs(), name="programs after neighbors")

    async def _start_programs(self) -> None:
        """Maps that have what is wanted already are not written, and nobody is told; nor of programs that are."""
        await applied(self.neighbors)
        self._neighbors_written()
        await looked_at(self.parents)
        self.neighbors.kick()

    def _watch_pods(self) -> RtWatch:
        try:
            return RtWatch((GROUP_LINK, GROUP_TC), everywhere=True)
        except PermissionError:
            self._deaf = True
            return RtWatch((GROUP_LINK, GROUP_TC))

    # --- what the reconcilers ask -------------------------------------------------------------------------

    @property
    def _closes(self) -> bool:
        return self._config.newest.value.config.policy.on_tampering is Tampering.CLOSE

    def _has_ipvlans(self) -> bool:
        pods = self._endpoints.newest.value.values()
        return bool(parents_of(pods)) or parents.is_installed(self._datapath.directory, KIND)

    def _want_neighbors(self) -> Desired[Entry, bytes]:
        """Those of a parent stay for as long as programs are asked there: to them the node would be a stranger."""
        policy = self._config.newest.value.config.policy
        pods, closed = self._endpoints.newest.value.values(), self._closed()
        own = self._behind.own if self._behind else NOTHING
        at = parents_of(pods) | self.parents.have.keys()
        foreign, tunnels = (policy.foreign_cidrs, policy.tunnel_ports) if at else ((), ())
        want = entries(pods, own, at, closed, foreign, tunnels)
        self._left_out = left_out(want)
        for entry in self._left_out:
            del want[entry]
        return Desired(want, complete=self._endpoints.newest.synced and self._at_parents.looked)

    def _closed(self) -> frozenset[int]:
        """The numbers of pods that are cut off. Of those that meddled before our time the maps tell, once."""
        at = places(self._endpoints.newest.value.values())
        if not self._recalled and self._behind is not None and self._endpoints.newest.synced:
            self._meddling.note(_closed_in(self.neighbors.have), at)
            self._recalled = True
        self._meddling.forget_gone(at)
        return self._meddling.among(at) if self._closes else frozenset()

    def _want_shared(self) -> Desired[str, int]:
        """What is there stays until all that another is to find has been written."""
        if self._behind is None or not self._written():
            return Desired({}, complete=False)
        return Desired({FILTER: parents.program(self._behind.installed, FILTER).id}, complete=True)

    def _want_pods(self) -> Desired[int, Place]:
        """Only pods that the maps know, for a program that finds nothing there lets nothing through; or that have
        had it: rather are they cut off than open."""
        told = self.neighbors.ever_applied and self._endpoints.newest.synced
        if self._behind is None or not (told and self.shared.have):
            return Desired({}, complete=self._behind is None and not self._has_ipvlans())
        known, have = self.neighbors.have, self.pods.have
        wanted = places(self._endpoints.newest.value.values()).items()
        there = {number: at for number, at in wanted if number in have or _pod_key(number) in known}
        return Desired(there, complete=True)

    def _want_parents(self) -> Desired[int, Programs]:
        """Only where the maps have been written, or were. One that is gone loses its last pod by itself."""
        if self._behind is None or not (self.neighbors.ever_applied and self._endpoints.newest.synced):
            return Desired({}, complete=self._behind is None and not self._has_ipvlans())
        told, there = _told_at(self.neighbors.have) | self.parents.have.keys(), self._behind.own.interfaces
        at = parents_of(self._endpoints.newest.value.values()) & told & there
        return parents.desired(at, self._behind.installed, self.parents.have, written=self._written(), kind=KIND)

    def _neighbors_written(self) -> None:
        for loop in (self.shared, self.pods, self.parents):
            loop.kick(stale=True)

    def _removed(self, number: int) -> None:
        """Called in a thread, by the loop of pods."""
        self.removed += 1
        self._meddling.note([number], places(self._endpoints.newest.value.values()))

    def _open_neighbors(self) -> Behind[Own]:
        self._datapath.installed()  # the maps of both objects are the same, and it has made them
        self._behind = neighbors(parents.install(self._datapath.directory, KIND), self._datapath.directory)
        return self._behind

    def _open_shared(self) -> podhooks.Shared:
        assert self._behind is not None, "nobody goes on with a program before pods are known"
        return podhooks.Shared(self._behind.installed, parents.program(self._behind.installed, FILTER))

    def _open_pods(self) -> podhooks.PodHooks:
        assert self._behind is not None, "nothing is wanted in a pod before it is known"
        hooks = podhooks.actuator(
            self._behind.installed,
            self._datapath.directory,
            lambda: places(self._endpoints.newest.value.values()),
            self._removed,
        )
        self._removable = isinstance(hooks, podhooks.HookFilters)
        return hooks

    def _open_parents(self) -> Actuator[int, Programs]:
        assert self._behind is not None, "nothing is wanted at a parent before the pods are known"
        return filters.actuator(self._behind.installed, self._datapath.directory, KIND)
