"""Links: a program at an interface, which stays there as long as its link is pinned.

tcx, Linux 6.6. Nobody removes such a link by `tc`; it goes with its pin, when nobody has it open, or with the
interface. To attach takes the kernel 15 ms or more, during which no interface can be changed by anybody; to change
the program 2 us, and no packet misses one of the two.

Knows how to attach, open and pin. What should be where is for the caller to decide.
"""

from __future__ import annotations

import ctypes
import errno
import os
import weakref
from enum import IntEnum
from pathlib import Path

from bgpd.datapath import pins
from bgpd.datapath.libbpf import LinkInfo, check, library, link_info

_TCX = 11  # BPF_LINK_TYPE_TCX
_BEFORE = 1 << 3  # BPF_F_BEFORE: and none named, so before all others


class Hook(IntEnum):
    """enum bpf_attach_type, as far as used. Of the interface: what comes in by it, what goes out."""

    INGRESS = 46
    EGRESS = 47


class _CreateOpts(ctypes.Structure):
    """struct bpf_link_create_opts, as far as used: libbpf takes what is beyond `sz` as zero."""

    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("pad", ctypes.c_uint32))


class Link:
    """Owns `fd` and closes it when it goes, and with it the link if that is pinned nowhere."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._closed = weakref.finalize(self, os.close, fd)
        self.id = link_info(fd).id

    def close(self) -> None:
        """Twice does no harm."""
        self._closed()

    def program_at(self, ifindex: int, hook: Hook) -> int | None:
        """The id of its program; None: it is not there, or not any more."""
        found: LinkInfo = link_info(self.fd)
        where = (found.type, found.ifindex, found.attach_type)
        return int(found.prog_id) if where == (_TCX, ifindex, hook) else None

    def detach(self) -> None:
        """Takes its program away from the interface, whoever else has the link open."""
        check("detaching a program", library().bpf_link_detach(self.fd))

    def update(self, program: int) -> None:
        """To another program, given by its descriptor."""
        check("changing the program of a link", library().bpf_link_update(self.fd, program, None))


def attach(program: int, ifindex: int, hook: Hook) -> Link:
    """Before whatever is there: nobody's verdict keeps a packet from this one. DatapathError: the kernel refuses."""
    opts = _CreateOpts(ctypes.sizeof(_CreateOpts), _BEFORE)
    code = library().bpf_link_create(program, ifindex, hook, ctypes.byref(opts))
    return Link(check(f"attaching a program to {hook.name.lower()} of interface {ifindex} (tcx, Linux 6.6)", code))


def has_tcx() -> bool:
    """Whether this kernel can do it. DatapathError: it cannot be asked."""
    loopback, count = 1, ctypes.c_uint32(0)  # every network namespace has this interface
    code = library().bpf_prog_query(loopback, Hook.INGRESS, 0, None, None, ctypes.byref(count))
    if code == -errno.EINVAL:
        return False
    check("asking for programs at an interface (tcx)", code)
    return True


def pinned(path: Path) -> Link | None:
    """The link pinned there; None: the name is free. DatapathError: it is something else."""
    fd = pins.get(path, "link")
    return None if fd is None else Link(fd)
