"""What befalls NetworkPolicy on a node, each caused for real with the whole daemon at work.

In every test one pod, and it alone, may reach a and d. Whatever happens, nobody else does who did not before, and
what somebody else has broken is put right, or the daemon says what an operator shall do.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgpd.datapath import layout, pins
from bgpd.policy.table import NAME
from tests.fabric.bird import Bird
from tests.fabric.mounts import BPFFS
from tests.fabric.netns import Lab
from tests.fabric.node import BIN, BgpdNode, node_manifest
from tests.fabric.peer import Neighbor, Options
from tests.fabric.policy_site import PolicySite, addresses, labelled, namespace, peers, policy, too_big
from tests.fabric.probes import How
from tests.fabric.process import Process, poll

pytestmark = pytest.mark.needs("nft", "mount")

POD_CIDR = "10.244.1.0/24"
CLIENTS = ("b", "c", "far", "world")
SERVERS = ("a", "d")
ONE_ONLY = {("c", server, how) for server in SERVERS for how in How}
EVERYBODY = {(client, server, how) for client in CLIENTS for server in SERVERS for how in How}
PROTECTED = [
    policy("x", name, labelled(pod=name), ingress=[{"from": [peers("c")]}]) for name in SERVERS
]  # fmt: skip


@pytest.fixture
def idle(lab: Lab, bpffs: Path) -> Iterator[PolicySite]:
    """The daemon not started."""
    with contextlib.closing(PolicySite(lab, bpffs)) as made:
        made.put(*PROTECTED)
        yield made


@pytest.fixture
def site(idle: PolicySite) -> PolicySite:
    idle.start()
    check(idle)
    return idle


def check(site: PolicySite) -> None:
    """What the rules say is what happens, now."""
    assert site.passing(CLIENTS, SERVERS) == ONE_ONLY


def daemon(site: PolicySite) -> Process:
    assert site.node.daemon is not None
    return site.node.daemon


def asked(site: PolicySite, *words: str) -> Any:
    """What a command prints as JSON, in whatever state the node is."""
    return json.loads(site.node.try_bgpd(*words, "-o", "json").stdout)


def nft(site: PolicySite, script: str) -> subprocess.CompletedProcess[str]:
    """What another administrator does."""
    return site.node.namespace.run(["nft", "-f", "-"], stdin=script, check=False)


# --- the kernel -----------------------------------------------------------------------------------------------------


def test_entries_changed_behind_our_back_are_repaired_and_counted(site: PolicySite) -> None:
    """Pods taken out and rules put in that let everybody in; then all rules gone, and what is left lets nobody in
    whose packets are not remembered.
    """
    pods, rules = site.map("policy_peers"), site.map("policy_rules")
    (number,) = {layout.Peer._make(layout.PEER.unpack(pods.entries()[key])).ingress_set for key in addresses_of("a")}
    pods.delete(addresses_of("d"))
    rules.update({layout.rule_key(number, 0): layout.RULE.pack(0, layout.Action.ALLOW, 0, 0, 1)})
    poll(lambda: site.drift("policy_maps") == 1, 15, lambda: f"drift is {site.drift('policy_maps')}")
    check(site)
    rules.delete(rules.entries())
    site.map("policy_revision").update({bytes(4): layout.REVISION.pack(0)})
    assert site.passing(CLIENTS, SERVERS) == set()
    poll(lambda: site.drift("policy_maps") == 2, 15, lambda: f"drift is {site.drift('policy_maps')}")
    check(site)
    assert not site.problems()


def addresses_of(name: str) -> list[bytes]:
    return [layout.policy_address(ip_address(each)) for each in addresses(name).values()]


def test_pins_that_are_removed_are_put_back(site: PolicySite) -> None:
    """The very maps and programs that the rules ask, which notice nothing."""
    before = site.pinned()
    assert {*before} >= {"policy", "policy_reply", "policy_peers", "policy_rules"}
    shutil.rmtree(site.pins)
    check(site)
    poll(lambda: site.pinned() == before, 15, lambda: f"{site.pinned()}, not {before}")
    check(site)


def test_a_flushed_ruleset_is_as_it_was(site: PolicySite) -> None:
    """Owned tables outlast the flush (Linux 6.9), others are put back at once."""
    assert nft(site, "flush ruleset").returncode == 0
    poll(site.has_tables, 5, lambda: str(site.tables()))
    check(site)


def test_tables_deleted_while_the_daemon_is_down_are_put_back(site: PolicySite) -> None:
    """With their owner they have lost their protection; maps and programs are what they were."""
    before = site.pinned()
    daemon(site).kill()
    check(site)
    assert nft(site, f"delete table inet {NAME}; delete table bridge {NAME}").returncode == 0
    site.node.start_daemon()
    poll(site.has_tables, 10, lambda: site.node.bgpd("status", check=False))
    check(site)
    assert site.pinned() == before


# --- the source -----------------------------------------------------------------------------------------------------


def test_an_emptied_directory_opens_nothing(site: PolicySite) -> None:
    """Be it that policies go first; neither does a daemon that finds it so. What is written again counts."""
    for each in PROTECTED:
        site.drop(each)
    others = site.node.manifests / "policies.yaml"
    others.write_text("\n---\n".join(map(yaml.safe_dump, PROTECTED)))
    site.apply()
    check(site)
    others.unlink()
    site.file.unlink()
    site.node.wait_problem("there is no Pod;")
    check(site)
    site.node.restart_daemon()
    site.node.wait_problem("there is no Pod;")
    check(site)
    site.apply(*PROTECTED, policy("x", "more", labelled(pod="d"), ingress=[{"from": [peers("b")]}]))
    assert site.passing(CLIENTS, SERVERS) == ONE_ONLY | {("b", "d", how) for how in How}
    assert not site.problems()


def test_a_directory_that_is_gone_opens_nothing(site: PolicySite) -> None:
    """Nor does a daemon that starts without it: it knows nothing, and leaves everything as it is."""
    manifests, away = site.node.manifests, site.node.manifests.with_name("away")
    manifests.rename(away)
    site.node.wait_problem(f"{manifests} cannot be read")
    check(site)
    site.node.restart_daemon()
    site.node.wait_problem("not every Node and Pod and Namespace and NetworkPolicy has been read")
    check(site)
    away.rename(manifests)
    site.apply(namespace("z"))
    check(site)


def test_a_file_that_breaks_counts_as_it_was(site: PolicySite) -> None:
    """All of it, policies and pods; the place is named."""
    site.file.write_text(site.file.read_text() + "\n---\nkind: [")
    site.node.wait_problem(str(site.file))
    check(site)
    site.apply()
    check(site)


MORE = policy("x", "more", labelled(pod="a"), ingress=[{"from": [peers("b")]}])
MORE_OPEN = {("b", "a", how) for how in How}


def test_a_policy_that_does_not_fit_holds_its_own_pods_back_and_is_named(site: PolicySite) -> None:
    """d keeps its rules and then, by the setting, is closed; a gets its new ones. What fits again is in force."""
    big = too_big("d")
    site.apply(big, MORE)
    assert site.passing(CLIENTS, SERVERS) == ONE_ONLY | MORE_OPEN
    (problem,) = site.problems()
    assert "x/big does not fit: with its 66,000 new entries the map policy_ranges would need 66,000" in problem
    assert "it holds 65,536; x/d keeps its last good rules" in problem
    assert {row["pod"]: row["why"] for row in asked(site, "endpoints") if row["state"] == "blocked"} == {
        "x/d": problem.removeprefix("policy: ")
    }
    (row,) = (row for row in asked(site, "policy", "list") if row["blocked"])
    assert (row["policy"], row["blocked"]["pods"]) == ("x/big", {"x/d": "kept"})
    site.node.wait_metric('bgpd_policy_blocked{map="policy_ranges"}', 1)
    assert asked(site, "policy", "explain", "x/c", "x/d")["notInForce"] == problem.removeprefix("policy: ")
    site.node.config["policy"]["onOverflow"] = "close"
    site.node.write_config()
    site.node.bgpd("reload")
    poll(lambda: "x/d is closed" in site.problems()[0], 10, lambda: str(site.problems()))
    assert site.passing(CLIENTS, SERVERS) == {each for each in ONE_ONLY if each[1] == "a"} | MORE_OPEN
    site.remove(big)
    assert site.passing(CLIENTS, SERVERS) == ONE_ONLY | MORE_OPEN
    assert not site.problems()


def test_a_pod_that_is_blocked_is_closed_when_the_daemon_starts_and_nobody_else_is(site: PolicySite) -> None:
    """What it had before nobody knows any more; the rules of the others are in the kernel, and so came first."""
    site.apply(too_big("d"))
    check(site)
    site.node.restart_daemon()
    poll(lambda: "x/d is closed" in str(site.problems()), 20, lambda: str(site.problems()))
    assert site.passing(CLIENTS, SERVERS) == {each for each in ONE_ONLY if each[1] == "a"}


# --- the machine ----------------------------------------------------------------------------------------------------


def test_a_daemon_that_stands_still_changes_nothing_and_then_catches_up(site: PolicySite) -> None:
    daemon(site).pause()
    site.put(policy("x", "a", labelled(pod="a"), ingress=[{"from": [peers("b")]}]))
    site.write()
    check(site)
    daemon(site).resume()
    site.wait_in_force()
    assert site.reached("a", *CLIENTS) == {"b"}


def test_without_cap_bpf_the_capability_is_named(idle: PolicySite, tmp_path: Path) -> None:
    """And nothing is enforced, for nothing can be."""
    wrapper = tmp_path / "bgpd"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-bpf,-sys_admin {BIN / "bgpd"} "$@"\n')
    wrapper.chmod(0o755)
    idle.node.program = wrapper
    idle.write()
    idle.node.start_daemon()
    assert "add it to the unit" in idle.node.wait_problem("CAP_BPF is missing")
    assert not idle.tables()
    assert idle.passing(CLIENTS, SERVERS) == EVERYBODY


def test_maps_of_another_release_are_not_used_on_and_the_log_says_so(idle: PolicySite) -> None:
    """Once, by the object that made them: those of macvlans and ipvlans have the same."""
    shape, gone = layout.MAPS["policy_verdicts"], replace(layout.MAPS["policy_links"], name="policy_retired")
    pins.open_or_create(idle.pins / shape.name, replace(shape, max_entries=1))
    pins.open_or_create(idle.pins / gone.name, gone)
    idle.start()
    check(idle)
    assert idle.node.daemon is not None
    (line,) = (text for text in idle.node.daemon.log().splitlines() if "maps of another layout" in text)
    said = json.loads(line)
    assert (said["level"], said["replaced"], said["removed"]) == ("info", [shape.name], [gone.name])


def test_without_a_bpffs_the_command_that_mounts_it_is_all_it_takes(idle: PolicySite, lab: Lab) -> None:
    place = lab.directory / "unmounted"
    place.mkdir()
    idle.pins = place / "bgpd"
    idle.node.config["paths"]["bpf"] = str(idle.pins)
    idle.node.write_config()
    idle.write()
    idle.node.start_daemon()
    problem = idle.node.wait_problem("policy: policy_maps, policy_links: ")  # one cause is told once
    (command,) = re.findall(r"mount -t bpf bpf \S+", problem)
    assert [each for each in idle.problems() if "there is no bpffs" in each] == [problem]
    assert {row["state"] for row in asked(idle, "endpoints")} == {"blocked"}, "every pod is shown"
    assert not idle.tables()
    subprocess.run(shlex.split(command), check=True)
    try:
        poll(idle.has_tables, 20, lambda: idle.node.bgpd("status", check=False))
        idle.wait_in_force()
        check(idle)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.needs("bird", "unshare", "setpriv")
def test_without_a_bpffs_at_its_usual_place_routes_are_announced(lab: Lab) -> None:
    """By a daemon that may not mount it, as in a container without CAP_SYS_ADMIN. What it says to type is for whoever
    may."""
    namespace, tor = lab.namespace("node"), lab.namespace("tor")
    lab.link(namespace, "eth0", tor, "eth0")
    namespace.add_address("eth0", "192.0.2.1/24")
    tor.add_address("eth0", "192.0.2.2/24")
    peer = Neighbor(address="192.0.2.1", asn=64512)
    bird = Bird(tor, Options(asn=64512, router_id="192.0.2.2", neighbors=(peer,))).start()
    bgp = {
        "localASN": 64512,
        "speaker": "managed",
        "peers": [{"name": "tor", "peerAddress": "192.0.2.2", "peerASN": 64512}],
        "advertisements": [{"advertisementType": "PodCIDR"}],
        "export": {"allow": [POD_CIDR]},
    }
    node = BgpdNode(namespace, "worker1", bgp, program=without_bpffs(lab), policy={"enabled": True})
    del node.config["paths"]["bpf"]
    node.write_config()
    (node.manifests / "node.yaml").write_text(node_manifest("worker1", [POD_CIDR], "192.0.2.1"))
    node.start_daemon()
    assert node.daemon is not None
    (command,) = re.findall(r"mount -t bpf bpf \S+", node.wait_problem("there is no bpffs"))
    assert command.endswith(f" {BPFFS}")
    bird.wait_route(POD_CIDR)
    node.wait_problem("there is no bpffs")
    subprocess.run(["nsenter", "--mount", "--target", str(node.daemon.pid), *shlex.split(command)], check=True)
    node.wait_healthy()


def without_bpffs(lab: Lab) -> Path:
    """A `bgpd` with mounts of its own, which it may not change."""
    wrapper = lab.directory / "bgpd-without-bpffs"
    left = f"while mountpoint -q {BPFFS}; do umount {BPFFS}; done"
    inner = f'{left}; exec setpriv --bounding-set=-sys_admin {BIN / "bgpd"} "$@"'
    wrapper.write_text(f'#!/bin/sh\nexec unshare --mount sh -ec {shlex.quote(inner)} sh "$@"\n')
    wrapper.chmod(0o755)
    return wrapper
