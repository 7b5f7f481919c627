"""Runs a program under the system call rules of a unit file, where no systemd is running to do it.

    python confine.py UNIT PROGRAM [ARGUMENT]...

Takes over `SystemCallFilter`, `RestrictAddressFamilies`, `MemoryDenyWriteExecute` and `RestrictNamespaces`, in
the sense of systemd.exec(5), as one allow list whose default is EPERM. User, capabilities and mounts are the
caller's. Needs no_new_privs (or root), libseccomp and `systemd-analyze`, which knows what the `@` sets hold.
Standard library only: it is started by path, as another user.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ALLOW = 0x7FFF0000
EQUAL, MASKED_EQUAL = 4, 7
WRITE_EXEC = mmap.PROT_WRITE | mmap.PROT_EXEC
SHM_EXEC = 0o100000
NAMESPACES = 0x7E020000  # CLONE_NEW*, all of them


def errno_action(number: int) -> int:
    return 0x00050000 | number


@dataclass(frozen=True, slots=True)
class Condition:
    """Argument number `argument` must equal `value` in the bits of `mask`; without a mask, altogether."""

    argument: int
    value: int
    mask: int | None = None


def directives(unit: Path) -> dict[str, list[str]]:
    """Every setting of a unit file in order, comments left out; the sections' names do not clash here."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and key[0] not in "#;[":
            found.setdefault(key, []).append(value)
    return found


def system_calls(filters: list[str]) -> set[str]:
    """The names that the `SystemCallFilter=` lines allow: the first is a list, later ones add or, with ~, take."""
    allowed = members("@default") | {"execve"}
    for line in filters:
        names: set[str] = set().union(*(members(word) for word in line.removeprefix("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def members(name: str) -> set[str]:
    """The system calls of an `@` set, sets within it resolved; of a plain name, the name."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True)
    words = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return set().union(*(members(word) for word in words if word and not word.startswith("#")))


def conditions(settings: dict[str, list[str]]) -> dict[str, list[Condition]]:
    """The calls that are allowed only if one of these conditions on an argument holds."""
    found: dict[str, list[Condition]] = {}
    if families := " ".join(settings.get("RestrictAddressFamilies", [])).split():
        found["socket"] = [Condition(0, getattr(socket, family)) for family in families]
    if settings.get("MemoryDenyWriteExecute") == ["yes"]:
        found["mmap"] = [Condition(2, value, WRITE_EXEC) for value in (0, mmap.PROT_WRITE, mmap.PROT_EXEC)]
        found["mprotect"] = found["pkey_mprotect"] = [Condition(2, 0, mmap.PROT_EXEC)]
        found["shmat"] = [Condition(2, 0, SHM_EXEC)]
    if settings.get("RestrictNamespaces") == ["yes"]:
        found["clone"] = [Condition(0, 0, NAMESPACES)]
        found["unshare"] = [Condition(0, 0, NAMESPACES)]
    return found


class Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def confine(unit: Path) -> None:
    """Puts this process, and what it executes, under the unit's rules for good. Raises OSError."""
    settings = directives(unit)
    limited = conditions(settings)
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    context = ctypes.c_void_p(library.seccomp_init(errno_action(errno.EPERM)))

    def add(action: int, name: str, condition: Condition | None = None) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # of another architecture
        compared = (Comparison * 1)()
        if condition is not None and condition.mask is None:
            compared[0] = Comparison(condition.argument, EQUAL, condition.value, 0)
        elif condition is not None:
            compared[0] = Comparison(condition.argument, MASKED_EQUAL, condition.mask or 0, condition.value)
        count = 0 if condition is None else 1
        checked(library.seccomp_rule_add_array(context, action, number, ctypes.c_uint(count), compared))

    for name in sorted(system_calls(settings["SystemCallFilter"])):
        if name == "clone3" and "clone" in limited:
            add(errno_action(errno.ENOSYS), name)  # its flags cannot be seen; glibc then uses clone
        elif name in limited:
            for condition in limited[name]:
                add(ALLOW, name, condition)
        else:
            add(ALLOW, name)
    checked(library.seccomp_load(context))


def checked(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result), "libseccomp")


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - a test's own program
