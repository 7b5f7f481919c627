"""Pins: what is in a bpffs under a name, so that it outlives us.

Knows how to find, put and replace them, and refuses a map that is not what it should be. Names hold no dots: bpffs
keeps those for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path

from bgpd.datapath.layout import MapSpec, MapType
from bgpd.datapath.libbpf import DatapathError, check, library
from bgpd.datapath.maps import Map

BPFFS = Path("/sys/fs/bpf")  # where distributions mount it
BPF_FS_MAGIC = 0xCAFE4A11  # linux/magic.h
KEPT_OF_NAME = 15  # BPF_OBJ_NAME_LEN in linux/bpf.h, less the NUL
_TYPE_NAMES = {int(each): each.name.lower() for each in MapType}


def prepare(directory: Path) -> None:
    """Makes the directory. DatapathError as `examine`."""
    examine(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DatapathError(f"{directory} cannot be made: {error.strerror}", error.errno or 0) from None


def examine(directory: Path) -> None:
    """DatapathError: it is not, or would not be, in a bpffs that can be written. Changes nothing."""
    place = next(path for path in (directory, *directory.parents) if os.access(path, os.F_OK))
    if not is_bpffs(place):
        mount = BPFFS if directory.is_relative_to(BPFFS) else directory.parent
        raise DatapathError(f"{directory}: there is no bpffs; mount -t bpf bpf {mount}", errno.ENOENT)
    if not os.access(place, os.W_OK):
        raise DatapathError(f"{place} cannot be written: mounted read-only, or not root?", errno.EACCES)


def is_bpffs(path: Path) -> bool:
    buffer = ctypes.create_string_buffer(256)  # struct statfs, which begins with the type
    found = ctypes.CDLL(None).statfs(os.fsencode(path), buffer) == 0
    return found and ctypes.c_uint32.from_buffer(buffer).value == BPF_FS_MAGIC


def get(path: Path, kind: str) -> int | None:
    """The descriptor of a pinned `map`, `prog` or `link`; None: the name is free. DatapathError: it is none."""
    code = library().bpf_obj_get(os.fsencode(path))
    if code == -errno.ENOENT:
        return None
    if code == -errno.EACCES and os.access(path, os.R_OK | os.W_OK):  # then it is no BPF object at all
        raise _other(path, kind)
    fd = check(f"opening {path}", code)
    if str(Path(f"/proc/self/fd/{fd}").readlink()) == f"anon_inode:bpf-{kind}":
        return fd
    os.close(fd)
    raise _other(path, kind)


def _other(path: Path, kind: str) -> DatapathError:
    command = f"rm -r {path}" if path.is_dir() else f"rm {path}"
    return DatapathError(f"{path} is not a BPF {kind}; remove it if nobody uses it: {command}", errno.EEXIST)


def is_map(path: Path, name: str) -> bool:
    """Whether it is one that was made with this name, of which the kernel keeps 15 bytes."""
    try:
        found = any_map(path)
    except DatapathError:
        return False
    return found is not None and found.spec.name == name[:KEPT_OF_NAME]


def any_map(path: Path, name: str = "") -> Map | None:
    """The map pinned there, whatever it holds; None: there is none. DatapathError: it is something else."""
    fd = get(path, "map")
    return None if fd is None else Map(fd, name)


def open_map(path: Path, spec: MapSpec, *, exact: bool = True) -> Map | None:
    """The map pinned there; None: there is none. DatapathError: it is not what `spec` says.

    Without `exact`, flags may differ: they say who may use it and how it allocates, not what it holds.
    """
    found = any_map(path, spec.name)
    if found is None:
        return None
    wanted = spec if exact else replace(spec, flags=found.spec.flags)
    differences = list(_differences(wanted, found.spec))
    if differences:
        found.close()
        remedy = f"stop what uses it and remove it: rm {path}"
        raise DatapathError(f"{path} is another map than {spec.name}: {', '.join(differences)}; {remedy}")
    return found


def open_or_create(path: Path, spec: MapSpec, *, exact: bool = True) -> Map:
    """The map pinned there, or a new one. Errors as those of `open_map` and `prepare`."""
    found = open_map(path, spec, exact=exact)
    if found is None:
        prepare(path.parent)
        found = Map.create(spec)
        put(found.fd, path)
    return found


def put(fd: int, path: Path) -> None:
    """Pins under a name that is free."""
    check(f"pinning {path}", library().bpf_obj_pin(fd, os.fsencode(path)))


def substitute(fd: int, path: Path) -> None:
    """Pins under a name that may be taken. At every moment it has the old or the new."""
    beside = path.with_name(f"{path.name}_new")
    beside.unlink(missing_ok=True)  # of one who was killed here
    put(fd, beside)
    beside.rename(path)


def _differences(wanted: MapSpec, found: MapSpec) -> Iterator[str]:
    for field in fields(MapSpec):
        want, have = getattr(wanted, field.name), getattr(found, field.name)
        if field.name == "name" or want == have:
            continue
        if field.name == "type":
            want, have = (_TYPE_NAMES.get(value, value) for value in (want, have))
        yield f"its {field.name} is {have}, not {want}"


def remove(directory: Path, patterns: Iterable[str]) -> list[str]:
    """Takes what matches away, and the directory with the last of it; what there was. OSError: it cannot be done."""
    found = sorted(pin for pattern in patterns for pin in directory.glob(pattern))
    for pin in found:
        pin.unlink()
    with contextlib.suppress(OSError):  # somebody else's pins stay
        directory.rmdir()
    return list(map(str, found))
