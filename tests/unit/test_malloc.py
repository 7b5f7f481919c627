"""Large blocks go back to the kernel, whatever was freed before; in a process of its own, because it is for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from bgpd.runtime.malloc import give_back_large_blocks

class Mallinfo2(ctypes.Structure):  # malloc.h: hblkhd are the bytes that the kernel gave for single blocks
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
if sys.argv[1] == "set":
    give_back_large_blocks()
del (block := bytearray(16 << 20))[:], block
before = mallinfo2().hblkhd
kept = bytearray(1 << 20)
print(mallinfo2().hblkhd - before >= 1 << 20)
"""


@pytest.mark.parametrize(("setting", "apart"), [("set", "True"), ("not", "False")])
def test_a_large_block_comes_from_the_kernel_by_itself(setting: str, apart: str) -> None:
    """Without the setting it does not, after a larger one was freed: else there would be nothing to set."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == apart
