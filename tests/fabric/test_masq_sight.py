"""What a node that masquerades shows of it: /metrics, `bgpd doctor` and `bgpd masq list` against what pods do."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from bgpd.datapath.layout import IPMASQ_ENTRIES
from tests.fabric.masq_node import PLANS
from tests.fabric.masq_site import MasqSite
from tests.fabric.process import poll

pytestmark = pytest.mark.needs("nft", "mount")

V4, V6 = PLANS
FINDINGS = "bgpd_masquerade_document_findings"
ALL_IN_FORCE = {"masq_ipv4": 1.0, "masq_ipv6": 1.0, "masq_rule": 1.0}


def in_force(site: MasqSite) -> Mapping[str, float]:
    return {loop: site.node.metric(f'bgpd_masquerade_in_force{{subsystem="{loop}"}}') for loop in ALL_IN_FORCE}


def active(site: MasqSite) -> list[float]:
    return [site.node.metric(f'bgpd_masquerade_active{{family="{family}"}}') for family in ("ipv4", "ipv6")]


def flows(site: MasqSite, verdict: str) -> float:
    return site.node.metric(f'bgpd_masquerade_flows_total{{verdict="{verdict}"}}')


def wait_in_force(site: MasqSite, wanted: Mapping[str, float]) -> None:
    def probe() -> bool:
        try:
            return in_force(site) == wanted
        except AssertionError:  # a daemon that has just started has published nothing yet
            return False

    poll(probe, 10, lambda: site.node.bgpd("status", check=False))


def test_what_is_in_force_and_what_flows_become_of_it(masquerading: MasqSite) -> None:
    """Each new flow counts once, by its verdict, at once."""
    wait_in_force(masquerading, ALL_IN_FORCE)
    poll(lambda: active(masquerading) == [1, 1], 10, lambda: f"active: {active(masquerading)}")
    for version in (4, 6):
        masquerading.node.wait_metric(f'bgpd_masquerade_entries{{family="ipv{version}"}}', 2)
    before = flows(masquerading, "listed"), flows(masquerading, "not_listed")
    masquerading.check_in_force()  # one flow to each kind of destination, of each family
    after = flows(masquerading, "listed"), flows(masquerading, "not_listed")
    assert (after[0] - before[0], after[1] - before[1]) == (2, 2)


def test_counts_of_flows_outlive_entries_and_daemon(masquerading: MasqSite) -> None:
    """A counter that went down would look like a restart."""
    masquerading.check_in_force()
    counted = flows(masquerading, "listed")
    masquerading.write(V4.unlisted, V6.unlisted)
    masquerading.wait_seen(V4.pod_a, V4.unlisted)
    masquerading.node.restart_daemon()
    wait_in_force(masquerading, ALL_IN_FORCE)
    assert flows(masquerading, "listed") > counted


def test_findings_reach_doctor_and_metrics_and_leave_the_list_alone(masquerading: MasqSite) -> None:
    """This node announces nothing, so nobody finds the way back to its pods. In JSON the list is Cilium's."""
    doctor = json.loads(masquerading.node.bgpd("doctor", "-o", "json", check=False))
    told = [row["text"] for row in doctor if row["what"] == "masquerade: document" and row["state"] == "warn"]
    assert len(told) == len(PLANS)
    assert all("no BGP peer is told the way to them" in text for text in told)
    poll(lambda: masquerading.node.metric(FINDINGS) == len(told), 10, lambda: f"not {len(told)} findings")
    listed = masquerading.node.try_bgpd("masq", "list", "-o", "json")
    assert json.loads(listed.stdout) == ["169.254.0.0/16", f"{V4.listed}/32", f"{V6.listed}/128", "fe80::/10"]
    assert listed.stderr == ""
    assert "warning: " in masquerading.node.try_bgpd("masq", "list").stderr


def test_a_list_that_does_not_fit_changes_nothing(masquerading: MasqSite) -> None:
    """Link-local makes one too many. The last good list stays, of the other family too, and the count is told."""
    wait_in_force(masquerading, ALL_IN_FORCE)
    before = masquerading.listed()
    masquerading.write(*(f"10.{number >> 8}.{number & 255}.0/24" for number in range(IPMASQ_ENTRIES)))
    problem = masquerading.node.wait_problem("it comes to 16,385 IPv4 CIDRs and the map holds 16,384")
    assert problem.endswith("the last good list stays in use")
    poll(lambda: masquerading.node.metric("bgpd_masquerade_document_faults") == 1, 10, lambda: "no fault is counted")
    poll(lambda: (in_force(masquerading), active(masquerading)) == (ALL_IN_FORCE, [1, 1]), 10, lambda: "not in force")
    assert masquerading.listed() == before
    masquerading.check_in_force()


def test_a_node_that_never_had_a_good_document_does_not_masquerade(masq_site: MasqSite) -> None:
    """Its faults are counted, and what it costs: no rule, in neither family."""
    masq_site.document.write_text("nonMasqueradeCIDRs: [10.0.0.0/33, nonsense]")
    masq_site.node.start_daemon()
    wait_in_force(masq_site, {"masq_ipv4": 1, "masq_ipv6": 1, "masq_rule": 0})
    poll(lambda: masq_site.node.metric("bgpd_masquerade_document_faults") == 2, 10, lambda: "not two faults")
    poll(lambda: active(masq_site) == [0, 0], 10, lambda: f"active: {active(masq_site)}")
    masq_site.node.wait_metric("bgpd_masquerade_document_synced", 0)
    assert masq_site.node.status()["masquerade"]["state"] == "refused"
