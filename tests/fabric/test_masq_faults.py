"""What befalls masquerade on a node, each caused for real with the whole daemon at work and flows open.

Open flows never change, new ones follow the list or are not let out at all, and what somebody else has broken is put
right: at the next resync, or with what the daemon says that an operator shall do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from bgpd.datapath import layout
from tests.fabric.masq_node import IPV4, PLANS, alone, speaks, tcp_stream
from tests.fabric.masq_site import MasqSite, keys, open_flows
from tests.fabric.node import BIN
from tests.fabric.process import poll
from tests.fabric.reach import source_seen

pytestmark = pytest.mark.needs("nft", "mount")

LISTED = [alone(plan.listed) for plan in PLANS]
CONNTRACK_LIMIT = "/proc/sys/net/netfilter/nf_conntrack_max"
CONNTRACK_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
OTHERS = """
table inet kube-proxy {
    chain filter-forward { type filter hook forward priority filter; tcp dport 25 counter drop; }
    chain nat-postrouting { type nat hook postrouting priority srcnat; meta mark & 0x4000 == 0x4000 masquerade; }
}
"""


def numbered(count: int, first: int = 0) -> list[str]:
    """CIDRs that do not overlap, and that nobody here has an address of."""
    return [str(IPv4Network(((60 << 24) + (number << 8), 24))) for number in range(first, first + count)]


@pytest.fixture
def site(masq_site: MasqSite) -> MasqSite:
    """With one destination of each family in force, read back every second."""
    masq_site.start()
    masq_site.write(*LISTED, resync="1s")
    return masq_site


# --- the maps -------------------------------------------------------------------------------------------------------


def test_entries_changed_behind_our_back_are_repaired_and_counted(site: MasqSite) -> None:
    """One taken out, one put in; then all gone, link-local too; then as many put in as there is room for."""
    entries = site.map("ipmasq_v4")
    foreign = keys(*numbered(layout.IPMASQ_ENTRIES - 2))
    with open_flows(site):
        entries.delete(keys(LISTED[0]))
        entries.update(dict.fromkeys(keys(alone(IPV4.unlisted)), layout.PRESENT))
        site.wait_drift("masq_ipv4", 2)
        site.wait_entries(keys(LISTED[0]))
        site.check_in_force()
        entries.delete(entries.entries())
        site.wait_drift("masq_ipv4", 4)
        site.wait_entries(keys(LISTED[0]))
        site.check_in_force()
        entries.update(dict.fromkeys(foreign, layout.PRESENT))
        site.wait_drift("masq_ipv4", 4 + len(foreign))
        site.wait_entries(keys(LISTED[0]))
        site.check_in_force()
    assert site.drift("masq_ipv6") == 0


def test_pins_that_are_removed_are_put_back(site: MasqSite) -> None:
    """Maps and program, and the directory with them: the very ones that the rule asks, which notices nothing."""
    before = site.pinned()
    with open_flows(site):
        shutil.rmtree(site.pins)
        site.check_in_force()
        poll(lambda: site.pinned() == before, 10, lambda: f"{site.pinned()}, not {before}")
        site.check_in_force()


# --- the rule -------------------------------------------------------------------------------------------------------


def test_a_flushed_ruleset_is_as_it_was_and_nothing_of_others_comes_or_goes(site: MasqSite) -> None:
    """An owned table outlasts the flush (Linux 6.9), another is put back. What others enter afterwards stays."""
    with open_flows(site):
        assert site.place.nft("flush ruleset").returncode == 0
        site.wait_in_force()
        assert site.place.nft(OTHERS).returncode == 0
        others = site.place.nft("list table inet kube-proxy").stdout
        site.write(*LISTED, "192.0.2.128/25", resync="1s")
        site.wait_entries(keys(LISTED[0], "192.0.2.128/25"))
        site.check_in_force()
        assert site.place.nft("list table inet kube-proxy").stdout == others


def test_a_table_deleted_while_the_daemon_is_down_is_put_back(site: MasqSite) -> None:
    """With its owner it has lost its protection. Open flows are conntrack's; the next daemon puts it back.

    Where kube-proxy is, that is: when the last table that translates goes, the kernel forgets all translations.
    """
    assert site.node.daemon is not None
    assert site.place.nft(OTHERS).returncode == 0
    with open_flows(site) as flows:
        site.node.daemon.kill()
        assert site.place.nft("delete table inet bgpd").returncode == 0
        assert site.seen(IPV4.unlisted) == IPV4.pod_a
        flows.check()
        site.node.start_daemon()
        site.wait_in_force()
        site.check_in_force()


def test_with_conntrack_full_nothing_leaves_untranslated(site: MasqSite) -> None:
    """New flows are dropped by the kernel, those that are open go on, and with room again all is well."""
    place = site.place
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(tcp_stream(place.pod_a, place.outside, IPV4.unlisted)) for _ in range(100)]
        with conntrack_full(site):
            seen = [source_seen(place.pod_a, place.outside, it.unlisted, timeout_s=0.2) for it in (*PLANS, *PLANS)]
            assert None in seen, "conntrack was not full"
            assert {*seen} <= {None, *(plan.node for plan in PLANS)}
            assert all(speaks(*stream) for stream in streams)
            (full,) = conntrack_told(site)
        (room,) = conntrack_told(site)
        assert (full["state"], room["state"]) == ("warn", "ok")
        assert "sysctl -w net.netfilter.nf_conntrack_max=" in full["text"]
        site.check_in_force()
        assert all(speaks(*stream) for stream in streams)
        assert {server.getpeername()[0] for _, server in streams} == {IPV4.node}


def conntrack_told(site: MasqSite) -> list[dict[str, str]]:
    """What `bgpd doctor` says of conntrack."""
    told = json.loads(site.node.bgpd("doctor", "-o", "json", check=False))
    return [row for row in told if row["what"] == "masquerade: conntrack"]


@contextlib.contextmanager
def conntrack_full(site: MasqSite) -> Iterator[None]:
    """As many connections as there are in the node are as many as there may be.

    The limit is the machine's: whatever else opens many flows here meanwhile, another run of these tests too, has
    some of them dropped.
    """
    limit = Path(CONNTRACK_LIMIT)
    before = limit.read_text()
    count = site.place.node.run(["cat", CONNTRACK_COUNT]).stdout
    try:
        limit.write_text(count)
    except OSError as error:
        pytest.skip(f"{limit} cannot be written: {error.strerror}")
    try:
        yield
    finally:
        limit.write_text(before)


# --- the machine ----------------------------------------------------------------------------------------------------


def test_without_a_bpffs_the_command_that_mounts_it_is_all_it_takes(masq_site: MasqSite) -> None:
    """Nothing is translated until then: a rule in front of an empty list would translate what is listed."""
    place = masq_site.place.lab.directory / "unmounted"
    place.mkdir()
    masq_site.node.config["paths"]["bpf"] = str(place / "bgpd")
    masq_site.node.write_config()
    masq_site.write(*LISTED)
    masq_site.node.start_daemon()
    problem = masq_site.node.wait_problem("there is no bpffs")
    assert masq_site.seen(IPV4.unlisted) == IPV4.pod_a
    assert masq_site.tested(IPV4.unlisted)["inForce"] is False
    assert masq_site.place.nft("list ruleset").stdout == ""
    (command,) = re.findall(r"mount -t bpf bpf \S+", problem)
    subprocess.run(shlex.split(command), check=True)
    try:
        masq_site.wait_in_force()
        masq_site.check_in_force()
        assert masq_site.tested(IPV4.unlisted)["inForce"] is True
        masq_site.node.wait_status("a problem is left", lambda it: not _of_masquerade(it["problems"]))
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_without_cap_bpf_the_capability_is_named(masq_site: MasqSite, tmp_path: Path) -> None:
    """And everything else goes on: the daemon serves, and pods reach the outside as they did."""
    wrapper = tmp_path / "bgpd"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-bpf,-sys_admin {BIN / "bgpd"} "$@"\n')
    wrapper.chmod(0o755)
    masq_site.node.program = wrapper
    masq_site.write(*LISTED)
    masq_site.node.start_daemon()
    problem = masq_site.node.wait_problem("CAP_BPF is missing")
    assert "add it to the unit" in problem
    assert masq_site.seen(IPV4.unlisted) == IPV4.pod_a
    assert masq_site.place.nft("list ruleset").stdout == ""


def _of_masquerade(problems: Sequence[str]) -> list[str]:
    return [each for each in problems if each.startswith("masquerade")]


# --- on the way from one list to another ------------------------------------------------------------------------


@pytest.mark.needs("strace")
def test_killed_on_the_way_the_list_is_the_old_the_new_or_both(masq_site: MasqSite) -> None:
    """10,000 entries change: 5,000 come, 5,000 go, 5,000 are in both. Killed at the Nth call that writes to a map:
    counters come in two, entries in two more; what goes, goes in two and two, entries first.
    """
    common, old, new = [*LISTED, *numbered(5_000)], numbered(5_000, first=5_000), numbered(5_000, first=10_000)
    always, sizes = keys(*common) - keys(LISTED[1]), []
    masq_site.write(*common, *old)
    masq_site.node.start_daemon()
    masq_site.wait_in_force()
    with open_flows(masq_site) as flows:
        for number in (4, 5, 6):
            before, after = always | keys(*old), always | keys(*new)
            masq_site.wait_entries(before)
            kill_at_write(masq_site, number, [*common, *new])
            entries = masq_site.entries()
            assert always <= entries <= before | after
            assert entries >= before or entries >= after
            sizes.append(len(entries))
            masq_site.check_in_force()
            flows.check()
            masq_site.node.start_daemon()
            old, new = new, old
        masq_site.wait_entries(after)
    assert len({*sizes}) > 1, f"always killed at the same place: {sizes}"
    print(f"\nentries after each kill: {sizes}")


def kill_at_write(site: MasqSite, number: int, document: Sequence[str]) -> None:
    """Writes a document and returns when the daemon has been killed on its way to it."""
    daemon = site.node.daemon
    assert daemon is not None
    command = ["strace", "-qq", "--trace=bpf", f"--inject=bpf:signal=KILL:when={number}", f"--attach={daemon.pid}"]
    tracer = site.place.node.popen(command)
    status = Path(f"/proc/{daemon.pid}/status")
    poll(lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text(), 10, tracer.log_tail)
    site.write(*document)
    poll(lambda: not daemon.running(), 20, daemon.log_tail)
    tracer.stop()


def test_a_document_rewritten_a_thousand_times_ends_as_its_last_version(site: MasqSite) -> None:
    """In 5 s. What all versions have is there throughout, and the daemon does not try to follow each of them."""
    versions = [[*LISTED, *numbered(50), *numbered(50, first=100 * which)] for which in range(1, 21)]
    wanted = keys(LISTED[0], *numbered(50))
    site.write(*versions[0])
    site.wait_entries(wanted | keys(*versions[0][-50:]))
    entries, pause = site.map("ipmasq_v4"), threading.Event()
    started, busy_s = time.monotonic(), cpu_s(site)
    with open_flows(site) as flows:
        for count in range(1000):
            site.write(*versions[count % len(versions)])
            assert wanted <= entries.entries().keys()
            pause.wait(started + 0.005 * (count + 1) - time.monotonic())
            if count % 100 == 0:
                flows.check()
        took_s, busy_s = time.monotonic() - started, cpu_s(site) - busy_s
        site.wait_entries(wanted | keys(*versions[999 % len(versions)][-50:]))
        site.check_in_force()
    print(f"\n1,000 versions in {took_s:.1f} s, {busy_s:.1f} s of CPU time")
    assert busy_s < took_s / 2


def cpu_s(site: MasqSite) -> float:
    """The CPU time that the daemon has had so far."""
    assert site.node.daemon is not None
    fields = Path(f"/proc/{site.node.daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
