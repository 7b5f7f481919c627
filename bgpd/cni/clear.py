"""Takes the plugin and its conflist off a node where bgpd runs no more. A shell.

Some runtimes delete a pod with the chain that it was attached with, as they remember it: CRI-O from libcni's cache,
Multus from its own. They run every plugin of it, and a pod whose plugin is not found stays for ever. Without a daemon
the plugin itself is of no use there: it would queue each DEL for one that never comes. So while such a pod is left, a
script stands in the plugin's place that lets pods go (programs/uninstalled.sh).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bgpd.cni.cache import RESULTS, configuration
from bgpd.cni.protocol import PLUGIN_TYPE
from bgpd.cni.publish import PROGRAMS, Places, remove, replace
from bgpd.config.files import UnreadableError, read_limited
from bgpd.model.attachment import OWN_FILE

REMEMBERED = (*RESULTS, "multus")  # below the directory of caches; the last is Multus' own
_LONGEST = 4 << 20
_STAND_IN = PROGRAMS / "uninstalled.sh"


@dataclass(frozen=True, slots=True)
class Cleared:
    """`removed` is what is gone. `needed_by` are the runtime's files for whose sake `plugin` still stands for us."""

    plugin: Path
    removed: tuple[Path, ...]
    needed_by: tuple[Path, ...]


def clear(places: Places, caches: Path) -> Cleared:
    """Once more looks again who still needs the plugin. OSError: it cannot be done."""
    conflist, plugin = places.configurations / OWN_FILE, places.programs / PLUGIN_TYPE
    removed = [conflist] if conflist.exists() else []
    remove(places.configurations)  # first: from now on no pod is attached with us
    if not plugin.exists():
        return Cleared(plugin, tuple(removed), ())
    needed_by = tuple(_needed_by(caches))
    if needed_by:
        replace(plugin, _STAND_IN.read_bytes(), 0o755)
    else:
        plugin.unlink()
        removed.append(plugin)
    return Cleared(plugin, tuple(removed), needed_by)


def _needed_by(caches: Path) -> Iterator[Path]:
    for directory in REMEMBERED:
        try:
            files = sorted(each for each in (caches / directory).iterdir() if each.is_file())
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (file for file in files if _names_us(file))


def _names_us(file: Path) -> bool:
    """In its text, or in the configuration that libcni keeps there. One that cannot be read may."""
    try:
        data = read_limited(file, _LONGEST).data
    except UnreadableError:
        return file.exists()
    return PLUGIN_TYPE.encode() in data + configuration(data)
