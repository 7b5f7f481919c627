"""Pods on macvlans: who is behind their parents, and the programs that are asked there (bpf/macvlan.bpf.c).

A macvlan's frames never meet the node's tables, so they are judged at the interface that it is made on. Two
actuators: the maps that tell the programs whose MAC address and whose address it is, and the links that have the
programs at the parents. Write the maps first: at a parent, what nobody has told of is dropped.

Whose frames may leave by a parent: of the pods that were attached through us, as themselves; of the interfaces that
the node itself has on it, whatever they say; and of the MAC addresses that the configuration names, which are other
systems' macvlans. Anything else is a macvlan that a pod has made beside its own.

This does not decide what pods may send to whom; `map` writes that.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from bgpd.datapath import features, inherited, layout, links, loader, pins
from bgpd.datapath.layout import StationFlag
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.links import Hook, Link
from bgpd.model.endpoint import Endpoint, MacvlanLink, MacvlanMode
from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.model.prefix import Address
from bgpd.netlink.link import Link as Interface
from bgpd.netlink.links import Links, own_cookie
from bgpd.policy.behind import Behind, Entry
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import Desired

_ANY_MAC = bytes(6)
_FLAGS = {
    MacvlanMode.BRIDGE: StationFlag.BRIDGE,
    MacvlanMode.VEPA: StationFlag.VEPA,
    MacvlanMode.PASSTHRU: StationFlag.PASSTHRU,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """Of interfaces that are judged at their parents, by the name of their object. `alone` are programs that it has
    beside those at the parents, and that a kernel may not be able to have.
    """

    object: str
    alone: tuple[str, ...] = ()

    @property
    def names(self) -> Mapping[Hook, str]:
        """What a program, its pin and its filter are called at each hook."""
        return {Hook.EGRESS: f"{self.object}_egress", Hook.INGRESS: f"{self.object}_ingress"}


MACVLAN = Kind("macvlan")
_WITHOUT_NETNS = "_v6_6"  # ends the name of a program for kernels that do not tell who sends
_STATIONS, _ADDRESSES, _VLANS = "macvlan_stations", "macvlan_addresses", "macvlan_vlans"
_TUNNELS = "macvlan_tunnels"


# --- who is behind a parent -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Own:
    """What the node has: by the index of a parent the MAC addresses that the node sends with there, each with the
    flag of its macvlan's mode; the cookie of its network namespace, 0 where the kernel has none; and its interfaces
    in VLANs, see `vlans_among`.
    """

    macs: Mapping[int, Mapping[bytes, StationFlag]]
    netns: int
    vlans: Mapping[bytes, int] = field(default_factory=dict)


NOTHING = Own({}, 0)


def refusal(link: MacvlanLink) -> str:
    """Why policy cannot be enforced on it; empty: it can."""
    if link.mode is MacvlanMode.SOURCE:
        return "a macvlan of mode source gets copies of what others are sent, whatever their policy; use mode bridge"
    return ""


def is_installed(directory: Path, kind: Kind = MACVLAN) -> bool:
    """Whether a parent may have our programs."""
    return (directory / kind.names[Hook.INGRESS]).exists()


def parents_of(endpoints: Iterable[Endpoint]) -> frozenset[int]:
    """The interfaces that these are on."""
    return frozenset(each.link.parent for each in endpoints if isinstance(each.link, MacvlanLink))


def mac_address(text: str) -> bytes:
    """As frames have it."""
    return bytes.fromhex(text.replace(":", ""))


def behind(have: Iterable[Entry]) -> frozenset[int]:
    """The parents that somebody is known behind."""
    return frozenset(layout.STATION_KEY.unpack(key)[0] for name, key in have if name == _STATIONS)


def vlans_among(interfaces: Iterable[Interface]) -> dict[bytes, int]:
    """By what the programs at the interface below know its frames by, as struct vlan_key: its index."""
    return {
        layout.VLAN_KEY.pack(each.other, *each.vlan): each.index
        for each in interfaces
        if each.vlan is not None and each.other is not None and each.other_netns is None
    }


def vlan_entries(vlans: Mapping[bytes, int], at: Collection[int]) -> dict[bytes, bytes]:
    """What of it is told at these parents: an interface that is a parent too has judged its frames."""
    return {
        key: layout.VLAN.pack(above if above in at else 0)
        for key, above in vlans.items()
        if layout.VLAN_KEY.unpack(key)[0] in at
    }


def entries(
    endpoints: Iterable[Endpoint],
    own: Own,
    at: Collection[int],
    others: Iterable[bytes] = (),
    tunnels: Iterable[int] = (),
) -> dict[Entry, bytes]:
    """What the maps are to hold; `at` are the parents, `others` the MAC addresses of other systems' macvlans,
    `tunnels` the UDP ports of the node's tunnels.
    """
    pods = [(each, each.link) for each in endpoints if isinstance(each.link, MacvlanLink)]
    senders = [(parent, mac, 0, StationFlag.BRIDGE) for mac in set(others) for parent in at]
    senders += [(parent, mac, own.netns, flag) for parent in at for mac, flag in own.macs.get(parent, {}).items()]
    want = {
        _station_key(parent, mac): layout.STATION.pack(bytes(16), bytes(16), netns, mac, StationFlag.NODE | flag)
        for parent, mac, netns, flag in senders
    }
    want |= {(_TUNNELS, layout.transport_port(port)): layout.PRESENT for port in tunnels}
    want |= {(_VLANS, key): value for key, value in vlan_entries(own.vlans, at).items()}
    for endpoint, link in pods:
        want.update(entries_of(endpoint, link))
    return want


def entries_of(endpoint: Endpoint, link: MacvlanLink) -> dict[Entry, bytes]:
    """What they are to hold of one pod."""
    mac = mac_address(endpoint.mac)
    station = layout.STATION.pack(*first_addresses(endpoint.addresses), link.netns, mac, _FLAGS.get(link.mode, 0))
    found = {_station_key(link.parent, mac): station}
    if link.mode is MacvlanMode.PASSTHRU:
        found[_station_key(link.parent, _ANY_MAC)] = station
    owner = layout.OWNER.pack(mac, bytes(2))
    for address in endpoint.addresses:
        found[_ADDRESSES, layout.ADDRESS_KEY.pack(link.parent, layout.policy_address(address))] = owner
    return found


def _station_key(parent: int, mac: bytes) -> Entry:
    return _STATIONS, layout.STATION_KEY.pack(parent, mac, bytes(2))


def first_addresses(addresses: Sequence[Address]) -> tuple[bytes, bytes]:
    """The first of each version, as the maps have it; zeros: there is none."""
    found = {address.version: layout.policy_address(address) for address in reversed(addresses)}
    return found.get(4, bytes(16)), found.get(6, bytes(16))


def stations(installed: loader.Installed, directory: Path) -> Behind[Own]:
    """The actuator of these maps."""
    return Behind(installed, directory, (_ADDRESSES, _STATIONS, _VLANS, _TUNNELS), NOTHING, _own)


def _own() -> Own:
    with Links() as found:
        macs: dict[int, dict[bytes, StationFlag]] = {}
        interfaces = found.all_here()
        for each in interfaces:
            mac = mac_address(each.mac)
            if mac:
                macs.setdefault(each.index, {}).setdefault(mac, StationFlag(0))
            if mac and each.other is not None and each.other_netns is None:
                macs.setdefault(each.other, {})[mac] = _flag(each)
    return Own(macs, own_cookie(), vlans_among(interfaces))


def _flag(link: Interface) -> StationFlag:
    known = link.kind == "macvlan" and link.mode in list(MacvlanMode)
    return _FLAGS.get(MacvlanMode(link.mode), StationFlag(0)) if known else StationFlag(0)


# --- the programs at it ---------------------------------------------------------------------------------------------


Programs: TypeAlias = Mapping[Hook, int]
"""At a parent: the id of the program that is asked at each hook."""


def install(directory: Path, kind: Kind = MACVLAN) -> loader.Installed:
    """The object, without those programs, of each that there are two of, that this kernel is not to have."""
    names = (kind.names[Hook.EGRESS], *kind.alone)
    unfit = [name + _WITHOUT_NETNS for name in names] if features.can_tell_netns() else names
    installed = loader.install(loader.shipped(kind.object), directory, without=unfit)
    inherited.tell(installed)
    return installed


def program(installed: loader.Installed, name: str) -> loader.Program:
    """The one of this name that the kernel has."""
    return installed.programs.get(name) or installed.programs[name + _WITHOUT_NETNS]


def programs(installed: loader.Installed, kind: Kind = MACVLAN) -> Mapping[Hook, loader.Program]:
    """Those that are to be asked at a parent."""
    return {hook: program(installed, name) for hook, name in kind.names.items()}


def asks_others(installed: loader.Installed, have: Mapping[int, Programs], kind: Kind = MACVLAN) -> bool:
    """Whether programs are asked at a parent that are not ours."""
    ours = {each.id for each in programs(installed, kind).values()}
    return any(not ours.issuperset(asked.values()) for asked in have.values())


def desired(
    at: Collection[int],
    installed: loader.Installed,
    have: Mapping[int, Programs],
    *,
    written: bool,
    kind: Kind = MACVLAN,
) -> Desired[int, Programs]:
    """Ours at each of these parents. Until all is `written` only where there is none, or not at both hooks: there one
    that finds nothing yet is better.
    """
    asked = {hook: each.id for hook, each in programs(installed, kind).items()}
    lacking = (parent for parent in at if written or have.get(parent, {}).keys() != asked.keys())
    return Desired(dict.fromkeys(lacking, asked), complete=written)


class ParentLinks:
    """The actuator; its objects are parents by their index. A link is pinned beside the programs, and held here: when
    its pin is removed it is still in force, and is pinned again.
    """

    def __init__(self, installed: loader.Installed, directory: Path, kind: Kind = MACVLAN) -> None:
        self._programs, self._directory, self._kind = programs(installed, kind), directory, kind
        self._held: dict[tuple[int, Hook], Link] = {}

    async def observe(self) -> Mapping[int, Programs]:
        return await asyncio.to_thread(self._observe)

    async def apply(self, changes: Sequence[Change[int, Programs]]) -> Sequence[Outcome]:
        return [await asyncio.to_thread(self._apply, change.key, change.want) for change in changes]

    def _observe(self) -> dict[int, dict[Hook, int]]:
        """A parent whose links are not all there, and pinned, has only those that are."""
        found: dict[int, dict[Hook, int]] = {ifindex: {} for ifindex, _ in self._held}
        for path in self._directory.glob(f"{self._kind.object}_*_at_*"):
            name, _, ifindex = path.name.rpartition("_at_")
            hook = next((hook for hook, known in self._kind.names.items() if known == name), None)
            if hook is not None and ifindex.isdecimal():
                self._look(path, int(ifindex), hook, found.setdefault(int(ifindex), {}))
        return found

    def _look(self, path: Path, ifindex: int, hook: Hook, found: dict[Hook, int]) -> None:
        link = links.pinned(path)
        program = link.program_at(ifindex, hook) if link else None
        if link is not None and program is not None and self._held.setdefault((ifindex, hook), link).id == link.id:
            found[hook] = program

    def _apply(self, ifindex: int, want: Programs | None) -> Outcome:
        try:
            for hook in Hook:
                if want is None:
                    self._detach(ifindex, hook)
                else:
                    self._attach(ifindex, hook)
        except DatapathError as error:
            return Blocked(str(error)) if error.code == errno.EINVAL else Retry(str(error))
        return DONE

    def _attach(self, ifindex: int, hook: Hook) -> None:
        program, link, pin = self._programs[hook], self._held.get((ifindex, hook)), self._pin(ifindex, hook)
        there = link.program_at(ifindex, hook) if link else None
        if link is None or there is None:
            link = links.attach(program.fd, ifindex, hook)
        elif there != program.id:
            link.update(program.fd)
        pins.substitute(link.fd, pin)
        self._held[ifindex, hook] = link

    def _detach(self, ifindex: int, hook: Hook) -> None:
        self._pin(ifindex, hook).unlink(missing_ok=True)
        link = self._held.pop((ifindex, hook), None)
        if link is not None:
            link.detach()
            link.close()

    def _pin(self, ifindex: int, hook: Hook) -> Path:
        return self._directory / f"{self._kind.names[hook]}_at_{ifindex}"
