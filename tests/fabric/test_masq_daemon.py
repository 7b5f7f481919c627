"""Masquerade with the whole daemon: a document becomes what outsiders see, and stays so whatever ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bgpd.datapath import layout, pins
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
    assert "bgpd runs and would put it back" in masq_site.node.try_bgpd("masq", "clear").stderr
    masq_site.node.daemon.stop()
    assert "removed nftables table inet bgpd" in masq_site.node.bgpd("masq", "clear")
    assert not masq_site.pins.exists()
    assert masq_site.node.bgpd("masq", "clear") == "nothing was there\n"
    masq_site.wait_seen(IPV4.pod_a, IPV4.unlisted)


def test_clear_leaves_pins_of_others(masquerading: MasqSite) -> None:
    """Policy has its maps in the same directory. What a daemon left that was killed while it pinned goes too."""
    assert masquerading.node.daemon is not None
    masquerading.node.daemon.stop()
    theirs = next(spec for name, spec in layout.MAPS.items() if name.startswith("policy_"))
    others = pins.open_or_create(masquerading.pins / theirs.name, theirs)
    ours = masquerading.map("ipmasq_v4")
    pins.put(ours.fd, masquerading.pins / "ipmasq_v4_new")
    masquerading.node.bgpd("masq", "clear")
    assert [path.name for path in masquerading.pins.iterdir()] == [theirs.name]
    found = pins.open_map(masquerading.pins / theirs.name, theirs)
    assert found is not None
    assert found.id == others.id
    assert masquerading.place.nft("list ruleset").stdout == ""


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
    refused, good = "refused, the last good one stays in use", "in use"
    assert documents_logged(masquerading) == [("info", good), ("warning", refused)]
    masquerading.wait_seen(IPV4.node, IPV4.unlisted)
    masquerading.wait_seen(IPV4.pod_a, IPV4.listed)
    masquerading.write(IPV4.listed)
    poll(lambda: documents_logged(masquerading)[2:] == [("info", good)], 10, lambda: "not told that it is good again")


def documents_logged(site: MasqSite) -> list[tuple[str, str]]:
    """Level and state of each line about the document."""
    assert site.node.daemon is not None
    lines = map(json.loads, site.node.daemon.log().splitlines())
    return [(line["level"], line["state"]) for line in lines if line["event"] == "masquerade document"]


def test_what_is_asked_wrongly_is_answered_with_what_is_right(masquerading: MasqSite) -> None:
    """`masq` of an address that is none, too much and too little; of a node that does not masquerade."""
    usage = "usage: bgpd masq list [--hits] | bgpd masq test IP | bgpd masq clear\n"
    for words in (["list", "192.0.2.1"], ["test"], ["clear", "--hits"], ["test", "192.0.2.1", "--hits"]):
        asked = masquerading.node.try_bgpd("masq", *words)
        assert (asked.returncode, asked.stderr) == (2, usage)
    asked = masquerading.node.try_bgpd("masq", "test", "192.0.2.0/24")
    assert asked.returncode == 2
    assert asked.stderr == "bgpd: '192.0.2.0/24' is not an IP address; leave the length off\n"
    masquerading.node.config["masquerade"]["enabled"] = False
    masquerading.node.write_config()
    masquerading.node.restart_daemon()
    asked = masquerading.node.try_bgpd("masq", "list")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "masquerade.enabled: true turns it on" in asked.stderr


def test_nothing_is_counted_as_masqueraded_that_keeps_its_address(masquerading: MasqSite) -> None:
    """The rule lets multicast alone, and `masq test` says so."""
    for address in ("224.0.0.251", "ff0e::fb"):
        answer = masquerading.tested(address)
        assert (answer["kept"], answer["inForce"]) == (True, True)
