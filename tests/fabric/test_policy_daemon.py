"""NetworkPolicy with the whole daemon: what stands in manifests is what packets meet, and changes with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpd.datapath.layout import PolicyVerdict
from tests.fabric.netns import Lab
from tests.fabric.policy_node import PLANS, PORT, SERVICE_PORT, serve
from tests.fabric.policy_site import OTHER_PORT, PolicySite, addresses, labelled, namespace, peers, pod, policy
from tests.fabric.probes import How, Probe

pytestmark = pytest.mark.needs("nft", "mount")

OTHERS = {"b", "c", "d", "far", "world"}
A = labelled(pod="a")
TO_TCP = {"ports": [{"port": PORT}]}


@pytest.fixture
def site(lab: Lab, bpffs: Path) -> Iterator[PolicySite]:
    with contextlib.closing(PolicySite(lab, bpffs)) as made:
        made.start()
        yield made


@pytest.fixture(params=[True, False], ids=["br_netfilter", "bridge alone"])
def any_site(lab: Lab, bpffs: Path, request: pytest.FixtureRequest) -> Iterator[PolicySite]:
    with contextlib.closing(PolicySite(lab, bpffs, br_netfilter=request.param)) as made:
        made.start()
        yield made


def who(site: PolicySite, server: str, *clients: str) -> dict[How, set[str]]:
    """Who of these reaches the server, by what; by default of all others."""
    found = site.passing(clients or OTHERS - {server}, [server])
    return {how: {client for client, _, by in found if by is how} for how in How}


def everywhere(*names: str) -> dict[How, set[str]]:
    return {how: set(names) for how in How}


# --- policies -------------------------------------------------------------------------------------------------------


def test_a_policy_counts_from_when_it_is_written_until_it_is_removed(any_site: PolicySite) -> None:
    """It allows one port of one protocol to one pod; then another pod everything, and ping is of that."""
    site = any_site
    assert who(site, "a") == everywhere(*OTHERS)
    site.apply(policy("x", "p", A, ingress=[{"from": [peers("c")], **TO_TCP}]))
    assert who(site, "a") == everywhere() | {How.TCP: {"c"}}
    assert site.reached("a", *OTHERS, port=OTHER_PORT) == set()
    site.apply(policy("x", "p", A, ingress=[{"from": [peers("b")]}]))
    assert who(site, "a") == everywhere("b")
    site.remove(policy("x", "p"))
    assert who(site, "a") == everywhere(*OTHERS)


def test_policies_that_select_a_pod_add_up(site: PolicySite) -> None:
    site.apply(policy("x", "none", types=["Ingress"]), policy("x", "c", A, ingress=[{"from": [peers("c")]}]))
    assert site.reached("a", *OTHERS) == {"c"}
    site.apply(policy("x", "d", A, ingress=[{"from": [peers("d")]}]))
    assert site.reached("a", *OTHERS) == {"c", "d"}
    assert site.reached("b", "a", "c", "far") == set()


def test_policy_types_that_are_not_given_are_told_by_the_rules(site: PolicySite) -> None:
    to_nobody = {"egress": [{"to": [peers("nobody")]}]}
    specs: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"ingress"}),
        ({"ingress": []}, {"ingress"}),
        (to_nobody, {"ingress", "egress"}),
        ({"types": ["Egress"]}, {"egress"}),
        ({"types": ["Ingress"], **to_nobody}, {"ingress"}),
    ]
    for spec, isolated in specs:
        site.apply(policy("x", "p", A, **spec))
        passing = site.passing(["a", "c", "far"], ["a", "c", "far"], [How.TCP])
        assert {client for client, server, _ in passing if server == "a"} - {"a"} == (
            set() if "ingress" in isolated else {"c", "far"}
        ), spec
        assert {server for client, server, _ in passing if client == "a"} - {"a"} == (
            set() if "egress" in isolated else {"c", "far"}
        ), spec


def test_both_ends_of_a_flow_on_this_node_must_allow_it(any_site: PolicySite) -> None:
    site = any_site
    site.apply(policy("x", "in", labelled(pod="b"), ingress=[{"from": [peers("a", "c")]}]))
    site.apply(policy("x", "out", A, egress=[{"to": [peers("d")]}], types=["Egress"]))
    assert site.reached("b", "a", "c", "d") == {"c"}
    assert site.reaches("a", "b", "c", "d") == {"d"}


def test_the_ports_of_a_range_are_open_and_its_neighbors_are_not(site: PolicySite) -> None:
    ports = [{"port": 8000, "endPort": PORT}, {"protocol": "UDP", "port": OTHER_PORT, "endPort": 65535}]
    site.apply(policy("x", "p", A, ingress=[{"ports": ports}]))
    assert site.reached("a", "c") == {"c"}
    assert site.reached("a", "c", port=OTHER_PORT) == set()
    assert site.reached("a", "c", how=How.UDP) == set()
    assert site.reached("a", "c", how=How.UDP, port=OTHER_PORT) == {"c"}


def test_a_named_port_is_each_destinations_own(site: PolicySite) -> None:
    """One name, two numbers: in egress the peer's counts, in ingress the pod's own. It changes with the pod."""

    def serving(name: str, port: int) -> None:
        site.put(pod("x", name, addresses(name).values(), ports=[("web", "TCP", port)]))

    serving("b", PORT)
    serving("c", OTHER_PORT)
    web = {"ports": [{"port": "web"}]}
    site.put(policy("x", "in", labelled(pod="c"), ingress=[web]))
    site.apply(policy("x", "out", A, egress=[web], types=["Egress"]))
    assert site.reaches("a", "b", "c", "d") == {"b"}
    assert site.reaches("a", "b", "c", "d", port=OTHER_PORT) == {"c"}
    assert (site.reached("c", "b"), site.reached("c", "b", port=OTHER_PORT)) == (set(), {"b"})
    serving("c", PORT)
    site.apply()
    assert site.reaches("a", "b", "c", "d") == {"b", "c"}
    assert site.reached("c", "a", "b", "far", port=OTHER_PORT) == set()


def test_an_ip_block_counts_for_pods_too_and_so_does_what_it_excepts(any_site: PolicySite) -> None:
    blocks = [
        {"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.2.0/24"]}},
        {"ipBlock": {"cidr": "fd44::/16", "except": ["fd44:2::/64"]}},
    ]
    any_site.apply(policy("x", "p", A, ingress=[{"from": blocks}]))
    assert any_site.reached("a", *OTHERS) == {"b", "d", "far"}
    any_site.apply(policy("x", "p", A, egress=[{"to": blocks}], types=["Egress"]))
    assert any_site.reaches("a", *OTHERS) == {"b", "d", "far"}


def test_a_block_of_one_family_says_nothing_of_the_other(site: PolicySite) -> None:
    site.apply(policy("x", "p", A, ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]))
    probes = {Probe(client, "a", How.TCP, PORT, version) for client in OTHERS for version in (4, 6)}
    assert site.prober.passing(probes) == {each for each in probes if each.version == 4}


# --- pods and namespaces --------------------------------------------------------------------------------------------


def test_a_label_more_or_less_and_another_pod_is_let_in_or_isolated(any_site: PolicySite) -> None:
    site = any_site
    friends = {"podSelector": labelled(role="friend")}
    site.apply(policy("x", "p", labelled(role="server"), ingress=[{"from": [friends]}]))
    assert site.reached("a", *OTHERS) == OTHERS
    site.apply(labelled_pod("a", role="server"), labelled_pod("c", role="friend"))
    assert site.reached("a", *OTHERS) == {"c"}
    site.apply(labelled_pod("c", role="other"), labelled_pod("b", role="friend"))
    assert site.reached("a", *OTHERS) == {"b"}
    site.apply(labelled_pod("a", role="none"))
    assert site.reached("a", *OTHERS) == OTHERS


def labelled_pod(name: str, **labels: str) -> dict[str, object]:
    return pod("x", name, addresses(name).values(), labels)


def test_a_namespace_is_selected_by_its_labels_as_they_change(site: PolicySite) -> None:
    """A namespace that is gone has none, and with it gone its pods are let in no more."""
    team = {"namespaceSelector": labelled(team="red")}
    site.apply(policy("x", "p", A, ingress=[{"from": [team]}]))
    assert site.reached("a", *OTHERS) == set()
    site.apply(namespace("y", {"team": "red"}))
    assert site.reached("a", *OTHERS) == {"far"}
    site.apply(namespace("y", {"team": "blue"}), namespace("x", {"team": "red"}))
    assert site.reached("a", *OTHERS) == {"b", "c", "d"}
    site.remove(namespace("x"))
    assert site.reached("a", *OTHERS) == set()
    site.node.wait_problem("there is no Namespace x, but pods of it")


def test_both_selectors_of_one_peer_must_select_and_of_two_peers_either(site: PolicySite) -> None:
    there = {"namespaceSelector": labelled(**{"kubernetes.io/metadata.name": "y"})}
    site.apply(policy("x", "p", A, ingress=[{"from": [peers("far", "c", **there)]}]))
    assert site.reached("a", *OTHERS) == {"far"}
    site.apply(policy("x", "p", A, ingress=[{"from": [peers("far", "c"), there]}]))
    assert site.reached("a", *OTHERS) == {"c", "far"}


def test_an_address_means_the_pod_that_has_it_now(any_site: PolicySite) -> None:
    """The pod before is gone, or still shown as terminating; what it was allowed the next one is not."""
    site = any_site
    site.apply(policy("x", "p", A, ingress=[{"from": [peers("c", "e")]}]))
    assert site.reached("a", *OTHERS) == {"c"}
    old, new = site.objects["Pod", "x/c"], pod("x", "stranger", addresses("c").values())
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    site.apply(new)
    assert site.reached("a", *OTHERS) == set()
    site.remove(old)
    assert site.reached("a", *OTHERS) == set()
    site.remove(new)
    site.apply(pod("x", "e", addresses("c").values()))
    assert site.reached("a", *OTHERS) == {"c"}


def test_a_pod_that_comes_is_policed_from_the_start_and_one_that_went_is_not(site: PolicySite) -> None:
    site.apply(policy("x", "p", ingress=[{"from": [peers("c")]}]))
    assert site.reached("d", *OTHERS - {"d"}) == {"c"}
    site.remove(pod("x", "d", []))
    assert site.reached("d", *OTHERS - {"d"}) == OTHERS - {"d"}
    site.apply(pod("x", "d2", addresses("d").values()))
    assert site.reached("d", *OTHERS - {"d"}) == {"c"}


def test_a_pod_on_its_nodes_network_is_known_by_the_nodes_address_only(site: PolicySite) -> None:
    """No podSelector selects it, for it has no address of its own; an ipBlock does."""
    world = addresses("outside")
    guest = pod("x", "guest", world.values(), {"role": "friend"}, node="worker2", host_network=True)
    site.apply(guest, policy("x", "p", A, ingress=[{"from": [{"podSelector": labelled(role="friend")}]}]))
    assert site.reached("a", *OTHERS) == set()
    blocks = [{"ipBlock": {"cidr": f"{world[plan.version]}/{32 if plan.version == 4 else 128}"}} for plan in PLANS]
    site.apply(policy("x", "p", A, ingress=[{"from": blocks}]))
    assert site.reached("a", *OTHERS) == {"world"}


# --- what no policy can forbid --------------------------------------------------------------------------------------


def test_a_pod_and_its_own_node_always_reach_each_other(any_site: PolicySite) -> None:
    """kubelet's probes, and what a pod asks of its node."""
    site = any_site
    site.apply(policy("x", "none", types=["Ingress", "Egress"]))
    for name in ("b", "d"):
        assert who(site, name, "near", "a", "c", "far") == everywhere("near")
        assert site.passing([name], ["near", "far"]) == {(name, "near", how) for how in How}


@pytest.mark.parametrize("endpoint", ["b", "d"])
def test_a_service_is_judged_by_its_endpoint_and_a_pod_reaches_itself_through_it(
    site: PolicySite, endpoint: str
) -> None:
    """Translated as kube-proxy does it; closed altogether at last."""
    for plan in PLANS:
        serve(site.place, plan, endpoint)
    if endpoint == "b":  # the bridge sends back where it came from, as kubelet's hairpin mode has it
        site.place.node.ip("link set port-b type bridge_slave hairpin on")
    clients = ("a", "c", endpoint)
    site.apply(policy("x", "p", egress=[{"to": [peers(endpoint)], **TO_TCP}], ingress=[{"from": [peers("c")]}]))
    assert site.reached("service", *clients, port=SERVICE_PORT) == {"c", endpoint}
    site.apply(policy("x", "p", types=["Ingress", "Egress"]))
    assert site.reached("service", *clients, port=SERVICE_PORT) == {endpoint}


# --- what cannot be read, and what is only looked at ----------------------------------------------------------------


UNREADABLE = [
    ("podSelector: {matchLabels: {pod: a}}\n  ingress:\n  - form: [{podSelector: {}}]", 7, {"a"}),
    ("podSelector: {matchLabels: {pod: [a]}}\n  ingress:\n  - {}", 5, {"a", "b"}),
    ("podSelector: {matchLabels: {pod: a}}\n  ingress:\n  - ports: [{port: 80, endPort: 8}]", 7, {"a"}),
]


def test_a_policy_that_cannot_be_read_closes_what_it_selects_and_is_named(site: PolicySite) -> None:
    """Where nobody can tell whom it selects, that is every pod of its namespace."""
    file = site.node.manifests / "broken.yaml"
    head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: x, name: broken}\nspec:\n  "
    for spec, line, closed in UNREADABLE:
        file.write_text(f"{head}{spec}\n")
        site.node.wait_problem(f"{file}:{line}")
        site.settle()
        reached = {server for _, server, _ in site.passing(["c", "far"], ["a", "b"])}
        assert {"a", "b"} - reached == closed, spec
    file.unlink()
    site.settle()
    assert not site.problems()
    assert site.reached("a", "c", "far") == {"c", "far"}


def test_in_audit_mode_what_would_be_dropped_passes_and_is_counted(any_site: PolicySite) -> None:
    """By the annotation of the pod's namespace, as it comes and goes."""
    site = any_site
    site.apply(policy("x", "none", A, types=["Ingress"]))
    assert site.reached("a", *OTHERS) == set()
    assert site.verdicts()[PolicyVerdict.AUDITED] == 0
    site.apply(namespace("x", audited=True))
    denied = site.verdicts()[PolicyVerdict.DENIED_INGRESS]
    assert site.reached("a", *OTHERS) == OTHERS
    after = site.verdicts()
    assert after[PolicyVerdict.AUDITED] >= 2 * len(OTHERS)
    assert after[PolicyVerdict.DENIED_INGRESS] - denied >= 2 * len(OTHERS)
    site.apply(namespace("x"))
    assert site.reached("a", *OTHERS) == set()
