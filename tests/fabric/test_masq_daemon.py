"""Masquerade with the whole daemon: a document becomes what outsiders see, and stays so whatever ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fabric.masq_node import IPV4, PLANS, alone
from tests.fabric.masq_site import MasqSite, keys, open_flows
from tests.fabric.process import poll

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.needs("nft", "mount")


def test_a_listed_destination_sees_the_pod(masquerading: MasqSite) -> None:
    """Both families, in the kernel and in what the commands say of it."""
    for plan in PLANS:
        masquerading.wait_seen(plan.pod_a, plan.listed)
        assert masquerading.tested(plan.listed)["kept"] is True
        assert masquerading.tested(plan.unlisted)["kept"] is False
        assert masquerading.tested(plan.remote_pod)["why"] == "pods of the cluster"
    heading, *entries = masquerading.listed()
    assert heading.split() == ["IP", "PREFIX/ADDRESS"]
    wanted = {"169.254.0.0/16", "fe80::/10", f"{PLANS[0].listed}/32", f"{PLANS[1].listed}/128"}
    assert {entry.strip() for entry in entries} == wanted


def test_the_capabilities_of_its_unit_suffice(masq_site: MasqSite, tmp_path: Path) -> None:
    """The daemon with what systemd leaves it, and the commands that take everything out again."""
    unit = (ROOT / "systemd" / "bgpd.service").read_text()
    (granted,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    left = ",".join(["-all", *(f"+{name.lower().removeprefix('cap_')}" for name in granted.split())])
    wrapper = tmp_path / "bgpd"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv --bounding-set={left} {masq_site.node.program} "$@"\n')
    wrapper.chmod(0o755)
    masq_site.node.program = wrapper
    masq_site.write(IPV4.listed)
    masq_site.node.start_daemon()
    masq_site.wait_seen(IPV4.node, IPV4.unlisted)
    masq_site.wait_seen(IPV4.pod_a, IPV4.listed)
    assert masq_site.node.daemon is not None
    assert "stop that first" in masq_site.node.try_bgpd("masq", "clear").stderr
    masq_site.node.daemon.stop()
    assert "removed nftables table inet bgpd" in masq_site.node.bgpd("masq", "clear")
    assert not Path(masq_site.node.config["paths"]["bpf"]).exists()
    assert masq_site.node.bgpd("masq", "clear") == "nothing was there\n"
    masq_site.wait_seen(IPV4.pod_a, IPV4.unlisted)


def test_edits_count_for_new_flows_only(masquerading: MasqSite) -> None:
    """Open streams and datagram flows go on with the address they began with, the next flow follows the new list."""
    with open_flows(masquerading) as flows:
        assert flows.sources == [plan.node for plan in PLANS]
        for _ in range(3):
            masquerading.write(*(plan.unlisted for plan in PLANS))
            for plan in PLANS:
                masquerading.wait_seen(plan.pod_a, plan.unlisted)
                masquerading.wait_seen(plan.node, plan.listed)
            flows.check()
            masquerading.write(*(plan.listed for plan in PLANS))
            masquerading.wait_in_force()
            masquerading.check_in_force()
            flows.check()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_it_lasts_without_the_daemon_and_through_its_restart(masquerading: MasqSite, end: str) -> None:
    """SIGTERM or SIGKILL, an edit meanwhile, a new daemon: open flows go on, new ones follow one of the two lists."""
    assert masquerading.node.daemon is not None
    with open_flows(masquerading):
        getattr(masquerading.node.daemon, end)()
        masquerading.check_in_force()
        masquerading.write(IPV4.listed, IPV4.unlisted)
        masquerading.check_in_force()
        masquerading.node.start_daemon()
        masquerading.wait_seen(IPV4.pod_a, IPV4.unlisted)
        assert masquerading.seen(IPV4.listed) == IPV4.pod_a


def test_a_reload_names_what_waits_for_a_restart(masquerading: MasqSite) -> None:
    """And goes on as before; what need not wait counts at once."""
    section = masquerading.node.config["masquerade"]
    section |= {"map": "cilium", "ipv6": False, "clusterCIDRs": [IPV4.cluster, alone(IPV4.unlisted)]}
    section["config"] = {"path": "/nowhere"}
    masquerading.node.write_config()
    said = masquerading.node.bgpd("reload")
    for key in ("masquerade.config", "masquerade.map", "masquerade.compat, .ipv6, .nomasqAllReservedRanges"):
        assert key in said
    masquerading.wait_seen(IPV4.pod_a, IPV4.unlisted)
    assert masquerading.seen(IPV4.listed) == IPV4.pod_a
    assert masquerading.entries(6) == keys(alone(PLANS[1].listed))


def test_a_bad_document_changes_nothing_and_is_named(masquerading: MasqSite) -> None:
    """All of its faults, with the last good list in force."""
    masquerading.write("10.0.0.0/33", "nonsense/8", IPV4.unlisted)
    found = poll(
        lambda: [it for it in masquerading.node.status()["problems"] if "stays in use" in it] or None,
        10,
        lambda: "no problem is shown",
    )
    assert all(any(f"nonMasqueradeCIDRs[{index}]" in it for it in found) for index in (0, 1)), found
    masquerading.wait_seen(IPV4.node, IPV4.unlisted)
    masquerading.wait_seen(IPV4.pod_a, IPV4.listed)
