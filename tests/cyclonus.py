"""230 cases of NetworkPolicy with the truth that others worked out: mattfenwick/cyclonus (MIT), as data.

It is not part of the project: it is looked for beside the repository and where BGPD_CONFORMANCE_DATA points.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"
FILE = Path(os.environ.get("BGPD_CONFORMANCE_DATA", SHARED)) / "cyclonus-cases.json.gz"
ALLOWED = "a"
STEPS, ROWS = 256, 109_956
CONTAINER_PORTS = [
    (f"serve-{port}-{protocol.lower()}", protocol, port) for port in (80, 81) for protocol in ("SCTP", "TCP", "UDP")
]
"""Those of every pod: name, protocol and number."""

needed = pytest.mark.skipif(
    not FILE.exists(), reason=f"{FILE} is not there; BGPD_CONFORMANCE_DATA can say where it is"
)


class Row(NamedTuple):
    client: str
    server: str
    protocol: str
    port: int
    port_name: str
    ingress: str
    egress: str
    combined: str


def cases() -> list[dict[str, Any]]:
    return list(json.loads(gzip.decompress(FILE.read_bytes()))["cases"])


def rows(step: dict[str, Any]) -> Iterator[Row]:
    """What is expected, a pod to itself left out."""
    return (row for row in (Row(*each) for each in step["expected"]) if row.client != row.server)
