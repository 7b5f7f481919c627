"""How the C library's allocator treats large blocks, such as a long list while it is read.

glibc gets a block of 128 KiB or more from the kernel by itself and gives it back when it is freed. But with the first
that is freed it raises that bound to the size of the block, and what comes later stays with the process: twice as
much memory as is used, after some edits of a list of 16,000. Setting the bound keeps it where it is (mallopt(3)).
"""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_DEFAULT = 128 * 1024


def give_back_large_blocks() -> None:
    """For the whole process. Nothing happens with a C library that has no such bound."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _DEFAULT)
