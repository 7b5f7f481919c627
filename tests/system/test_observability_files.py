"""The alerting rules and the dashboard: right in themselves, and about metrics that the daemon has.

A metric that is renamed leaves an alert that never fires and a panel that stays empty, and nobody is told. So
every name in an expression is looked up in the daemon's own registry, and every metric must be used somewhere.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import panelcfg_config
from grafana_foundation_sdk.models.dashboard import Dashboard

from bgpd.cli.main import COMMANDS
from bgpd.observe.metrics import Metrics, Objects, Snapshot
from bgpd.observe.samples.bgp import Peer
from bgpd.observe.samples.cni import Cni
from bgpd.observe.samples.hostroutes import HostRoutes
from bgpd.observe.samples.masquerade import Masquerade
from bgpd.observe.samples.noderoutes import NodeRoutes
from bgpd.observe.samples.policy import Policy
from bgpd.observe.samples.services import Services
from bgpd.observe.samples.sources import Source
from bgpd.observe.samples.virtualservers import Server, VirtualServers
from tests.system.observability import ALERTS, SOURCE, dashboard, panels, variables

ALERTS_TEST = Path(__file__).with_name("alerts_test.yaml")

FAMILY = "ipv4-unicast"
EVERYTHING = Snapshot(
    peers=(Peer("tor-a", "11.11.255.1", True, 1, 1.0, {FAMILY: 1}, {FAMILY: 1}, 0, {FAMILY: True}, True),),
    sources=(Source("manifests", True, 0, 1.0),),
    objects={"routes": Objects()},
    config_loaded_at=1.0,
    bfd_connected=True,
    masquerade=Masquerade(
        document_synced=True,
        document_faults=0,
        entries={"ipv4": 1},
        active={"ipv4": True},
        in_force={"masq_rule": True},
        findings=lambda: 0,
        flows=lambda: {"listed": 1},
    ),
    policy=Policy(
        endpoints={"enforced": 1},
        policies=1,
        blocked={"policy_peers": 0},
        in_force={"policy_maps": True},
        events_lost=lambda: 0,
        capacity={"policy_peers": 1},
        entries=lambda: {"policy_peers": 1},
        packets=lambda: {"allowed": 1},
    ),
    virtual_servers=VirtualServers({"shop/web": Server({"up": 1}, served=True, last_resort=False)}, 0, in_force=True),
    host_routes=HostRoutes({"ipv4": 1}, {"conflict": 1}),
    node_routes=NodeRoutes({("ipv4", "vxlan"): 3}, held=0, unreachable=0, in_force=True),
    services=Services({"announced": 1}),
    cni=Cni(lambda: 1, lambda: 0, lambda: True),
)
PROMETHEUS_OWN = frozenset({"up"})
# Labels that a target gets from Prometheus, or a bucket from the histogram.
LABELS_OF_TARGETS = frozenset({"job", "instance", "alertname", "le"})
SEVERITIES = frozenset({"critical", "warning", "info"})

GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"\{([^{}]*)\}")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
RANGE = re.compile(r"\[[^\]]*\]")
NAME = re.compile(r"(?<![\w.$:])[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()")
OPERATORS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})
AGGREGATIONS = ("sum", "min", "max", "count", "avg", "group", "topk")


# --- what there is ------------------------------------------------------------------------------------------------


@cache
def samples() -> dict[str, set[str]]:
    """Every sample that a daemon can show, by name: a histogram's parts, a counter's `_total`, and their labels."""
    metrics = Metrics(("routes",))
    metrics.publish(EVERYTHING)
    metrics.begin_requests(["ADD"])
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def base_of(name: str) -> str:
    """The metric that a sample belongs to; a histogram used by one of its parts is used."""
    return re.sub(r"_(bucket|count|sum)$", "", name)


@cache
def groups() -> list[dict[str, Any]]:
    return list(yaml.safe_load(ALERTS.read_text())["groups"])


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> dict[str, str]:
    """The expression behind each name that a rule records."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


@cache
def scenarios() -> list[dict[str, Any]]:
    return list(yaml.safe_load(ALERTS_TEST.read_text())["tests"])


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Where, and the expression; of a variable's query the selector alone."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']!r} {target['refId']}", target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        yield f"annotation {annotation['name']!r}", annotation["expr"]
    for name, selector, label in variables():
        yield f"variable {name!r}", f"count by ({label}) ({selector})"


def expressions() -> list[tuple[str, str]]:
    """Every PromQL expression in both files, and where it stands."""
    from_rules = [(f"rule {rule.get('alert') or rule['record']}", rule["expr"]) for rule in rules()]
    return [*from_rules, *dashboard_expressions()]


# --- what is used -------------------------------------------------------------------------------------------------


def names_in(expression: str) -> set[str]:
    """The metrics in a PromQL expression: what is left when strings, labels, ranges and functions are gone."""
    rest = STRING.sub('""', expression)
    for pattern in (SELECTOR, RANGE, GROUPING):
        rest = pattern.sub(" ", rest)
    rest = re.sub(r"\b\d[\w.]*", " ", rest)  # 100e6, 5m
    return {name for name in NAME.findall(rest) if name.lower() not in {*OPERATORS, *AGGREGATIONS}}


def labels_in(expression: str) -> set[str]:
    """The labels that an expression selects or groups by."""
    rest = STRING.sub('""', expression)
    matchers = itertools.chain.from_iterable(inside.split(",") for inside in SELECTOR.findall(rest))
    grouped = itertools.chain.from_iterable(inside.split(",") for _, inside in GROUPING.findall(rest))
    found = {re.split(r"[=!]", matcher)[0].strip() for matcher in matchers} | {label.strip() for label in grouped}
    return found - {""}


def labels_of(name: str) -> set[str]:
    """The labels of a metric, or those that a recording keeps of the metrics it is made of."""
    behind = recorded().get(name)
    if behind is None:
        return samples().get(name, set())
    dropped = {
        label.strip() for word, inside in GROUPING.findall(behind) if word == "without" for label in inside.split(",")
    }
    return {label for source in names_in(behind) for label in labels_of(source)} - dropped


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum without (peer) (rate(a_total{x="b_c"}[5m])) / 100e6', {"a_total"}),
        ("a == 0 and on (job) group:b:max == 1 unless c offset 5m", {"a", "group:b:max", "c"}),
        ("histogram_quantile(0.99, sum by (le) (rate(a_bucket[$__rate_interval]))) or vector(0)", {"a_bucket"}),
        ("sum by (x) (a) + on (x) group_right () 0 * max by (x) (b) > 1e3", {"a", "b"}),
        ("sum(a) by (x) and -b{}", {"a", "b"}),
    ],
)
def test_names_in(expression: str, names: set[str]) -> None:
    """The tests below see each metric of an expression, and nothing else."""
    assert names_in(expression) == names


# --- Prometheus' own judgement ------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> str:
    """The output of promtool, which must find no fault. Skips, by name, where it is not installed."""
    if shutil.which("promtool") is None:
        pytest.skip("not installed: promtool")
    out = subprocess.PIPE
    done = subprocess.run(("promtool", *arguments), stdout=out, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_prometheus_accepts_the_rules() -> None:
    """promtool finds no fault in the alerting and recording rules, and reads all of them."""
    assert f"{len(rules())} rules found" in promtool("check", "rules", ALERTS)


def test_alerts_fire_when_they_should() -> None:
    """Each scenario of alerts_test.yaml raises the alerts that it names, and no other."""
    assert "SUCCESS" in promtool("test", "rules", ALERTS_TEST)


def test_prometheus_accepts_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    """promtool parses each expression, as a recording rule, with Grafana's variables filled in."""
    written = []
    for number, (_, expression) in enumerate(dashboard_expressions()):
        filled = expression.replace("$__rate_interval", "1m").replace("$__range", "1h")
        written.append({"record": f"dashboard:{number}", "expr": filled})
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": written}]}))
    promtool("check", "rules", file)


# --- metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_only_metrics_that_exist(where: str, expression: str) -> None:
    """Every name in an expression is one that a daemon shows, that a rule records, or Prometheus' own."""
    names = names_in(expression)
    assert names, f"{where}: no metric in {expression!r}"
    assert names <= samples().keys() | recorded().keys() | PROMETHEUS_OWN, where


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_only_labels_that_exist(where: str, expression: str) -> None:
    """Every label that an expression selects or groups by is one that some metric in it has."""
    there = {label for name in names_in(expression) for label in labels_of(name)}
    assert labels_in(expression) <= there | LABELS_OF_TARGETS, where


def test_every_metric_is_used() -> None:
    """A metric that neither an alert nor the dashboard reads is one that nobody looks at."""
    used = {base_of(name) for _, expression in expressions() for name in names_in(expression)}
    own = {base_of(name) for name in samples() if name.startswith("bgpd_")}
    assert own <= used, f"in no expression: {sorted(own - used)}"


def test_every_recording_is_used() -> None:
    """A rule that is recorded and not read costs storage for nothing."""
    used = {name for _, expression in expressions() for name in names_in(expression)}
    assert recorded().keys() <= used


# --- alerts -------------------------------------------------------------------------------------------------------


def test_alert_names_are_unique() -> None:
    """Two alerts of one name would silence and inhibit each other."""
    names = [alert["alert"] for alert in alerts()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_to_type_next(alert: dict[str, Any]) -> None:
    """Severity, summary and description are there, and the description holds a command that exists."""
    assert alert["labels"]["severity"] in SEVERITIES
    assert set(alert["annotations"]) == {"summary", "description"}
    description = alert["annotations"]["description"]
    commands = re.findall(r"`([^`]+)`", description)
    ours = [command.split()[1] for command in commands if command.startswith("bgpd ")]
    assert set(ours) <= COMMANDS.keys()
    units = [unit for command in commands for unit in units_in(command)]
    assert all((SOURCE / f"systemd/{unit}.service").is_file() for unit in units)
    assert ours or units, f"no command in: {description}"


def units_in(command: str) -> list[str]:
    """The units in a call of journalctl or systemctl."""
    if command.startswith("journalctl"):
        return re.findall(r"-u (\S+)", command)
    if command.startswith("systemctl"):
        return [word for word in command.split() if word.startswith("bgpd")]
    return []


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_speaks_of_labels_that_it_has(alert: dict[str, Any]) -> None:
    """A label that the expression does not leave would be an empty place in the text."""
    text = " ".join(alert["annotations"].values())
    spoken = set(re.findall(r"\$labels\.(\w+)", text))
    there = {label for name in names_in(alert["expr"]) for label in labels_of(name)}
    assert spoken <= there | LABELS_OF_TARGETS
    if by := re.findall(r"\bby \(([^)]*)\)", alert["expr"]):
        assert spoken <= {label.strip() for label in by[0].split(",")}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_is_tested_both_ways(alert: dict[str, Any]) -> None:
    """In one scenario it is silent at first, or in the end, and fires in between."""
    firing: set[int] = set()
    silent: set[int] = set()
    for number, scenario in enumerate(scenarios()):
        for question in scenario["promql_expr_test"]:
            expected = " ".join(sample["labels"] for sample in question["exp_samples"])
            (firing if f'"{alert["alert"]}"' in expected else silent).add(number)
    assert firing & silent


# --- dashboard ----------------------------------------------------------------------------------------------------


def test_panels_are_told_apart() -> None:
    """Ids are unique, and so are titles among the panels."""
    ids = [panel["id"] for panel in panels()]
    titles = [panel["title"] for panel in panels() if panel["type"] != "row"]
    assert len(ids) == len(set(ids))
    assert len(titles) == len(set(titles))


def test_panels_do_not_overlap() -> None:
    """Every panel lies within the 24 columns and on no other."""
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard()["panels"]]
    for title, at in places:
        assert at["x"] >= 0 and at["w"] > 0 and at["h"] > 0 and at["x"] + at["w"] <= 24, title
    for (one, a), (other, b) in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{one} and {other}"


def test_panels_are_explained() -> None:
    """Every panel has a description and a unit, and each of its queries a letter of its own."""
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)), panel["title"]


def test_the_dashboard_belongs_to_no_installation() -> None:
    """It has no number of its own, and every data source is the one that the reader chooses."""
    board = dashboard()
    assert board["id"] is None
    assert not {"__inputs", "gnetId"} & board.keys()
    holders = (*panels(), *board["annotations"]["list"], *board["templating"]["list"])
    holders += tuple(target for panel in panels() for target in panel.get("targets", ()))
    used = {holder["datasource"]["uid"] for holder in holders if "datasource" in holder}
    assert used == {"${datasource}"}
    assert {"datasource", "job", "instance"} <= {variable["name"] for variable in board["templating"]["list"]}


def test_variables_are_defined() -> None:
    """Every variable in an expression is one of the dashboard's or Grafana's own."""
    defined = {variable["name"] for variable in dashboard()["templating"]["list"]} | {"__rate_interval", "__range"}
    for where, expression in dashboard_expressions():
        assert set(re.findall(r"\$\{?(\w+)", expression)) <= defined, where


# Grafana reads these, and its published schema does not have them: the fields of an annotation's own data
# source, and what the variable editor shows.
BEYOND_THE_SCHEMA = re.compile(
    r"/id|/annotations/list/\d+/(titleFormat|textFormat|step)|/templating/list/\d+/definition"
)


def lost(written: object, read: object, at: str = "") -> Iterator[str]:
    """Where something that is written was not understood, as a path into the file."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from lost(value, read[key], f"{at}/{key}") if key in read else [f"{at}/{key}"]
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, pair in enumerate(zip(written, read, strict=True)):
            yield from lost(*pair, f"{at}/{number}")
    elif written != read:
        yield at


def test_grafana_knows_every_field() -> None:
    """Read into Grafana's own types and written again, nothing is missing: no option is misspelt or misplaced."""
    register_default_plugins()
    assert {panel["type"] for panel in panels() if panelcfg_config(panel["type"]) is None} == {"row"}
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))
    assert [path for path in lost(dashboard(), again) if not BEYOND_THE_SCHEMA.fullmatch(path)] == []
