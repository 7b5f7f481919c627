"""Looks for a flannel on this node: routes are its business then. A shell, and looking only.

Its devices are found with all others (`observed`). Here: subnet.env, which flanneld leaves when it runs and which
lasts until the next boot, and a conflist whose pods it gives addresses to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bgpd.model.attachment import READ_BY_RUNTIMES


def signs(run: Path, cni_conf: Path) -> list[str]:
    """In words, none where there is no flannel. What cannot be read is no sign."""
    environment = run / "subnet.env"
    found = [str(environment)] if environment.exists() else []
    return found + [f"type flannel in {file}" for file in _files(cni_conf) if _names_flannel(file)]


def _files(directory: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in directory.iterdir() if path.suffix in READ_BY_RUNTIMES)
    except OSError:
        return


def _names_flannel(file: Path) -> bool:
    try:
        config: Any = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(config, dict):
        return False
    plugins = config.get("plugins", [config])
    return isinstance(plugins, list) and any(
        isinstance(plugin, dict) and plugin.get("type") == "flannel" for plugin in plugins
    )
