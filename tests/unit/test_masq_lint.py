"""What in a list works and is probably not meant."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bgpd.config.masquerade import Masquerade
from bgpd.masq.lint import Lint, Surroundings, findings, surroundings
from bgpd.model.masq import Rules
from bgpd.model.node import Node
from bgpd.model.prefix import Prefix
from tests.unit.test_masq_references import AGENT, CILIUM, read

POD, CLUSTER = ip_network("188.188.1.0/24"), ip_network("188.188.0.0/16")
POOL = ip_network("11.8.37.4/30")
FABRIC = Surroundings(pod_cidrs=(CLUSTER, POD), own_pod_cidrs=(POD,), f5_snat_pools=(POOL,), advertised=(POD,))
CLEAN = ["169.254.0.0/16", "11.8.37.4/32", "11.11.248.0/21"]


def found(cidrs: list[str], around: Surroundings = FABRIC, rules: Rules = AGENT, more: str = "") -> list[str]:
    text = "nonMasqueradeCIDRs:\n" + "".join(f"- {cidr}\n" for cidr in cidrs) + more
    return [str(finding) for finding in findings(read(text, rules), around)]


def test_a_list_as_it_should_be_has_no_findings() -> None:
    """Link-local may be listed, as every guide does; one address of a pool is enough."""
    assert found(CLEAN) == []


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        ("11.8.37.4/32", "5: 11.8.37.4/32: it is on line 3 already; remove it"),
        ("11.11.250.0/24", "5: 11.11.250.0/24: it lies in 11.11.248.0/21, which is listed as well; remove it"),
        ("188.188.7.0/24", "5: 188.188.7.0/24: it lies in 188.188.0.0/16, where pods live, "
         "which keep their addresses among each other in any case; remove it"),
        ("169.254.169.254/32", "5: 169.254.169.254/32: it lies in 169.254.0.0/16, which is listed as well; "
         "remove it"),
    ],
)  # fmt: skip
def test_an_entry_that_changes_nothing(entry: str, finding: str) -> None:
    """Each with the other that makes it so."""
    assert found([*CLEAN, entry]) == [f"ip-masq-agent:{finding}"]


def test_an_entry_wider_than_the_pods_is_no_repetition() -> None:
    """It also keeps addresses towards others."""
    assert found([*CLEAN, "188.0.0.0/8"]) == []


def test_host_bits_are_among_the_findings() -> None:
    """As the parser noticed them."""
    assert found([*CLEAN, "2.2.2.2/16"], rules=CILIUM) == [
        "ip-masq-agent:5: 2.2.2.2/16: it has host bits and counts as 2.2.0.0/16; write 2.2.0.0/16"
    ]


def test_what_costs_traffic_is_told_before_what_is_merely_too_much() -> None:
    """Of thousands of entries that change nothing, a person is shown the first few."""
    around = Surroundings(FABRIC.pod_cidrs, FABRIC.own_pod_cidrs, (POOL,), ())
    told = found(
        ["192.0.2.0/24", "192.0.2.0/24", "2.2.2.2/16", "169.0.0.0/8"], around, CILIUM, "masqLinkLocal: true\n"
    )
    words = ["answers get lost", "F5 SNAT pool", "masqLinkLocal: true", "host bits", "already"]
    assert [word for finding in told for word in words if word in finding] == words


def test_the_surroundings_of_a_node() -> None:
    """The cluster's pods and its own; while it is not known, the cluster's alone."""
    masquerade = Masquerade.model_validate({"clusterCIDRs": [str(CLUSTER)], "f5SnatPools": [str(POOL)]})
    node = Node("worker1", (POD,), ())
    assert surroundings(masquerade, node, (POD,)) == Surroundings((POD, CLUSTER), (POD,), (POOL,), (POD,))
    assert surroundings(masquerade, None, None) == Surroundings((CLUSTER,), (), (POOL,), None)


def test_findings_are_sought_once() -> None:
    """Whoever asks again gets the same ones."""
    lint = Lint(read("nonMasqueradeCIDRs: [192.0.2.0/24, 192.0.2.0/24]", AGENT), Surroundings())
    assert len(lint.findings) == 1
    assert lint.findings is lint.findings


@pytest.mark.parametrize("entry", ["169.254.0.0/16", "169.0.0.0/8"])
def test_link_local_that_is_asked_to_be_masqueraded_and_is_listed(entry: str) -> None:
    """The entry wins, in both references."""
    assert found([*CLEAN[1:], entry], more="masqLinkLocal: true\n") == [
        f"ip-masq-agent:4: {entry}: it holds 169.254.0.0/16, which masqLinkLocal: true wants masqueraded; "
        "remove one of the two"
    ]


@pytest.mark.parametrize(
    ("cidrs", "covered"),
    [(["11.8.37.5/32"], True), (["11.8.0.0/16"], True), (["11.8.37.8/32"], False), (["188.0.0.0/8"], False)],
)
def test_a_pool_of_which_nothing_is_listed(cidrs: list[str], covered: bool) -> None:
    """An F5 then sees the node, and its session table is of no use."""
    assert found(cidrs) == (
        []
        if covered
        else [
            "11.8.37.4/30: nothing of this F5 SNAT pool is listed, so the F5 sees the node in what pods send to it; "
            "list it in nonMasqueradeCIDRs, or remove it from masquerade.f5SnatPools"
        ]
    )


@pytest.mark.parametrize(
    ("advertised", "told"),
    [((POD,), False), ((CLUSTER,), False), (None, False), ((), True), ((ip_network("188.188.1.0/25"),), True)],
)
def test_listed_destinations_to_which_no_way_back_is_announced(
    advertised: tuple[Prefix, ...] | None, told: bool
) -> None:
    """They see pods that BGP tells nobody about; said once per pod CIDR, at the first such entry."""
    around = Surroundings(FABRIC.pod_cidrs, FABRIC.own_pod_cidrs, (), advertised)
    assert found(CLEAN, around) == (
        [
            "ip-masq-agent:3: 11.8.37.4/32: whoever is there (as does 1 more) sees pods of 188.188.1.0/24 by their "
            "own addresses, and no BGP peer is told the way to them: answers get lost; advertise PodCIDR in "
            "bgp.advertisements and let bgp.export.allow pass it, or remove the entry"
        ]
        if told
        else []
    )


def test_a_list_of_nothing_but_pods_and_link_local_needs_no_bgp() -> None:
    """Nobody outside sees a pod."""
    around = Surroundings(FABRIC.pod_cidrs, FABRIC.own_pod_cidrs, (), ())
    assert found(["169.254.0.0/16"], around) == []


def test_a_default_list_is_nobodys_to_mend() -> None:
    """Pods usually live in RFC 1918."""
    around = Surroundings(pod_cidrs=(ip_network("10.0.0.0/8"),))
    assert findings(read(None, AGENT), around) == ()


def test_sixteen_thousand_entries_are_looked_at_in_a_moment() -> None:
    """Each is compared by length, not with each other."""
    cidrs = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(16_000)]
    assert len(found([*cidrs, "10.0.0.0/9"], Surroundings(), CILIUM)) == 16_000
