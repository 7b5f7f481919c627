"""What is said where a module is missing, or the bpffs. Takes a machine of its own: nobody may load one meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from bgpd.datapath import loader
from bgpd.datapath.links import Hook
from bgpd.model.outcome import DONE, Blocked
from bgpd.netlink.nftables import Connection
from bgpd.netlink.owntables import TableActuator
from bgpd.policy import parents
from bgpd.policy.filters import ParentFilters
from bgpd.policy.parents import Programs
from bgpd.policy.table import TABLES, Table, inet_table
from bgpd.runtime.diff import Change
from tests.fabric.conftest import mounted_bpffs
from tests.fabric.ipvlan_site import DENY_ALL, NODES, SOON_S, Worker
from tests.fabric.masq_node import NETLINK_NETFILTER
from tests.fabric.mounts import BPFFS
from tests.fabric.netns import Lab
from tests.fabric.process import poll

MODPROBE = Path("/proc/sys/kernel/modprobe")
LOOPBACK = 1
GONE_S = 30.0  # until nobody uses a module any more: namespaces of tests before this one end by themselves

pytestmark = pytest.mark.skipif(not Path("/run/results/parameters").exists(), reason="not in a guest of tests/kernel")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def directory(lab: Lab) -> Iterator[Path]:
    with mounted_bpffs(lab) as place:
        yield place / "bgpd"


@contextlib.contextmanager
def missing(*modules: str) -> Iterator[None]:
    """The kernel has none of them and finds no other one either."""
    before = MODPROBE.read_text()
    MODPROBE.write_text("/bin/false")
    try:
        for name in modules:
            poll(lambda name=name: _removed(name), GONE_S, lambda name=name: f"{name} is in use")  # type: ignore[misc]
        yield
    finally:
        MODPROBE.write_text(before)


def _removed(module: str) -> bool:
    if not Path(f"/sys/module/{module}").exists():
        return True
    return subprocess.run(["rmmod", module], capture_output=True, check=False).returncode == 0


def test_without_xt_bpf_the_modules_are_named_and_with_it_all_is_well(lab: Lab, directory: Path) -> None:
    programs = loader.install(loader.shipped("policy"), directory).programs
    table = inet_table(str(directory), programs["policy"].id, programs["policy_reply"].id, [])
    netlink = lab.namespace("node").socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    with contextlib.closing(Connection(netlink)) as connection:
        actuator: TableActuator[Table] = TableActuator(connection, TABLES, owned=False)
        change = Change(next(iter(TABLES)), table, None)
        with missing("xt_bpf", "nft_compat"):
            (outcome,) = asyncio.run(actuator.apply([change]))
            assert isinstance(outcome, Blocked) and "the modules xt_bpf and nft_compat" in outcome.reason
        assert list(asyncio.run(actuator.apply([change]))) == [DONE]


@pytest.mark.parametrize("modules", [("cls_bpf",), ("sch_ingress",)], ids=" ".join)
def test_without_clsact_or_its_filters_the_modules_are_named(
    lab: Lab, directory: Path, modules: Iterable[str]
) -> None:
    loader.install(loader.shipped("policy"), directory)
    installed = parents.install(directory)
    wanted: Programs = {hook: program.id for hook, program in parents.programs(installed).items()}
    change, filters = Change(LOOPBACK, wanted, None), ParentFilters(installed)
    node = lab.namespace("node")
    with missing(*modules):
        (outcome,) = node.call(lambda: asyncio.run(filters.apply([change])))
        assert isinstance(outcome, Blocked) and "takes the modules sch_ingress and cls_bpf" in outcome.reason
    assert list(node.call(lambda: asyncio.run(filters.apply([change])))) == [DONE]
    assert set(node.call(lambda: asyncio.run(filters.observe()))[LOOPBACK]) == set(Hook)


def test_without_a_bpffs_the_command_that_mounts_it_is_all_it_takes(lab: Lab) -> None:
    """At its usual place. For the whole daemon, and its routes, see test_policy_faults."""
    host = lab.namespace(next(iter(NODES)))
    subprocess.run(["umount", BPFFS], check=True)
    try:
        with Worker(host, Path(BPFFS), lab.directory / "worker", "l2").running() as worker:

            def problems() -> str:
                return " ".join(worker.policing.problems())

            poll(lambda: "there is no bpffs" in problems(), SOON_S, problems)
            (command,) = set(re.findall(r"mount -t bpf bpf [^\s;]+", problems()))
            assert command == f"mount -t bpf bpf {BPFFS}"
            subprocess.run(shlex.split(command), check=True)
            poll(lambda: not problems(), SOON_S, problems)
            worker.apply(DENY_ALL)
    finally:
        if not Path(BPFFS).is_mount():
            subprocess.run(["mount", "-t", "bpf", "bpf", BPFFS], check=True)
