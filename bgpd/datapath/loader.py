"""Puts a prebuilt object into the kernel: its maps and programs are then pinned, and stay when the daemon goes.

What is pinned is what counts. A pinned map of the right layout is used on, its entries with it. One of another
release's layout is replaced by an empty one, and so is all that is of no use without it. A pinned program that is the
object's, and uses these maps, is adopted; else it is replaced in one step. Whoever holds a replaced program, such as
a rule of the nat table, keeps it and its maps until asked to take the new one: `Program.id` tells one from the other.
So fill the maps first.

Objects are built by bpf/Makefile and shipped; nothing is compiled here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bgpd.datapath import layout, pins
from bgpd.datapath.layout import MapSpec
from bgpd.datapath.libbpf import DatapathError, check, library, pointer, program_info
from bgpd.datapath.maps import Map

OBJECTS = Path(__file__).with_name("objects")
_BTF_KIND_ENUM = 6


class Program:
    """Owns `fd` and closes it when it goes. `tag` names its instructions, `maps` are the ids of those that it uses,
    `id` is the kernel's number of it. `replaced`: another program was pinned at `pin`, or none.
    """

    def __init__(self, fd: int, pin: Path, *, replaced: bool) -> None:
        self.fd, self.pin, self.replaced = fd, pin, replaced
        weakref.finalize(self, os.close, fd)
        self.tag, self.maps, self.id = program_info(fd)


@dataclass(frozen=True, slots=True)
class Installed:
    """One object in the kernel, by the names that its source gives. `renewed`: maps that replace others.
    `dropped`: the pins of maps that only other releases have, which are gone now.
    """

    maps: Mapping[str, Map]
    programs: Mapping[str, Program]
    renewed: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


def shipped(name: str) -> Path:
    """The object that bpf/NAME.bpf.c was built into."""
    return OBJECTS / f"{name}.o"


def install(file: Path, directory: Path, without: Collection[str] = ()) -> Installed:
    """Loads an object and pins what it has in `directory`, `without` these programs. Idempotent.

    DatapathError: the kernel refuses, or what is pinned there is no map, or no program. Nothing has been replaced.
    """
    pins.prepare(directory)
    call = library()
    with ExitStack() as stack:
        handle = pointer(f"opening {file}", call.bpf_object__open_file(os.fsencode(file), None))
        stack.callback(call.bpf_object__close, handle)
        _check_abi(handle, file)
        handles = {_spec(each, file).name: each for each in _all(call.bpf_object__next_map, handle)}
        there = {name: pins.any_map(directory / name, name) for name in handles}
        maps = _usable(there)
        for name, known in maps.items():
            check(f"using {directory / name}", call.bpf_map__reuse_fd(handles[name], known.fd))
        left_out = [
            each
            for each in _all(call.bpf_object__next_program, handle)
            if call.bpf_program__name(each).decode() in without
        ]
        for each in left_out:
            check(f"leaving a program of {file} out", call.bpf_program__set_autoload(each, False))
        check(f"loading {file}", call.bpf_object__load(handle))
        new = handles.keys() - maps.keys()
        for name in sorted(new, key=lambda name: not _is_of_layout(there[name], name)):
            # last what tells the next one, should we be killed here, that not all of them are ours
            pins.substitute(call.bpf_map__fd(handles[name]), directory / name)
            maps[name] = Map(os.dup(call.bpf_map__fd(handles[name])), name)
        dropped = frozenset(_dropped(directory))
        programs = {}
        for each in _all(call.bpf_object__next_program, handle):
            if each in left_out:
                continue
            pin = directory / call.bpf_program__name(each).decode()
            programs[pin.name] = _install(call.bpf_program__fd(each), pin)
    return Installed(maps, programs, frozenset(name for name in new if there[name] is not None), dropped)


class Datapath:
    """The object `name`, put into the kernel when it is first asked for. `told` is called with it then."""

    def __init__(self, name: str, directory: Path, told: Callable[[Installed], object]) -> None:
        self._name, self.directory, self._told = name, directory, told
        self._installed: Installed | None = None
        self._lock = threading.Lock()  # two threads would put the same names there
        self._installing = threading.Lock()  # each reconcile loop asks from a thread of its own

    def installed(self) -> Installed:
        """DatapathError: the kernel refuses; asked again, it is tried again."""
        with self._installing:
            if self._installed is None:
                self._installed = install(shipped(self._name), self.directory)
                self._told(self._installed)
            return self._installed


def restore(installed: Installed, directory: Path) -> None:
    """Puts back what somebody removed, or pinned something else in place of: the kernel goes on with ours.

    The programs use our maps still, the rules our programs. DatapathError as `install`.
    """
    pins.prepare(directory)
    for name, ours in installed.maps.items():
        fd = pins.get(directory / name, "map")
        if fd is None or Map(fd).id != ours.id:
            pins.substitute(ours.fd, directory / name)
    for program in installed.programs.values():
        fd = pins.get(program.pin, "prog")
        if fd is None or Program(fd, program.pin, replaced=False).id != program.id:
            pins.substitute(program.fd, program.pin)


def _usable(there: Mapping[str, Map | None]) -> dict[str, Map]:
    """Of what is pinned: maps of this layout, of those that belong together all or none."""
    lacking = {name for name, found in there.items() if not _is_of_layout(found, name)}
    lacking.update(*(group for group in layout.TOGETHER if lacking & group))
    return {name: found for name, found in there.items() if found is not None and name not in lacking}


def _dropped(directory: Path) -> Iterator[str]:
    """Takes maps away that only other releases have: whoever reads one holds it.

    None in a directory where others pin too: what a map is called there says nothing of whose it is.
    """
    subjects = {name.partition("_")[0] for name in layout.MAPS}
    paths = list(directory.iterdir())
    if not all(path.name.startswith(tuple(subjects)) for path in paths):
        return
    for path in paths:
        name = path.name.removesuffix("_new")  # which another thread may be about to rename
        subject, underscore, _ = name.partition("_")
        if name in layout.MAPS or subject not in subjects or not underscore or not pins.is_map(path, name):
            continue
        with contextlib.suppress(FileNotFoundError):  # masquerade and policy are installed at the same time
            path.unlink()
            yield name


def _is_of_layout(found: Map | None, name: str) -> bool:
    return found is not None and found.spec == layout.MAPS[name]


def _install(fd: int, pin: Path) -> Program:
    """Adopts the program pinned there if it is the one of `fd`, with the same maps; else replaces it."""
    ours, pinned = Program(os.dup(fd), pin, replaced=True), pins.get(pin, "prog")
    if pinned is not None:
        there = Program(pinned, pin, replaced=False)
        if (there.tag, there.maps) == (ours.tag, ours.maps):
            return there
    pins.substitute(fd, pin)
    return ours


def _check_abi(handle: int, file: Path) -> None:
    """DatapathError: the object was not built with the layout that this code knows."""
    call = library()
    btf = pointer(f"{file}: reading its BTF", call.bpf_object__btf(handle))
    number = check(f"{file}: finding its ABI", call.btf__find_by_name_kind(btf, b"bgpd_abi", _BTF_KIND_ENUM))
    # struct btf_type {u32 name, info, size}, then the enum's first {u32 name; s32 value}
    words = (ctypes.c_int32 * 5).from_address(call.btf__type_by_id(btf, number))
    if words[4] != layout.ABI:
        remedy = "they belong to different releases; install bgpd again"
        raise DatapathError(f"{file} has ABI {words[4]}, and this bgpd {layout.ABI}: {remedy}")


def _spec(handle: int, file: Path) -> MapSpec:
    """What the object says of a map. DatapathError: `layout` says otherwise."""
    call = library()
    found = MapSpec(
        call.bpf_map__name(handle).decode(),
        call.bpf_map__type(handle),
        call.bpf_map__key_size(handle),
        call.bpf_map__value_size(handle),
        call.bpf_map__max_entries(handle),
        call.bpf_map__map_flags(handle),
    )
    if layout.MAPS.get(found.name) != found:
        raise DatapathError(f"{file}: its map {found.name} is not the one that this bgpd knows; install bgpd again")
    return found


def _all(following: Callable[[int, int | None], int | None], handle: int) -> Iterator[int]:
    """What bpf_object__next_map and bpf_object__next_program go through."""
    each = following(handle, None)
    while each is not None:
        yield each
        each = following(handle, each)
