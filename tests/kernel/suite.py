"""What runs in a guest: files that other tiers run on this machine's kernel, unchanged.

Chosen is what depends on the kernel: programs and maps, rules and links. What a kernel cannot do is skipped by name,
with the reason; the README's table of kernels tells it (`skips`), and tests/allowed-skips.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILES = (
    "tests/bpf/test_behind.py",
    "tests/bpf/test_features.py",
    "tests/bpf/test_ipvlan.py",
    "tests/bpf/test_loader.py::test_every_object_loads_with_what_the_unit_grants",
    "tests/bpf/test_loader.py::test_a_refusal_is_told_in_the_words_of_this_kernel",
    "tests/bpf/test_macvlan.py",
    "tests/bpf/test_maps.py",
    "tests/bpf/test_masq.py",
    "tests/bpf/test_pins.py",
    "tests/bpf/test_policy.py",
    "tests/bpf/test_policy_conformance.py",
    "tests/bpf/test_policy_events.py",
    "tests/bpf/test_policy_flows.py",
    "tests/bpf/test_policy_maps.py",
    "tests/bpf/test_policy_memo.py",
    "tests/bpf/test_policy_recall.py",
    # real packets, few of them: a node is a minute's work there, where starting a program takes half a second
    "tests/fabric/test_masq_nft.py::test_a_listed_destination_sees_the_pod_and_another_the_node",
    "tests/fabric/test_policy_filters.py::test_a_removal_is_noticed_and_mended_at_once_and_counts_as_drift",
    "tests/fabric/test_policy_kernels.py",
    "tests/fabric/test_policy_podhooks.py::test_what_somebody_puts_in_the_place_of_a_program_goes",
    "tests/fabric/test_policy_stack.py",
    "tests/fabric/test_attach_plugins.py::test_a_full_disk_starts_no_pod_and_ends_those_that_there_are",
    "tests/kernel/test_faults.py",
    # of VLANs on a bridge and of ipvlan, which the machine's own kernel need not have
    "tests/fabric/test_policy_bridge_vlans.py",
    "tests/fabric/test_policy_ipvlan.py",
    "tests/fabric/test_ipvlan_escapes.py",
    "tests/fabric/test_policy_ipvlan_site.py",
    "tests/fabric/test_policy_ipvlan_stack.py",
)
# After so long without an end the stacks of a test are printed; it is cut with the suite. More than the slowest takes
# on a busy machine: Python 3.11 may crash when it prints the stack of a thread that runs on.
TEST_S = 600


def compile_all() -> None:
    """Leaves beside the tests what Python makes of them: each guest would take minutes for it, and keep nothing."""
    collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", *FILES]
    writing = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(collect, stdout=subprocess.DEVNULL, check=False, env=writing)  # what is wrong the guests tell


def command(kernel: str, report: Path) -> list[str]:
    """One pytest for all. `kernel` precedes the names of the tests in its report."""
    data = os.environ.get("BGPD_CONFORMANCE_DATA")
    return [
        *(("env", f"BGPD_CONFORMANCE_DATA={data}") if data else ()),
        *(sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", "--durations=10"),
        *("-o", f"faulthandler_timeout={TEST_S}", f"--junit-prefix={kernel}", f"--junitxml={report}"),
        *FILES,
    ]
