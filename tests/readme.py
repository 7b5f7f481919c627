"""Writes the README's table of metrics from the registry, so that it cannot lie: `python -m tests.readme`.

Decides only where a generated table goes in the README (between its two markers) and what a metric's row is.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client.core import Metric

from bgpd.observe.metrics import Metrics

README = Path(__file__).parents[1] / "README.md"


def between(text: str, name: str) -> str:
    """What stands between the markers of this name."""
    return text.split(f"<!-- {name}:begin -->\n", 1)[1].split(f"<!-- {name}:end -->", 1)[0]


def replaced(text: str, name: str, table: str) -> str:
    """`text` with `table` between the markers of this name."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, rest = text.split(begin, 1)
    return head + begin + table + end + rest.split(end, 1)[1]


def labels_of(family: Metric) -> set[str]:
    """What a query can select by. A family without a sample knows its labels, one with samples shows them."""
    shown = {label for sample in family.samples for label in sample.labels}
    return (shown | set(getattr(family, "_labelnames", ()))) - {"le"}


def metrics_table() -> str:
    """A row per metric of ours: its name as it is scraped, its type, its labels, its meaning."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in sorted(Metrics(("routes",)).registry.collect(), key=lambda family: family.name):
        if family.name.startswith("bgpd_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in sorted(labels_of(family)))
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(), "metrics", metrics_table()))
