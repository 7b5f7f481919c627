"""What a node shows of NetworkPolicy: `endpoints`, `policy`, `flows` and /metrics against what packets meet."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fabric import plugin
from tests.fabric.netns import Lab
from tests.fabric.policy_node import PLANS, PORT, link
from tests.fabric.policy_site import OTHER_PORT, PolicySite, addresses, labelled, namespace, peers, policy
from tests.fabric.process import Process, poll

pytestmark = pytest.mark.needs("nft", "mount")

A = labelled(pod="a")
FROM_C = policy("x", "p", A, ingress=[{"from": [peers("c")], "ports": [{"port": PORT}]}])
RULE = "NetworkPolicy x/p spec.ingress[0]"
WAIT_S = 10.0


@pytest.fixture
def site(lab: Lab, bpffs: Path) -> Iterator[PolicySite]:
    with contextlib.closing(PolicySite(lab, bpffs)) as made:
        made.start()
        yield made


def asked(site: PolicySite, *words: str) -> Any:
    return json.loads(site.node.bgpd(*words, "-o", "json"))


def explained(site: PolicySite, client: str, server: str) -> list[dict[str, Any]]:
    """One answer for each family; in force, and nothing in which the kernel and the policies differ."""
    answer = asked(site, "policy", "explain", client, server)
    assert (answer["disagreement"], answer["notInForce"]) == ("", "")
    return list(answer["flows"])


def endpoints(site: PolicySite) -> dict[str, dict[str, Any]]:
    return {row["pod"]: row for row in asked(site, "endpoints")}


def metric(site: PolicySite, name: str, **labels: str) -> float:
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return site.node.metric(f"bgpd_policy_{name}{{{inside}}}" if labels else f"bgpd_policy_{name}")


# --- explain --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["b", "c", "far"])
@pytest.mark.parametrize("port", [PORT, OTHER_PORT])
def test_what_is_explained_is_what_packets_meet(site: PolicySite, client: str, port: int) -> None:
    """In both families, by name and by address."""
    site.apply(FROM_C)
    name = "y/far" if client == "far" else f"x/{client}"
    reaches = site.reached("a", client, port=port) == {client}
    flows = explained(site, name, f"x/a:{port}/tcp")
    assert [flow["passes"] for flow in flows] == [reaches, reaches]
    by_address = [
        explained(site, addresses("remote_pod" if client == "far" else client)[plan.version], f"{server}:{port}")
        for plan in PLANS
        for server in [f"[{plan.a}]" if plan.version == 6 else plan.a]
    ]
    assert [flow for (flow,) in by_address] == flows


def test_the_rule_that_decides_and_what_would_change_it(site: PolicySite) -> None:
    site.apply(FROM_C)
    (allowed, _), (wrong_port, _), (wrong_peer, _) = (
        explained(site, *words)
        for words in (("x/c", f"x/a:{PORT}"), ("x/c", f"x/a:{OTHER_PORT}"), ("x/b", f"x/a:{PORT}"))
    )
    assert (allowed["ingress"]["verdict"], allowed["ingress"]["rule"]) == ("passes", RULE)
    assert (wrong_port["ingress"]["verdict"], wrong_port["ingress"]["policies"]) == ("dropped", ["x/p"])
    assert f"{RULE} speaks of this peer, but of other ports: tcp {PORT}" in wrong_port["ingress"]["wouldChange"]
    assert f"{RULE} speaks of this port, but of other peers: pods pod=c" in wrong_peer["ingress"]["wouldChange"]
    assert allowed["egress"]["why"] == "no policy isolates the pod"
    said = site.node.bgpd("policy", "explain", "x/b", f"x/a:{PORT}")
    assert "DROPPED" in said and "DISAGREEMENT" not in said


def test_a_kernel_that_says_otherwise_is_a_disagreement(site: PolicySite) -> None:
    """Somebody has deleted the rules behind the daemon's back; until it looks again, nothing else would tell."""
    site.apply(FROM_C)
    rules = site.map("policy_rules")

    def told() -> dict[str, Any] | None:
        rules.delete(rules.entries())
        asked = site.node.try_bgpd("policy", "explain", "x/c", f"x/a:{PORT}", "-o", "json")
        return dict(json.loads(asked.stdout)) if asked.returncode == 4 else None  # the daemon has looked just then

    answer = poll(told, WAIT_S, lambda: "no disagreement is told")
    assert "the kernel does not do what the policies say" in answer["disagreement"]
    assert answer["flows"][0]["ingress"]["disagreement"] == "the kernel denies it, and a rule allows it"
    assert not answer["flows"][0]["passes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("x/nobody", "x/a"), "there is no pod x/nobody in Kubernetes"),
        (("nobody", "x/a"), "neither namespace/name of a pod nor an address"),
        (("x/c", "x/a:80/icmp"), "a port is like :80/tcp"),
        (("10.0.0.1", "fd00::1"), "no addresses of one family"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused(site: PolicySite, words: tuple[str, str], said: str) -> None:
    told = site.node.try_bgpd("policy", "explain", *words)
    assert told.returncode == 2
    assert said in told.stderr


def test_of_a_pod_elsewhere_only_this_nodes_half_is_told(site: PolicySite) -> None:
    answer = asked(site, "policy", "explain", "x/a", f"y/far:{PORT}/udp")
    assert answer["notes"] == ["y/far is on worker2: its ingress is judged there, ask bgpd there too"]
    assert [flow["ingress"]["judgedHere"] for flow in answer["flows"]] == [False, False]
    said = site.node.bgpd("policy", "explain", "x/a", f"y/far:{PORT}/udp")
    assert "PASSES as far as this node judges" in said
    assert "not here, judged on worker2" in said


# --- endpoints and policies -----------------------------------------------------------------------------------------


def test_endpoints_and_the_policies_that_isolate_them(site: PolicySite) -> None:
    """No plugin on this node, so all of them are known by their addresses only."""
    site.apply(FROM_C, policy("x", "out", A, types=["Egress"]))
    rows = endpoints(site)
    assert (rows["x/a"]["ingress"], rows["x/a"]["egress"]) == (["x/p"], ["x/out"])
    assert (rows["x/b"]["ingress"], rows["x/b"]["egress"]) == (None, None)
    assert rows["x/a"]["addresses"] == [*addresses("a").values()]
    assert {row["state"] for row in rows.values()} == {"unattached"}
    assert "y/far" not in rows
    poll(lambda: metric(site, "endpoints", state="unattached") == len(rows), WAIT_S, lambda: "not as many endpoints")
    site.apply(namespace("x", audited=True))
    assert endpoints(site)["x/a"]["state"] == "audit"
    assert "ingress x/p; egress x/out" in site.node.bgpd("endpoints")


def test_policies_that_count_here(site: PolicySite) -> None:
    site.apply(FROM_C, policy("y", "elsewhere", types=["Ingress"]))
    rows = {row["policy"]: row for row in asked(site, "policy", "list")}
    assert "y/elsewhere" not in rows
    assert rows["x/p"] == {
        "policy": "x/p",
        "pods": ["x/a"],
        "ingress": [f"from pods pod=c: tcp {PORT}"],
        "egress": None,
        "entries": rows["x/p"]["entries"],
        "problems": [],
        "blocked": None,
    }
    assert rows["x/p"]["entries"] > 0
    assert f"ingress  from pods pod=c: tcp {PORT}" in site.node.bgpd("policy", "list")


def test_what_cannot_be_read_of_a_policy_is_told_beside_it(site: PolicySite) -> None:
    site.apply(policy("x", "p", A, ingress=[{"form": [peers("c")]}]))
    (row,) = (row for row in asked(site, "policy", "list") if row["policy"] == "x/p")
    assert row["problems"][0].startswith("spec.ingress[0].form: is no field")


# --- with the plugin in the chain -----------------------------------------------------------------------------------


@pytest.fixture
def chained(lab: Lab, bpffs: Path) -> Iterator[PolicySite]:
    """Chained to a network of the node's; its pods came before it."""
    with contextlib.closing(PolicySite(lab, bpffs)) as made:
        made.chain()
        made.start()
        yield made


def add(site: PolicySite, name: str, *, interface: str = "eth0") -> int:
    """The plugin's exit status for an ADD of pod x/`name`."""
    pod, lengths = site.place.pods[name], {4: 24, 6: 64}
    at = [f"{address}/{lengths[version]}" for version, address in addresses(name).items()]
    names = f"K8S_POD_NAMESPACE=x;K8S_POD_NAME={name}"
    return plugin.add(site.node, pod, link(pod, "eth0")[1], at, interface=interface, names=names)


def test_what_came_through_the_plugin_is_enforced(chained: PolicySite) -> None:
    """And one whose ADD fails is counted, and stays known by its addresses alone."""
    site = chained
    poll(lambda: site.node.metric("bgpd_cni_published") == 1, WAIT_S, lambda: site.node.bgpd("status", check=False))
    assert (add(site, "a"), add(site, "c", interface="eth9")) == (0, 1)
    rows = endpoints(site)
    assert {key: rows["x/a"][key] for key in ("state", "interface", "kind", "link")} == {
        "state": "enforced",
        "interface": "eth0",
        "kind": "veth",
        "link": "port-a",
    }
    assert (rows["x/c"]["state"], rows["x/c"]["interface"]) == ("unattached", None)
    site.node.wait_metric("bgpd_cni_attachments", 1)
    for result in ("done", "failed"):
        site.node.wait_metric(f'bgpd_cni_requests_total{{result="{result}",verb="ADD"}}', 1)
    site.node.wait_metric('bgpd_cni_request_duration_seconds_count{verb="ADD"}', 2)


# --- flows ----------------------------------------------------------------------------------------------------------


def test_what_is_dropped_is_told_with_the_pods_and_the_policy(site: PolicySite) -> None:
    site.apply(FROM_C)
    assert site.reached("a", "b", "c") == {"c"}
    poll(lambda: len(drops(site)) >= 2, WAIT_S, lambda: "no drop is told")
    for row, plan in zip(drops(site)[:2], PLANS, strict=True):
        assert row["client"]["pod"] == "x/b"
        assert (row["client"]["address"], row["server"]["address"]) == (plan.b, plan.a)
        assert (row["server"]["pod"], row["server"]["port"], row["protocol"]) == ("x/a", PORT, "tcp")
        assert (row["verdict"], row["direction"], row["policies"]) == ("dropped", "ingress", ["x/p"])
    assert drops(site, "--pod", "x/d") == drops(site, "--verdict", "audited") == []
    nobody, elsewhere = (site.node.try_bgpd("flows", "--pod", name) for name in ("x/nobody", "y/far"))
    assert (nobody.returncode, elsewhere.returncode) == (2, 0)
    assert "there is no pod x/nobody in Kubernetes" in nobody.stderr
    assert "note: y/far is on worker2" in elsewhere.stderr
    site.apply(namespace("x", audited=True))
    assert site.reached("a", "b", "c") == {"b", "c"}
    poll(lambda: bool(drops(site, "--verdict", "audited")), WAIT_S, lambda: "nothing audited is told")
    assert metric(site, "packets_total", verdict="audited") > 0
    assert metric(site, "packets_total", verdict="denied_ingress") > 0


def test_audit_says_what_would_be_dropped_as_flows_does(site: PolicySite) -> None:
    """Nothing of what is dropped, and of no namespace but those in audit mode."""
    site.apply(FROM_C)
    assert site.reached("a", "b", "c") == {"c"}
    assert asked(site, "policy", "audit") == {"namespaces": [], "flows": [], "forgotten": 0, "notInForce": ""}
    for name, said in (("x", "x is not in audit mode"), ("nobody", "there is no Namespace nobody")):
        refused = site.node.try_bgpd("policy", "audit", name)
        assert (refused.returncode, refused.stdout) == (2, "") and said in refused.stderr
    site.apply(namespace("x", audited=True))
    assert site.reached("a", "b", "c") == {"b", "c"}
    poll(lambda: agrees(site), WAIT_S, lambda: site.node.bgpd("policy", "audit"))
    (place,) = asked(site, "policy", "audit", "x")["namespaces"]
    assert (place["namespace"], place["isolated"]) == ("x", 1)
    for row, plan in zip(audited(site), PLANS, strict=True):
        assert (row["client"], row["server"]) == (
            {"address": plan.b, "port": None, "pod": "x/b"},
            {"address": plan.a, "port": PORT, "pod": "x/a"},
        )
    said = site.node.bgpd("policy", "audit")
    assert said.startswith("x: of 4 pods on this node 1 are isolated\n")
    assert f"ingress x/b {PLANS[0].b} -> x/a {PLANS[0].a}:{PORT} tcp: no ingress rule of x/p allows it" in said


def agrees(site: PolicySite) -> bool:
    """Whether both have been told of the same packets, of both families."""
    told: dict[str, list[dict[str, Any]]] = {}
    for each in drops(site, "--verdict", "audited"):
        told.setdefault(each["server"]["address"], []).append(each)
    found = {row["server"]["address"]: (row["times"], row["last"], {row["why"]}) for row in audited(site)}
    return len(found) == 2 and found == {
        address: (len(rows), max(row["at"] for row in rows), {row["why"] for row in rows})
        for address, rows in told.items()
    }


def audited(site: PolicySite) -> list[dict[str, Any]]:
    """What `policy audit` has, by family."""
    return sorted(asked(site, "policy", "audit", "x")["flows"], key=lambda row: ":" in row["server"]["address"])


def drops(site: PolicySite, *words: str) -> list[dict[str, Any]]:
    """Those with x/a as the server, by family."""
    rows = [row for row in asked(site, "flows", *words)["flows"] if row["server"]["pod"] == "x/a"]
    return sorted(rows, key=lambda row: ":" in row["server"]["address"])


def follow(site: PolicySite, name: str, *words: str) -> Process:
    argv = [str(site.node.program), "flows", "--follow", *words, "--config", str(site.node.config_file)]
    return site.node.namespace.popen(argv, name=name)


def test_flows_are_followed_until_the_operator_or_the_daemon_ends(site: PolicySite) -> None:
    site.apply(FROM_C)
    follower, other = follow(site, "json", "--pod", "x/b", "-o", "json"), follow(site, "text")

    def told() -> bool:
        site.reached("a", "b", "c")
        return bool(follower.log()) and bool(other.log())

    poll(told, WAIT_S, lambda: "nothing is told")
    follow(site, "nobody", "--pod", "x/nobody").wait_log("note: there is no pod x/nobody")  # it may come
    refused = site.node.try_bgpd("policy", "clear")  # what it drops would pass until the daemon had put it back
    assert refused.returncode == 1 and "bgpd runs and would put it back" in refused.stderr
    first = json.loads(follower.log().splitlines()[0])
    assert (first["client"]["pod"], first["verdict"]) == ("x/b", "dropped")
    assert "dropped ingress x/b " in other.log()
    follower.signal(signal.SIGINT)
    assert follower.popen.wait(WAIT_S) == 130
    assert site.node.daemon is not None
    site.node.daemon.stop()
    assert other.popen.wait(WAIT_S) == 3
    assert "Traceback" not in follower.log() + other.log()


def test_a_daemon_is_in_the_way_of_clear_wherever_its_socket_is(site: PolicySite) -> None:
    """Nothing goes, on kernels either whose tables have no owner."""
    paths = {**site.node.config["paths"], "run": str(site.node.directory / "elsewhere")}
    other = site.node.directory / "other.yaml"
    other.write_text(yaml.safe_dump(site.node.config | {"paths": paths}))
    argv = [str(site.node.program), "policy", "clear", "--config", str(other)]
    refused = site.node.namespace.run(argv, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "has its maps open); stop that first" in refused.stderr
    assert site.has_tables()
    assert site.node.daemon is not None
    site.node.daemon.stop()
    assert "removed nftables" in site.node.namespace.run(argv).stdout


# --- metrics --------------------------------------------------------------------------------------------------------


def test_what_is_in_force_and_how_full_the_maps_are(site: PolicySite) -> None:
    site.apply(FROM_C)
    loops = ("policy_maps", "policy_links", "policy_tables")

    def all_in_force() -> bool:  # a metric says what the last round found, a moment after the kernel has it
        return [metric(site, "in_force", subsystem=loop) for loop in loops] == [1, 1, 1]

    poll(all_in_force, WAIT_S, lambda: site.node.bgpd("status", check=False))
    peers_there = len(site.map("policy_peers").entries())
    site.node.wait_metric('bgpd_policy_map_entries{map="policy_peers"}', peers_there)
    assert metric(site, "map_capacity", map="policy_peers") == site.map("policy_peers").spec.max_entries
    assert site.node.status()["policy"]["policies"] == 2, "that one, and the fence's"


def test_doctor_tells_what_policy_rests_on(site: PolicySite) -> None:
    """And, for each family, where pods of one bridge are judged."""
    findings = json.loads(site.node.bgpd("doctor", "-o", "json", check=False))
    told = [row for row in findings if row["what"].startswith("policy: ")]
    rests_on = {"ring buffer", "xt_bpf", "table owner", "tcx", "sender's netns", "nf_conntrack"}
    assert {f"policy: {each}" for each in rests_on} <= {row["what"] for row in told}
    assert [row for row in told if row["state"] == "bad"] == []
    bridges = [row["text"] for row in told if row["what"] == "policy: bridges"]
    assert len(bridges) == 2
    assert all("where it is forwarded (bridge-nf-call-ip" in text for text in bridges)


def test_counters_outlive_the_daemon(site: PolicySite) -> None:
    site.apply(FROM_C)
    site.reached("a", "b")
    before = metric(site, "packets_total", verdict="denied_ingress")
    site.node.restart_daemon()

    def is_counted() -> bool:
        with contextlib.suppress(AssertionError):  # nothing is published yet
            return metric(site, "packets_total", verdict="denied_ingress") >= before > 0
        return False

    poll(is_counted, WAIT_S, lambda: site.node.bgpd("status", check=False))
