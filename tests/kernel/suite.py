"""What runs in a guest: files that other tiers run on this machine's kernel, unchanged.

Chosen is what depends on the kernel: programs and maps, rules and links. A test that asks for what a kernel lacks
finds that out by itself and is skipped with the reason; tests/allowed-skips names these tests by kernel.
"""

from __future__ import annotations

import sys
from pathlib import Path

FILES = ("tests/bpf/test_masq.py",)
TEST_S = 120  # after so long without an end the stacks of a test are printed; it is cut with the suite


def command(kernel: str, report: Path) -> list[str]:
    """One pytest for all. `kernel` precedes the names of the tests in its report."""
    return [
        *(sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", "--durations=10"),
        *("-o", f"faulthandler_timeout={TEST_S}", f"--junit-prefix={kernel}", f"--junitxml={report}"),
        *FILES,
    ]
