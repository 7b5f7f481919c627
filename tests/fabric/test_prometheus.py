"""config/alerts.yaml and config/dashboard.json in a real Prometheus that scrapes a real daemon with real peers.

Every query of the dashboard is asked as Grafana asks it: the variables' values first, then the panels with them
filled in. What can be told from the files alone is tested in `tests/system/test_observability_files`.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fabric import plugin
from tests.fabric.netns import Lab, missing
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.process import poll
from tests.fabric.prometheus import JOB, Prometheus
from tests.fabric.topology import BOTH_FAMILIES, F5_SNAT, POD_SUPERNETS, TwoTorFabric
from tests.files import rewrite
from tests.system.observability import ALERTS, dashboard, panels, variables
from tests.unit.cni_requests import frame

SCRAPED_S = 20.0
BFD_MS = 300
# What Grafana makes of it at its data source's default scrape interval of 15 s.
RATE_INTERVAL = "1m"
# What should not be has no series while it is not: by the comparison, or for want of a time when it was.
OFF_HERE = re.compile(r"bgpd_(node_routes|host_routes|services?|virtual_servers?)_")
SHOWS_TROUBLE_ONLY = re.compile(r"(>|!=) 0$|last_error_timestamp")


@pytest.fixture(scope="module")
def fabric() -> Iterator[TwoTorFabric]:
    """One for this file: until a daemon announces, was scraped and has seen a change, seconds go by."""
    reason = missing("bird", "prometheus", "nft", "mount")
    if reason is not None:
        pytest.skip(reason)
    with Lab() as lab:
        yield TwoTorFabric(lab, neighbor=replace(BOTH_FAMILIES, bfd_ms=BFD_MS)).start()


@pytest.fixture(scope="module")
def node(fabric: TwoTorFabric) -> Iterator[BgpdNode]:
    """It announces, with BFD, masquerades and polices. Its `paths.bpf` is a bpffs that goes with it."""
    place = fabric.nodes[0]
    directory = BgpdNode.directory_of(place.namespace)
    document, pins = directory / "document", directory / "bpf"
    pins.mkdir(parents=True)
    write_list(document, [f"{F5_SNAT}/32"])
    subprocess.run(["mount", "-t", "bpf", "bpf", pins], check=True)
    config = {"enabled": True, "ipv6": True, "config": {"path": str(document)}, "clusterCIDRs": list(POD_SUPERNETS)}
    try:
        bgp = two_tor_bgp(fabric, bfd={})
        yield BgpdNode.announcing(fabric, bgp, masquerade=config, **plugin.sections(directory))
    finally:
        subprocess.run(["umount", "--lazy", pins], check=True)


def write_list(document: Path, entries: Sequence[str]) -> None:
    """As an atomic writer does it; `cidrLimit` lets it be as long as it is."""
    rewrite(document, json.dumps({"nonMasqueradeCIDRs": entries, "cidrLimit": len(entries)}))


@pytest.fixture(scope="module")
def prometheus(fabric: TwoTorFabric, node: BgpdNode) -> Prometheus:
    """It has scraped a healthy life in which a pod CIDR went and came back, and a pod that went before it came."""
    place = fabric.nodes[0]
    server = Prometheus(place.namespace, ALERTS, node.config["metrics"]["listen"]).start()
    wait_value(server, f'count_over_time(up{{job="{JOB}"}}[1m]) > bool 2', 1)
    node.allocate(place, place.pod_cidrs[0])
    wait_value(server, "sum(bgpd_bgp_routes_advertised)", 2)
    node.allocate(place, *place.pod_cidrs)
    wait_value(server, "sum(bgpd_bgp_routes_advertised)", 4)
    assert plugin.ask(node, frame("ADD")) == 1  # of a pod that is not there: it is counted, and how long it took
    wait_value(server, 'sum(bgpd_cni_requests_total{verb="ADD"})', 1)
    return server


def wait_value(server: Prometheus, expression: str, value: float) -> None:
    poll(
        lambda: server.instant(expression) == [value],
        SCRAPED_S,
        lambda: f"{expression}: {server.instant(expression)}",
    )


def filled(expression: str, values: dict[str, str]) -> str:
    """An expression of the dashboard as Grafana sends it."""
    for name, value in (values | {"__rate_interval": RATE_INTERVAL}).items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, expression
    return expression


def chosen(server: Prometheus) -> dict[str, str]:
    """The variables of the dashboard when it is opened: the first value, or all of them."""
    values: dict[str, str] = {}
    given = {it["name"]: it for it in dashboard()["templating"]["list"]}
    for name, selector, label in variables():
        offered = server.label_values(filled(selector, values), label)
        assert offered, f"variable {name} has no value"
        values[name] = given[name]["allValue"] if given[name]["includeAll"] else offered[0]
    return values


def shown(server: Prometheus) -> dict[str, list[float]]:
    """What each query of each panel gives, by its place and expression."""
    values = chosen(server)
    found = {}
    for panel in panels():
        for target in panel.get("targets", ()):
            ask = server.instant if target.get("instant") else server.graph
            expression = filled(target["expr"], values)
            found[f"{panel['title']} {target['refId']}: {expression}"] = ask(expression)
    return found


def overview(found: dict[str, list[float]]) -> dict[str, float]:
    """The figures at the top of the dashboard, by the panel's title."""
    titles = [panel["title"] for panel in panels() if panel["type"] == "stat"]
    return {title: it[0] for title in titles for place, it in found.items() if place.startswith(f"{title} A: ")}


@pytest.fixture(scope="module")
def healthy(prometheus: Prometheus) -> dict[str, list[float]]:
    """What the dashboard shows before any trouble."""
    return shown(prometheus)


def test_every_panel_of_a_healthy_node_has_data(healthy: dict[str, list[float]]) -> None:
    """No query is at fault; all give numbers, but those that show only what is wrong, or a part that is off here."""
    off = {place for place in healthy if OFF_HERE.search(place)}
    quiet = {place for place in healthy if SHOWS_TROUBLE_ONLY.search(place)}
    assert quiet - off
    assert {place for place, it in healthy.items() if not it} - off == quiet - off


def test_overview_of_a_healthy_node(healthy: dict[str, list[float]]) -> None:
    """One node, two prefixes to each of two peers, and nothing else to look at."""
    assert {title: it for title, it in overview(healthy).items() if it} == {"Nodes scraped": 1, "Routes wanted": 4}


def test_trouble_is_shown(
    fabric: TwoTorFabric, node: BgpdNode, prometheus: Prometheus, healthy: dict[str, list[float]]
) -> None:
    """Nothing is about to fire before; a switch that dies and files with faults raise their alerts and figures.

    Nothing is mended: `healthy` is what other tests of this file look at.
    """
    rules = {rule["name"]: rule for rule in prometheus.rules()}
    assert {name: rule for name, rule in rules.items() if rule["health"] != "ok"} == {}
    assert prometheus.alerts() == set()

    fabric.tors[1].speaker.kill()
    node.config["bgp"]["nonsense"] = 1
    node.write_config()
    assert node.try_bgpd("reload").returncode == 2
    document = Path(node.config["masquerade"]["config"]["path"])
    write_list(document, ["nonsense"])

    raised = {"BgpdSessionDown", "BgpdConfigRejected", "BgpdMasqueradeDocumentFaulty"}
    poll(lambda: prometheus.alerts() == raised, SCRAPED_S, lambda: str(prometheus.alerts()))
    before = overview(healthy)
    expected = {"Sessions down", "Configurations refused", "Routes missing", "Masquerade documents refused"}

    def changed() -> set[str]:
        return {title for title, it in overview(shown(prometheus)).items() if it != before[title]}

    poll(lambda: changed() == expected, SCRAPED_S, lambda: str(changed()))
