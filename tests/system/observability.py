"""The files that an operator gives to Prometheus and Grafana, read once for every test that looks into them.

Decides where they are and what counts as a panel. It does not judge them: `test_observability_files` does by
reading, `tests/fabric/test_prometheus` by running.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2]
ALERTS = SOURCE / "config/alerts.yaml"
DASHBOARD = SOURCE / "config/dashboard.json"


@cache
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    """Every panel, those inside a collapsed row too."""
    return [inner for panel in dashboard()["panels"] for inner in (panel, *panel.get("panels", ()))]


def variables() -> list[tuple[str, str, str]]:
    """Name, selector and label of every variable whose values Grafana asks Prometheus for, in its order."""
    found = []
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), *(\w+)\)", variable["query"]["query"])
            assert query, f"variable {variable['name']}: not label_values(SELECTOR, LABEL)"
            found.append((str(variable["name"]), query[1], query[2]))
    return found
