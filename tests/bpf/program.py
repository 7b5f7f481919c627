"""Runs a pinned program on one packet, in the kernel (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bgpd.datapath import pins
from bgpd.datapath.libbpf import check, library

_PRIORITY = 32  # offsetof(struct __sk_buff, priority), linux/bpf.h


class _Options(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Result:
    """What the program returned, and how long a run took on average."""

    value: int
    duration_ns: int


def run(pin: Path, frame: bytes, repeat: int = 1, *, priority: int = 0) -> Result:
    """`frame` begins with its Ethernet header. DatapathError: the kernel refuses to make a packet of it."""
    fd = pins.get(pin, "prog")
    assert fd is not None, f"nothing is pinned at {pin}"
    try:
        return run_opened(fd, frame, repeat, priority=priority)
    finally:
        os.close(fd)


def run_opened(program: int, frame: bytes, repeat: int = 1, *, priority: int = 0) -> Result:
    """As `run`, of a descriptor."""
    opts = _Options(sz=ctypes.sizeof(_Options), data_in=frame, data_size_in=len(frame), repeat=repeat)
    if priority:  # else programs are run that are given no struct __sk_buff, too
        context = ctypes.create_string_buffer(bytes(_PRIORITY) + struct.pack("=I", priority), _PRIORITY + 4)
        opts.ctx_in, opts.ctx_size_in = ctypes.cast(context, ctypes.c_void_p), ctypes.sizeof(context)
    check("running a program", _function()(program, ctypes.byref(opts)))
    return Result(opts.retval, opts.duration)


@functools.cache
def _function() -> Callable[..., int]:
    function = library().bpf_prog_test_run_opts
    function.argtypes = (ctypes.c_int, ctypes.c_void_p)
    return function
