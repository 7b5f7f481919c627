"""A thin binding on libbpf.so.1, and the one place where its failures get a cause and a remedy.

Debian's iproute2 depends on libbpf, so it is on every node. Only what the other modules here call is bound. libbpf
prints why it refuses an object; that text is caught and becomes part of the error.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import re
from pathlib import Path
from typing import Any

from bgpd.runtime.reconcile import TargetError

ENOTSUPP = 524  # the kernel's own, linux/errno.h; not in `errno`
CAP_SYS_ADMIN, CAP_BPF = 21, 39  # linux/capability.h
_WARN = 0  # enum libbpf_print_level
_LOG_BYTES = 1 << 20  # the verifier's report comes as one message
_LOG_LINES = 12  # of it, the last: they say why

_ptr, _int, _str = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_u32, _u64 = ctypes.c_uint32, ctypes.c_uint64
_SIGNATURES: dict[str, tuple[Any, ...]] = {  # result, then arguments
    "libbpf_version_string": (_str,),
    "libbpf_num_possible_cpus": (_int,),
    "libbpf_probe_bpf_prog_type": (_int, _int, _ptr),
    "libbpf_probe_bpf_helper": (_int, _int, _int, _ptr),
    "bpf_object__open_file": (_ptr, _str, _ptr),
    "bpf_object__load": (_int, _ptr),
    "bpf_object__close": (None, _ptr),
    "bpf_object__btf": (_ptr, _ptr),
    "bpf_object__next_map": (_ptr, _ptr, _ptr),
    "bpf_object__next_program": (_ptr, _ptr, _ptr),
    "btf__find_by_name_kind": (_int, _ptr, _str, _u32),
    "btf__type_by_id": (_ptr, _ptr, _u32),
    "bpf_program__set_autoload": (_int, _ptr, ctypes.c_bool),
    "bpf_program__name": (_str, _ptr),
    "bpf_program__fd": (_int, _ptr),
    "bpf_map__name": (_str, _ptr),
    "bpf_map__fd": (_int, _ptr),
    "bpf_map__reuse_fd": (_int, _ptr, _int),
    "bpf_map__type": (_int, _ptr),
    "bpf_map__key_size": (_u32, _ptr),
    "bpf_map__value_size": (_u32, _ptr),
    "bpf_map__max_entries": (_u32, _ptr),
    "bpf_map__map_flags": (_u32, _ptr),
    "bpf_map_create": (_int, _int, _str, _u32, _u32, _u32, _ptr),
    "bpf_map_update_elem": (_int, _int, _ptr, _ptr, _u64),
    "bpf_map_lookup_elem": (_int, _int, _ptr, _ptr),
    "bpf_map_delete_elem": (_int, _int, _ptr),
    "bpf_map_get_next_key": (_int, _int, _ptr, _ptr),
    "bpf_map_update_batch": (_int, _int, _ptr, _ptr, _ptr, _ptr),
    "bpf_map_delete_batch": (_int, _int, _ptr, _ptr, _ptr),
    "bpf_map_lookup_batch": (_int, _int, _ptr, _ptr, _ptr, _ptr, _ptr, _ptr),
    "bpf_obj_pin": (_int, _int, _str),
    "bpf_obj_get": (_int, _str),
    "bpf_prog_load": (_int, _int, _str, _str, _str, ctypes.c_size_t, _ptr),
    "bpf_prog_get_fd_by_id": (_int, _u32),
    "bpf_prog_query": (_int, _int, _int, _u32, _ptr, _ptr, _ptr),
    "bpf_link_create": (_int, _int, _int, _int, _ptr),
    "bpf_link_detach": (_int, _int),
    "bpf_link_update": (_int, _int, _int, _ptr),
    "bpf_obj_get_info_by_fd": (_int, _int, _ptr, _ptr),
}


class DatapathError(TargetError):
    """The kernel or libbpf refused; the text says what was tried, why it failed and what helps. `code`: its errno."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class _MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts, as far as used: libbpf takes what is beyond `sz` as zero."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class MapInfo(ctypes.Structure):
    """The beginning of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class ProgramInfo(ctypes.Structure):
    """The beginning of struct bpf_prog_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
    )


class LinkInfo(ctypes.Structure):
    """The beginning of struct bpf_link_info, of a link of type tcx."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
    )


# --- what libbpf says ---------------------------------------------------------------------------------------------

_said: list[str] = []  # since the last `check`


def _keep(level: int, template: bytes, arguments: int) -> int:
    """libbpf_print_fn_t. A va_list reaches a function as a pointer where Linux has BPF: x86-64, arm64."""
    if level == _WARN:
        text = ctypes.create_string_buffer(_LOG_BYTES)
        ctypes.CDLL(None).vsnprintf(text, ctypes.c_size_t(_LOG_BYTES), template, _ptr(arguments))
        _said.extend(line for line in text.value.decode(errors="replace").splitlines() if line.strip())
    return 0


_PRINT = ctypes.CFUNCTYPE(_int, _int, _str, _ptr)(_keep)  # for as long as libbpf may call it


# --- calls --------------------------------------------------------------------------------------------------------


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf, its log going to us. DatapathError: it is not installed."""
    try:
        loaded = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise DatapathError(f"libbpf cannot be loaded ({error}); apt-get install libbpf1") from None
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.libbpf_set_print(_PRINT)
    return loaded


def check(what: str, code: int) -> int:
    """`code` unless it is negative. DatapathError: what was tried, why it failed, and what libbpf said of it."""
    said, _said[:] = _said[-_LOG_LINES:], []
    if code < 0:
        raise DatapathError("; ".join((f"{what}: {reason(-code)}", *said)), -code)
    return code


def pointer(what: str, value: int | None) -> int:
    """`value` unless it is NULL; then as `check`."""
    return check(what, -ctypes.get_errno()) if value is None else value


def map_create(
    map_type: int, name: str, key_size: int, value_size: int, max_entries: int, flags: int, inner: int = 0
) -> int:
    """The descriptor of a new map. The kernel keeps 15 bytes of its name. `inner`: one of the maps that it holds."""
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=flags, inner_map_fd=inner)
    code = library().bpf_map_create(map_type, name.encode(), key_size, value_size, max_entries, ctypes.byref(opts))
    return check(f"creating the map {name}", code)


def map_info(fd: int) -> MapInfo:
    info = MapInfo()
    _fill(info, fd)
    return info


def link_info(fd: int) -> LinkInfo:
    info = LinkInfo()
    _fill(info, fd)
    return info


def program_info(fd: int) -> tuple[str, frozenset[int], int]:
    """The program's tag, which names its instructions, the ids of its maps, and its own id."""
    ids = (ctypes.c_uint32 * 64)()  # as many maps as the verifier lets one program have
    info = ProgramInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    _fill(info, fd)
    return bytes(info.tag).hex(), frozenset(ids[: info.nr_map_ids]), info.id


def _fill(info: ctypes.Structure, fd: int) -> None:
    length = ctypes.c_uint32(ctypes.sizeof(info))
    code = library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length))
    check("asking what a map, program or link is", code)


# --- why not ------------------------------------------------------------------------------------------------------


def reason(code: int) -> str:
    """The errno in words, with what helps where that is known."""
    may = code != errno.EPERM or capable()  # a file to read, and thousands of entries may be refused at once
    return explain(code, may=may, version=kernel())


def explain(code: int, *, may: bool, version: tuple[int, int]) -> str:
    """`may`: this process has the capabilities. `version`: of the kernel."""
    text = "Operation not supported by this kernel" if code == ENOTSUPP else os.strerror(code)
    if code == errno.EPERM and not may:
        return f"{text}: CAP_BPF is missing (before Linux 5.8 CAP_SYS_ADMIN); run as root, or add it to the unit"
    if code == errno.EPERM and version < (5, 11):
        return f"{text}: before Linux 5.11 maps count as locked memory; set LimitMEMLOCK=infinity in the unit"
    if code == errno.ENOMEM:
        return f"{text}: the node has none left, or bgpd's unit as much as it may (MemoryMax=); what maps take counts"
    return text


def capable() -> bool:
    """Whether this process may create maps and load programs."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    held = int(found[1], 16) if found else 0
    return bool(held & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN))


def kernel() -> tuple[int, int]:
    """The running kernel's version."""
    major, minor = re.findall(r"\d+", platform.release())[:2]
    return int(major), int(minor)
