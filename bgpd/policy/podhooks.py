"""The programs that are asked in pods on ipvlans, at the ingress of their interfaces (bpf/ipvlan.bpf.c).

An interface in a pod's network namespace can have a program only from within: the daemon enters for that. Where the
kernel has tcx it is a pinned link, which is the node's and which no pod can remove. Without tcx it is a filter of
clsact, which a pod with CAP_NET_ADMIN can remove, or put others before: so it is looked for, put back, with whatever
is in its place removed, and whoever asks is told of the pod. The ingress of a pod's interface is ours alone.

A pod that deletes its interface gets nothing by it any more: that is as good as a program.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bgpd.datapath import jump, links, loader, pins
from bgpd.datapath.jump import Jump
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.links import Hook, Link
from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.netlink.clsact import Filters, Side
from bgpd.netlink.enter import within, within_each
from bgpd.netlink.rtsocket import EXT_ACK, RtSocket
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import TargetError

PREFIX = "ipvlan_pod_at_"  # of the pins of links, followed by the pod's number
FILTER = "ipvlan_pod"
_PINS = PREFIX + "[0-9a-f]" * 16  # and not what `pins.substitute` leaves when it is killed
_REMEDY = "; without tcx (Linux 6.6) this takes the modules sch_ingress and cls_bpf"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """An interface of a pod: of this index in the network namespace at this path."""

    netns: Path
    index: int


_NOWHERE = Place(Path(), 0)  # as the kernel has the index of an interface that is gone


class Shared:
    """The actuator of what the programs in all pods go on with; its one object is the program of that name."""

    def __init__(self, installed: loader.Installed, program: loader.Program) -> None:
        self._table, self._program = installed.maps["ipvlan_jump"], program

    async def observe(self) -> Mapping[str, int]:
        found = await asyncio.to_thread(self._table.lookup, jump.FIRST)
        return {} if found is None else {FILTER: int.from_bytes(found, sys.byteorder)}

    async def apply(self, changes: Sequence[Change[str, int]]) -> Sequence[Outcome]:
        await asyncio.to_thread(self.put)
        return [DONE] * len(changes)

    def put(self) -> None:
        """For all of them with one write. DatapathError: the kernel refuses."""
        self._table.update({jump.FIRST: self._program.fd.to_bytes(4, sys.byteorder)})


class PodHooks(Protocol):
    """An actuator; its objects are pods by their number. Done: no packet comes to the pod unasked."""

    async def observe(self) -> Mapping[int, Place]: ...

    async def apply(self, changes: Sequence[Change[int, Place]]) -> Sequence[Outcome]: ...


def actuator(
    installed: loader.Installed,
    directory: Path,
    wanted: Callable[[], Mapping[int, Place]],
    removed: Callable[[int], object],
) -> PodHooks:
    """By what this kernel can do. `removed` is called for a pod whose program somebody took away. DatapathError: the
    kernel cannot be asked.
    """
    if links.has_tcx():
        return HookLinks(installed, directory, wanted)
    return HookFilters(installed, wanted, removed)


class Meddling:
    """Who has removed the program that it is policed by, and where it was then: whoever has its addresses next, so
    also its number, is another pod.
    """

    def __init__(self) -> None:
        self._places: dict[int, Place] = {}

    def note(self, numbers: Iterable[int], at: Mapping[int, Place]) -> None:
        """`at` are the places of all pods, by their numbers."""
        self._places.update({number: at[number] for number in numbers if number in at})

    def among(self, at: Mapping[int, Place]) -> frozenset[int]:
        """Of the pods that are there now."""
        return frozenset(number for number, place in at.items() if self._places.get(number) == place)

    def forget_gone(self, at: Mapping[int, Place]) -> None:
        for number in self._places.keys() - self.among(at):
            del self._places[number]


class _Programs:
    """One for each pod. Those of the daemon before do the same, unless the map that they jump through is new."""

    def __init__(self, installed: loader.Installed) -> None:
        self._table = installed.maps["ipvlan_jump"]
        self._loaded: dict[int, Jump] = {}

    def of(self, number: int) -> Jump:
        if number not in self._loaded:
            self._loaded[number] = jump.load(number, self._table)
        return self._loaded[number]

    def forget(self, number: int) -> None:
        """Of a pod that is gone: a link or filter keeps its program by itself."""
        self._loaded.pop(number, None)

    def is_it(self, number: int, program: int) -> bool:
        """Whether the program of this id does what the pod's is to do."""
        ours = self.of(number)
        if program == ours.id:
            return True
        known = jump.known(program)
        return known is not None and (known.tag, known.maps) == (ours.tag, ours.maps)


class HookLinks:
    """By tcx. What is wanted tells where a link is that was there before us: it knows an index, and no namespace."""

    def __init__(
        self, installed: loader.Installed, directory: Path, wanted: Callable[[], Mapping[int, Place]]
    ) -> None:
        self._programs, self._directory, self._wanted = _Programs(installed), directory, wanted
        self._held: dict[int, Link] = {}
        self._places: dict[int, Place] = {}

    async def observe(self) -> Mapping[int, Place]:
        return await asyncio.to_thread(self._observe)

    async def apply(self, changes: Sequence[Change[int, Place]]) -> Sequence[Outcome]:
        return [await asyncio.to_thread(self._apply, change.key, change.want) for change in changes]

    def _observe(self) -> dict[int, Place]:
        for path in self._directory.glob(_PINS):
            number = int(path.name.removeprefix(PREFIX), 16)
            if number not in self._held and (link := links.pinned(path)) is not None:
                self._held[number] = link
        wanted = self._wanted()
        for number in [number for number in self._places if self._is_put_again(number)]:
            del self._places[number]
        for number in self._held.keys() - self._places.keys() & wanted.keys():
            if self._is_at(number, wanted[number]):
                self._places[number] = wanted[number]
        found = dict.fromkeys(self._held, _NOWHERE) | self._places
        return found | {number: _NOWHERE for number in self._held if not self._is_in_force(number)}

    def _is_at(self, number: int, place: Place) -> bool:
        program = self._held[number].program_at(place.index, Hook.INGRESS)
        return program is not None and self._programs.is_it(number, program)

    def _is_in_force(self, number: int) -> bool:
        """And goes on to be when we end. Where the interface is gone there is nothing to be asked about."""
        place = self._places.get(number, _NOWHERE)
        return self._path(number).exists() and (self._is_at(number, place) or self._is_at(number, _NOWHERE))

    def _is_put_again(self, number: int) -> bool:
        """Whether the interface is gone, and another has its index, in another namespace of the same name or not."""
        held = self._held.get(number)
        gone = held is None or held.program_at(_NOWHERE.index, Hook.INGRESS) is not None
        return gone and _has_interface(self._places[number])

    def _apply(self, number: int, want: Place | None) -> Outcome:
        if want is None:
            self._detach(number)
            self._programs.forget(number)
            return DONE
        try:
            link = self._held.get(number)
            if link is None or self._places.get(number) != want:
                link = self._updated(number, want) or self._attached(number, want)
            pins.substitute(link.fd, self._path(number))
        except (DatapathError, OSError) as error:
            if _is_gone(error):
                self._detach(number)
                self._places[number] = want
            return _outcome(error)
        before = self._held.get(number)
        if before is not None and before is not link:
            _end(before)
        self._held[number], self._places[number] = link, want
        return DONE

    def _updated(self, number: int, want: Place) -> Link | None:
        """The link of another release that is there, with our program: no packet misses both. None: there is none."""
        link = self._held.get(number)
        if link is None or number in self._places or link.program_at(want.index, Hook.INGRESS) is None:
            return None
        link.update(self._programs.of(number).fd)
        return link

    def _attached(self, number: int, want: Place) -> Link:
        """Beside the one that there was, which may be in force there."""
        program = self._programs.of(number)
        return within(want.netns, lambda: links.attach(program.fd, want.index, Hook.INGRESS))

    def _detach(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)
        self._places.pop(number, None)
        link = self._held.pop(number, None)
        if link is not None:
            _end(link)

    def _path(self, number: int) -> Path:
        return self._directory / f"{PREFIX}{number:016x}"


def _end(link: Link) -> None:
    link.detach()
    link.close()


class HookFilters:
    """By clsact. Only those of pods that are known can be found."""

    def __init__(
        self,
        installed: loader.Installed,
        wanted: Callable[[], Mapping[int, Place]],
        removed: Callable[[int], object],
    ) -> None:
        self._programs, self._wanted, self._removed = _Programs(installed), wanted, removed
        self._placed: dict[int, Place] = {}

    async def observe(self) -> Mapping[int, Place]:
        return await asyncio.to_thread(self._observe)

    async def apply(self, changes: Sequence[Change[int, Place]]) -> Sequence[Outcome]:
        return await asyncio.to_thread(lambda: [self._apply(change.key, change.want) for change in changes])

    def _observe(self) -> dict[int, Place]:
        """What cannot be looked at is put again, which tells why it cannot be; nobody is to blame for it."""
        found, wanted = {}, self._wanted()
        numbers = {**wanted, **self._placed}
        filters = _filters_at(numbers.values())
        for number, place in numbers.items():
            try:
                is_there = self._is_there(number, filters[place])
            except (DatapathError, OSError):
                found[number] = _NOWHERE
                continue
            if is_there:
                found[number] = self._placed[number] = place
            elif self._placed.pop(number, None) is not None and wanted.get(number) == place:
                self._removed(number)
        return found

    def _is_there(self, number: int, looked: int | OSError | None) -> bool:
        """Its filter; or the interface is not, and there is nothing to be asked about. OSError: nobody knows."""
        if not isinstance(looked, OSError):
            return looked is not None and self._programs.is_it(number, looked)
        if _is_gone(looked):
            return True
        raise looked

    def _apply(self, number: int, want: Place | None) -> Outcome:
        before = self._placed.get(number)
        done: Outcome = DONE
        if want is not None:
            done = _tried(lambda: _put(want, self._programs.of(number).fd))
        if done == DONE and before is not None and before != want:
            done = _tried(lambda: _remove(before))
        if done != DONE:
            return done
        if want is None:
            self._placed.pop(number, None)
            self._programs.forget(number)
        else:
            self._placed[number] = want
        return DONE


def remove(namespaces: Iterable[Path]) -> list[str]:
    """Takes the filters away; what there was. Links go with their pins. TargetError: it cannot be done."""
    removed: list[str] = []
    for netns in namespaces:
        try:
            removed += [f"clsact {FILTER} at interface {index} of {netns}" for index in within(netns, _remove_all)]
        except FileNotFoundError:
            continue  # its pod has ended
        except OSError as error:
            raise TargetError(f"{error.filename or netns}: {error.strerror}") from error
    return removed


def _remove_all() -> list[int]:
    with RtSocket((EXT_ACK,)) as rtnetlink:
        filters = Filters(rtnetlink)
        found = [each for each in filters.interfaces() if filters.program(each, Side.INGRESS, FILTER) is not None]
        for index in found:
            filters.remove(index, Side.INGRESS, FILTER)
    return found


def _has_interface(place: Place) -> bool:
    try:
        return within(place.netns, lambda: place.index in dict(socket.if_nameindex()))
    except OSError as error:
        return not _is_gone(error)


def _filters_at(places: Iterable[Place]) -> dict[Place, int | OSError | None]:
    """The program that is asked first at each; None: there is none of ours. OSError: why it is not known."""
    indexes: dict[Path, set[int]] = {}
    for place in places:
        indexes.setdefault(place.netns, set()).add(place.index)
    looked = within_each(indexes, lambda netns: _filters_of(indexes[netns]))
    return {
        Place(netns, index): found if isinstance(found, OSError) else found[index]
        for netns, found in looked.items()
        for index in indexes[netns]
    }


def _filters_of(indexes: Iterable[int]) -> dict[int, int | OSError | None]:
    """In the namespace of this thread."""
    there = dict(socket.if_nameindex())
    gone = OSError(errno.ENODEV, os.strerror(errno.ENODEV))  # not a filter that was removed
    with RtSocket() as rtnetlink:
        filters = Filters(rtnetlink)
        return {each: filters.first(each, Side.INGRESS, FILTER) if each in there else gone for each in indexes}


def _put(place: Place, program: int) -> None:
    def put() -> None:
        with RtSocket((EXT_ACK,)) as rtnetlink:
            Filters(rtnetlink).put_first(place.index, Side.INGRESS, FILTER, program)

    within(place.netns, put)


def _remove(place: Place) -> None:
    def remove() -> None:
        with RtSocket((EXT_ACK,)) as rtnetlink:
            Filters(rtnetlink).remove(place.index, Side.INGRESS, FILTER)

    within(place.netns, remove)


def _tried(change: Callable[[], None]) -> Outcome:
    try:
        change()
    except (DatapathError, OSError) as error:
        return _outcome(error)
    return DONE


def _is_gone(error: DatapathError | OSError) -> bool:
    """The interface, or its namespace, which is a file; nothing else that is not found is."""
    if isinstance(error, DatapathError):
        return error.code == errno.ENODEV
    return error.errno == errno.ENODEV or (error.errno == errno.ENOENT and error.filename is not None)


def _outcome(error: DatapathError | OSError) -> Outcome:
    if _is_gone(error):
        return DONE
    if isinstance(error, DatapathError):
        code, text = error.code, str(error)
    else:
        code, text = error.errno or 0, f"{error.filename or 'a filter of clsact'}: {error.strerror}"
    remedy = _REMEDY if code == errno.ENOENT else ""
    what = f"a program in a pod on an ipvlan: {text}{remedy}"
    return Blocked(what) if code == errno.EPERM else Retry(what)  # a module may be loaded later
