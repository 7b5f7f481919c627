"""A program for one interface alone: it says which, and goes on with the one that all of its kind share.

An interface in another network namespace is not known by its index, and a program that many have in common does not
know which of them it is asked at. So each has one of ten instructions, which writes a number into skb->cb and jumps
through a map. What is behind the jump is changed for all at once; where there is nothing, packets are dropped.
"""

from __future__ import annotations

import os
import struct
import weakref

from bgpd.datapath.features import SCHED_CLS
from bgpd.datapath.libbpf import check, library, program_info
from bgpd.datapath.maps import Map

FIRST = struct.pack("I", 0)  # the key of what is jumped to
_CB = 48  # offsetof(struct __sk_buff, cb), linux/bpf.h
_TAIL_CALL = 12  # BPF_FUNC_tail_call
_DROP = 2  # TC_ACT_SHOT
_MAP = 1 << 4 | 2  # BPF_PSEUDO_MAP_FD as source, r2 as destination
_MOVE, _STORE, _LOAD_MAP, _CALL, _EXIT = 0xB4, 0x63, 0x18, 0x85, 0x95
_INSTRUCTION = struct.Struct("=BBhi")
_LICENSE = b"Apache-2.0"


class Jump:
    """Owns `fd` and closes it when it goes. `tag` and `maps` tell one from another, `id` is the kernel's number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)
        self.tag, self.maps, self.id = program_info(fd)


def load(number: int, table: Map) -> Jump:
    """The program that says `number`, of 64 bits, and jumps to what `table` has. DatapathError: as of `check`."""
    code = b"".join(_instructions(number, table.fd))
    count = len(code) // _INSTRUCTION.size
    what = f"loading a program that jumps through {table.spec.name}"
    return Jump(check(what, library().bpf_prog_load(SCHED_CLS, b"ipvlan_jump", _LICENSE, code, count, None)))


def known(program: int) -> Jump | None:
    """The program of this id; None: there is none any more."""
    fd = library().bpf_prog_get_fd_by_id(program)
    return Jump(fd) if fd >= 0 else None


def _instructions(number: int, table: int) -> list[bytes]:
    """r1 is the packet, and stays so until the call."""
    low, high = struct.unpack("=ii", struct.pack("=Q", number))
    return [
        _INSTRUCTION.pack(_MOVE, 2, 0, low),
        _INSTRUCTION.pack(_STORE, 2 << 4 | 1, _CB, 0),
        _INSTRUCTION.pack(_MOVE, 2, 0, high),
        _INSTRUCTION.pack(_STORE, 2 << 4 | 1, _CB + 4, 0),
        _INSTRUCTION.pack(_LOAD_MAP, _MAP, 0, table),
        _INSTRUCTION.pack(0, 0, 0, 0),
        _INSTRUCTION.pack(_MOVE, 3, 0, 0),
        _INSTRUCTION.pack(_CALL, 0, 0, _TAIL_CALL),
        _INSTRUCTION.pack(_MOVE, 0, 0, _DROP),
        _INSTRUCTION.pack(_EXIT, 0, 0, 0),
    ]
