"""What a document, a node and the configuration come to: the list, the rule, and who sees a pod's address."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.config.masquerade import Masquerade
from bgpd.config.parse import parse as parse_config
from bgpd.masq.match import PrefixTable
from bgpd.masq.parse import parse
from bgpd.masq.plan import MasqPlan, Rule, explain, plan, rules_of
from bgpd.model.lpm import LpmKey
from bgpd.model.masq import MasqDocument
from bgpd.model.node import Node
from bgpd.model.outcome import Blocked
from bgpd.model.prefix import Prefix, contains
from tests.unit.config_values import changed, dump

NODE = Node(
    "worker1",
    (ip_network("188.188.1.0/24"), ip_network("fd00:188:1::/64")),
    (ip_address("11.8.37.63"), ip_address("fd00::63")),
)
SEED = [f"11.8.37.{host}/32" for host in (252, 253, 254, *range(4, 11))] + ["11.11.248.0/21"]
CLUSTER = ["188.188.0.0/16", "fd00:188::/32"]


def masquerade(**section: Any) -> Masquerade:
    value = changed(("masquerade",), {"enabled": True, "clusterCIDRs": CLUSTER, "ipv6": True} | section)
    return parse_config(dump(value).encode(), "bgpd.yaml").config.masquerade


def planned(
    cidrs: list[str] | None = None, node: Node | None = NODE, flags: dict[str, bool] | None = None, **section: Any
) -> MasqPlan:
    settings = masquerade(**section)
    text = dump({"nonMasqueradeCIDRs": SEED if cidrs is None else cidrs, "cidrLimit": 100_000, **(flags or {})})
    return plan(settings, parse(text.encode(), "ip-masq-agent", rules_of(settings)), node)


def networks(*texts: str) -> tuple[Prefix, ...]:
    return tuple(map(ip_network, texts))


def entries(found: MasqPlan, version: int = 4) -> frozenset[Prefix]:
    family = found.of(version)
    assert family is not None
    assert isinstance(family.entries, frozenset)
    return frozenset(key.prefix for key in family.entries)


def rule(found: MasqPlan, version: int = 4) -> Rule:
    family = found.of(version)
    assert family is not None
    assert isinstance(family.rule, Rule)
    return family.rule


def why_blocked(value: object) -> str:
    assert isinstance(value, Blocked)
    return value.reason


def test_the_list_is_the_documents_and_link_local() -> None:
    """As `cilium bpf ipmasq list` shows it for the same ConfigMap; pods and nodes are none of it."""
    found = planned()
    assert entries(found) == {*networks(*SEED, "169.254.0.0/16")}
    assert entries(found, 6) == {*networks("fe80::/10")}
    assert (found.complete, found.translates) == (True, True)


def test_entries_are_masked_and_kept_once() -> None:
    """Overlapping ones stay: the map is an LPM trie, and Cilium keeps them too."""
    found = planned(["10.0.0.1/8", "10.0.0.0/8", "10.1.0.0/16", "fd00::1/8"], compat="cilium")
    assert entries(found) == {*networks("10.0.0.0/8", "10.1.0.0/16", "169.254.0.0/16")}
    assert entries(found, 6) == {*networks("fd00::/8", "fe80::/10")}


def test_flags_take_link_local_out() -> None:
    """Each its own family."""
    found = planned([], flags={"masqLinkLocal": True})
    assert not entries(found)
    assert entries(found, 6) == {*networks("fe80::/10")}
    found = planned([], flags={"masqLinkLocalIPv6": True})
    assert entries(found) == {*networks("169.254.0.0/16")}
    assert not entries(found, 6)


def test_without_any_good_document_link_local_is_added_and_nothing_removed() -> None:
    """What the kernel holds from an earlier life is then the last good list."""
    found = plan(masquerade(), None, NODE)
    assert entries(found) == {*networks("169.254.0.0/16")}
    assert not found.complete


def test_ipv6_that_is_off_is_left_alone() -> None:
    """Neither map nor rule."""
    assert planned(ipv6=False).v6 is None
    assert "left alone" in explain(planned(ipv6=False), ip_address("2001:db8::1")).reason


def test_the_rule_is_about_this_nodes_pods() -> None:
    """Sources are its own pod CIDRs; pods anywhere and the node itself are kept, in a stable order."""
    assert rule(planned()) == Rule(
        sources=networks("188.188.1.0/24"),
        pod_cidrs=networks("188.188.1.0/24", "188.188.0.0/16"),
        node_addresses=(ip_address("11.8.37.63"),),
        snat_to=None,
    )
    assert rule(planned(clusterCIDRs=[]), 6).pod_cidrs == networks("fd00:188:1::/64")


@pytest.mark.parametrize(
    ("snat", "version", "address"),
    [
        ({"ipv4": "uplink"}, 4, None),
        ({"ipv4": "InternalIP"}, 4, "11.8.37.63"),
        ({"ipv4": "192.0.2.7"}, 4, "192.0.2.7"),
        ({"ipv6": "InternalIP"}, 6, "fd00::63"),
        ({"ipv6": "2001:db8::7"}, 6, "2001:db8::7"),
        ({"ipv4": "InternalIP"}, 6, None),
    ],
)
def test_which_address_the_others_see(snat: dict[str, str], version: int, address: str | None) -> None:
    """That of the interface it leaves by, the Node's, or one that is given; per family."""
    assert rule(planned(snatAddress=snat), version).snat_to == (ip_address(address) if address else None)


def test_an_internal_ip_that_is_not_there_blocks_its_family_alone() -> None:
    """The list does not depend on it."""
    bare = Node("worker1", NODE.pod_cidrs, NODE.internal_ips[:1])
    found = planned(node=bare, snatAddress={"ipv4": "InternalIP", "ipv6": "InternalIP"})
    assert rule(found).snat_to == ip_address("11.8.37.63")
    assert found.v6 is not None
    assert "masquerade.snatAddress.ipv6 is InternalIP" in why_blocked(found.v6.rule)
    assert entries(found, 6)


def test_an_unknown_node_blocks_the_rule_and_not_the_list() -> None:
    """Its pods' CIDRs are not known yet."""
    found = planned(node=None)
    assert "has not shown this node" in why_blocked(found.v4.rule)
    assert entries(found)


def test_a_family_without_pods_needs_no_rule() -> None:
    """A node of one family."""
    found = planned(node=Node("worker1", NODE.pod_cidrs[:1], NODE.internal_ips))
    assert found.v6 is not None
    assert found.v6.rule is None


@pytest.mark.parametrize(
    ("address", "kept", "reason", "entry"),
    [
        ("11.8.37.4", True, "in the list", "11.8.37.4/32"),
        ("11.11.250.1", True, "in the list", "11.11.248.0/21"),
        ("169.254.169.254", True, "in the list", "169.254.0.0/16"),
        ("188.188.1.9", True, "pods of the cluster", "188.188.1.0/24"),
        ("188.188.2.9", True, "pods of the cluster", "188.188.0.0/16"),
        ("11.8.37.63", True, "the node itself", None),
        ("224.0.0.251", True, "multicast, which nobody translates", None),
        ("ff0e::fb", True, "multicast, which nobody translates", None),
        ("11.8.37.11", False, "not in the list", None),
        ("fd00:188:9::1", True, "pods of the cluster", "fd00:188::/32"),
        ("2001:db8::1", False, "not in the list", None),
    ],
)
def test_why_a_destination_sees_what_it_sees(address: str, kept: bool, reason: str, entry: str | None) -> None:
    """`bgpd masq test`: by which entry, the longest that matches."""
    verdict = explain(planned(), ip_address(address))
    assert (verdict.kept, verdict.reason) == (kept, reason)
    assert verdict.entry == (ip_network(entry) if entry else None)
    assert verdict.snat_to == ("" if kept else "the address of the interface it leaves by")


def test_a_verdict_names_the_address_that_is_given() -> None:
    """And with Cilium's datapath it says who decides."""
    outside = ip_address("192.0.2.1")
    assert explain(planned(snatAddress={"ipv4": "InternalIP"}), outside).snat_to == "11.8.37.63"
    assert explain(planned(map="cilium", clusterCIDRs=[]), outside).kept is None
    assert explain(planned(node=None), outside).kept is None
    assert "no ipv4 pod CIDR" in explain(planned(node=Node("a")), outside).reason


PREFIXES = st.builds(
    lambda number, length: ip_network((number >> (8 - length) << (8 - length) << 24, length)),
    st.integers(0, 255),
    st.integers(0, 8),
)


@given(st.lists(PREFIXES), PREFIXES)
def test_the_longest_match_is_the_longest(prefixes: list[Prefix], asked: Prefix) -> None:
    """Compared with looking at each of them."""
    table = PrefixTable(prefixes)

    def longest(found: list[Prefix]) -> Prefix | None:
        return max(found, key=lambda each: each.prefixlen, default=None)

    holding = [each for each in prefixes if contains(each, asked)]
    assert table.cover(asked) == longest(holding)
    assert table.cover(asked, shorter=True) == longest([each for each in holding if each != asked])
    address = asked.network_address
    assert table.match(address) == longest([each for each in prefixes if address in each])
    assert table.match(ip_address("::1")) is None


@given(st.lists(PREFIXES, max_size=8), st.randoms())
def test_the_order_of_a_document_does_not_matter(prefixes: list[Prefix], rand: Any) -> None:
    """Nor does naming an entry twice."""
    twice = [*prefixes, *prefixes]
    rand.shuffle(twice)

    def document(of: list[Prefix]) -> MasqDocument:
        return MasqDocument("f", tuple(map(LpmKey.of, of)))

    assert plan(masquerade(), document(prefixes), NODE) == plan(masquerade(), document(twice), NODE)
