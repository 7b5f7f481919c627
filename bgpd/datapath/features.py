"""What this kernel and this process can do with BPF: named facts, each with its remedy, for `bgpd doctor`.

Leaves nothing behind. Decides nothing: whoever needs a thing tries it and says so when it fails.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bgpd.datapath import layout, libbpf, links, pins
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.maps import Map

BTF = Path("/sys/kernel/btf/vmlinux")
SOCKET_FILTER, SCHED_CLS = 1, 3  # BPF_PROG_TYPE_
SKB_LOAD_BYTES_RELATIVE, GET_NETNS_COOKIE = 68, 122  # BPF_FUNC_


@dataclass(frozen=True, slots=True)
class Fact:
    """`text` says how it is and, unless `ok`, what to do. Without `needed` all works, some of it slower."""

    what: str
    ok: bool
    text: str
    needed: bool = True


def probe(directory: Path, *, programs: bool = True) -> Iterator[Fact]:
    """All that maps pinned in `directory` rest on, and programs; without libbpf or privileges, what can be told."""
    try:
        yield Fact("libbpf", True, libbpf.library().libbpf_version_string().decode())
    except DatapathError as error:
        yield Fact("libbpf", False, str(error))
        return
    yield _bpffs(directory)
    if not libbpf.capable():
        yield Fact("capabilities", False, f"{libbpf.reason(errno.EPERM)}; the kernel cannot be asked without")
        return
    yield Fact("capabilities", True, "maps and programs may be created")
    yield from _tries()
    if programs:
        yield _socket_filters()
        yield _btf()


def can_tell_netns() -> bool:
    """Whether a program at an interface is told which network namespace a packet was sent in: Linux 6.15."""
    call, end = struct.pack("=BBhi", 0x85, 0, 0, GET_NETNS_COOKIE), struct.pack("=BBhi", 0x95, 0, 0, 0)
    # libbpf_probe_bpf_helper says yes on Linux 6.12: libbpf 1.1 does not know the words that this one refuses with
    program = libbpf.library().bpf_prog_load(SCHED_CLS, b"bgpd_probe", b"Apache-2.0", call + end, 2, None)
    if program < 0:
        return False
    os.close(program)
    return True


def _bpffs(directory: Path) -> Fact:
    try:
        pins.examine(directory)
    except DatapathError as error:
        return Fact("bpffs", False, str(error))
    return Fact("bpffs", True, f"{directory} can be written")


def _tries() -> Iterator[Fact]:
    try:
        trie = Map.create(replace(layout.MAPS["ipmasq_v4"], name="bgpd_probe", max_entries=1))
    except DatapathError as error:
        yield Fact("lpm map", False, f"{error}; needs Linux 4.11 with CONFIG_BPF_SYSCALL")
        return
    yield Fact("lpm map", True, "works")
    if trie.batches:
        yield Fact("lpm batches", True, "work")
    else:
        yield Fact("lpm batches", False, "missing, long lists change slower; Linux 5.13 has them", needed=False)
    trie.close()


def ring_buffer() -> Fact:
    """What programs tell of single packets goes through one."""
    try:
        Map.create(replace(layout.MAPS["policy_events"], name="bgpd_probe", max_entries=mmap.PAGESIZE)).close()
    except DatapathError as error:
        return Fact("ring buffer", False, f"{error}; needs Linux 5.8")
    return Fact("ring buffer", True, "works")


def tcx() -> Fact:
    """How programs get to the parents of macvlans and ipvlans, and into pods on ipvlans."""
    try:
        works = links.has_tcx()
    except DatapathError as error:
        return Fact("tcx", False, str(error), needed=False)
    if works:
        text = "programs at a parent, or in a pod on an ipvlan, are pinned links, which `tc` cannot remove"
        return Fact("tcx", True, text)
    text = (
        "missing, programs at a parent are filters of clsact, which `tc` can remove; in a pod on an ipvlan so can "
        "the pod, with CAP_NET_ADMIN (see policy.onTampering); Linux 6.6 has it"
    )
    return Fact("tcx", False, text, needed=False)


def sender_netns() -> Fact:
    """What a program at a macvlan's parent takes to know one pod from another that sends as it does."""
    if can_tell_netns():
        return Fact("sender's netns", True, "programs at a macvlan's parent know which pod has sent a frame")
    text = "missing, a pod in mode vepa that sends with another's MAC and IP is not noticed; Linux 6.15 has it"
    return Fact("sender's netns", False, text, needed=False)


def _socket_filters() -> Fact:
    found = libbpf.library().libbpf_probe_bpf_helper(SOCKET_FILTER, SKB_LOAD_BYTES_RELATIVE, None)
    if found == 1:
        return Fact("socket filter", True, "programs can read the IP header")
    return Fact("socket filter", False, "programs cannot read the IP header; needs Linux 4.18")


def _btf() -> Fact:
    if BTF.exists():
        return Fact("kernel btf", True, str(BTF))
    text = f"no {BTF} (CONFIG_DEBUG_INFO_BTF); the objects shipped here do without"
    return Fact("kernel btf", False, text, needed=False)
