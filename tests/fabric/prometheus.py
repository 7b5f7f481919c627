"""A Prometheus server in a namespace of the lab, which scrapes that node's daemon and evaluates the alerting rules.

Decides how often it scrapes and how it is asked: every second, and by the HTTP API that Grafana uses. What is
asked, and what the answer should be, is the tests' business.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import time
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

import yaml

from tests.fabric.netns import Namespace
from tests.fabric.process import poll

HOST: Final = "127.0.0.1"
PORT: Final = 9090
JOB: Final = "bgpd"  # the name that config/alerts.yaml assumes
RANGE_S: Final = 60  # of a graph; what happened before the test is of no interest


class Prometheus:
    """Not started until `start`; ends with the lab."""

    def __init__(self, namespace: Namespace, rules: Path, target: str) -> None:
        self._namespace = namespace
        self._directory = namespace.lab.directory / f"{namespace.name}-prometheus"
        self._directory.mkdir()
        self._configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [target]}]}],
        }

    def start(self) -> Self:
        file = self._directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(self._configuration))
        options = [
            f"--config.file={file}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address={HOST}:{PORT}",
        ]
        process = self._namespace.popen(["prometheus", *options])
        poll(self._is_ready, 20, process.log_tail)
        return self

    def instant(self, expression: str) -> list[float]:
        """The values of an expression now, one for each series; not a number is no value."""
        found = self.ask("query", query=expression)["result"]
        return [value for value in (float(series["value"][1]) for series in found) if not math.isnan(value)]

    def graph(self, expression: str) -> list[float]:
        """The last value of each series of an expression over the last minute."""
        now = time.time()
        found = self.ask("query_range", query=expression, start=now - RANGE_S, end=now, step=1)["result"]
        drawn = [[float(value) for _, value in series["values"]] for series in found]
        return [numbers[-1] for series in drawn if (numbers := [it for it in series if not math.isnan(it)])]

    def label_values(self, selector: str, label: str) -> list[str]:
        return list(self.ask(f"label/{label}/values", **{"match[]": selector}))

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> set[str]:
        """The names of those that fire or are about to."""
        return {str(alert["labels"]["alertname"]) for alert in self.ask("alerts")["alerts"]}

    def ask(self, what: str, **query: Any) -> Any:
        """The data of an answer of /api/v1. Raises with Prometheus' own words when it finds fault."""
        status, body = self._get(f"/api/v1/{what}?{urlencode(query)}")
        answer = json.loads(body)
        assert status == 200 and answer["status"] == "success", f"{what} {query}: {answer.get('error', body)}"
        return answer["data"]

    def _is_ready(self) -> bool:
        try:
            return self._get("/-/ready")[0] == 200
        except OSError:
            return False

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, PORT)
        with self._namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as channel:
            channel.settimeout(10)
            channel.connect((HOST, PORT))
            connection.sock = channel
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
