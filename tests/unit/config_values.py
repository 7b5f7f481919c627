"""Configurations as plain values, for tests to change one thing in."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[2] / "config" / "bgpd.yaml"
PEER = ("bgp", "peers", 0)

SMALLEST: dict[str, Any] = {
    "source": {"manifests": "/etc/bgpd/manifests"},
    "bgp": {
        "localASN": 64512,
        "peers": [{"name": "tor-a", "peerAddress": "11.11.255.1", "peerASN": 64512}],
    },
}


def changed(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """The smallest configuration with one value put in; a list grows by one at its end."""
    root = deepcopy(SMALLEST)
    here: Any = root
    for step in path[:-1]:
        here = here.setdefault(step, {}) if isinstance(step, str) else here[step]
    if isinstance(path[-1], int):
        here.append(value)
    else:
        here[path[-1]] = value
    return root


def dump(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False)
