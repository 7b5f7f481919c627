"""Keeps the newest good ip-masq-agent document in a store, from a file or from a ConfigMap.

Decides when what is there counts, and what stays when it is no document: the last good one, whole. Nothing of a bad
document counts, not even its flags. What a document means is `parse`'s.

Nobody can tell a file that is being written from one that is complete, and half a list is one too: `10.0.0.0/1` may
become `10.0.0.0/16` with the next byte. So a file counts once it has been as it is for `SETTLE_S`, its absence too;
one that never rests is believed every `PATIENCE_S`. A ConfigMap arrives whole, and only its absence has to settle.

The last good document is the one in the store. A source that is made anew, because it shall read another place or
read by other rules, is given the same store and carries on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from bgpd.config.files import MissingError, UnreadableError, read_limited
from bgpd.masq.parse import LIMITS, document_key, key_problem, parse
from bgpd.model.configmap import ConfigMap
from bgpd.model.fault import Fault, FaultsError
from bgpd.model.masq import MasqDocument, Reading, Rules
from bgpd.runtime.inotify import DirectoryWatch
from bgpd.runtime.store import Store

SETTLE_S = 0.2  # an editor truncates and writes, or moves the old file away first: a few milliseconds
PATIENCE_S = 2.0
RESCAN_S = 10.0  # finds what inotify cannot tell: files linked from elsewhere, network file systems

_Mark: TypeAlias = tuple[str, bytes | None, str]


@dataclass(frozen=True, slots=True)
class _Content:
    """What is there. `data` None: nothing, for the reason in `problem`, or because there is no document at all."""

    origin: str
    data: bytes | None
    problem: str = ""

    @property
    def is_absent(self) -> bool:
        return not self.data and not self.problem

    @property
    def mark(self) -> _Mark:
        """What tells it from any other, in a few bytes."""
        return self.origin, None if self.data is None else hashlib.sha256(self.data).digest(), self.problem


@dataclass(frozen=True, slots=True)
class _Found:
    """What a look has found, without its bytes. `reading` is what it is by itself."""

    mark: _Mark
    is_absent: bool
    reading: Reading


class FileSource:
    """Feeds `store` from `path`: the file, or the directory a ConfigMap is mounted at. Neither need exist yet."""

    def __init__(
        self,
        path: Path,
        rules: Rules,
        store: Store[Reading],
        *,
        settle_s: float = SETTLE_S,
        patience_s: float = PATIENCE_S,
        rescan_s: float = RESCAN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._rules, self._store, self._clock = path, rules, store, clock
        self._settle_s, self._patience_s, self._rescan_s = settle_s, patience_s, rescan_s
        self._published: _Mark | None = None
        self._seen: _Found | None = None
        self._seen_at = self._restless_at = clock()

    async def run(self) -> None:
        """Never returns; cancel it. What is published stays."""
        while True:
            directories = self._directories()
            async with DirectoryWatch(directories) as watch:
                while directories == self._directories():
                    # 16,000 entries take a quarter of a second, in which everything else wants to be looked after
                    wait_s = self._take(await asyncio.to_thread(self._find))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await watch.changed()

    def read(self) -> float:
        """Looks once and publishes what counts; returns in how many seconds to look again at the latest."""
        return self._take(self._find())

    def _directories(self) -> tuple[Path, ...]:
        """What to watch: a mounted ConfigMap changes in its own directory, any file in its parent."""
        return (self._path.parent, self._path) if _is_directory(self._path) else (self._path.parent,)

    def _find(self) -> _Found:
        """Looks; what is as it was is not read again."""
        content = self._look()
        mark = content.mark
        if self._seen is not None and self._seen.mark == mark:
            return self._seen
        return _Found(mark, content.is_absent, _reading(content, self._rules, self._store.newest.value.document))

    def _look(self) -> _Content:
        path = self._path
        try:
            if _is_directory(path):
                names = [each.name for each in path.iterdir() if not each.name.startswith(".")]
                if not names:
                    return _Content(str(path), None)
                key = document_key(names)
                if key is None:
                    return _Content(str(path), None, key_problem(names))
                path = path / key
            return _Content(str(path), read_limited(path, LIMITS.bytes).data)
        except MissingError:
            return _Content(str(path), None)
        except UnreadableError as error:
            return _Content(str(path), None, str(error))
        except OSError as error:
            return _Content(str(path), None, f"the directory cannot be read: {error.strerror}")

    def _take(self, found: _Found) -> float:
        now = self._clock()
        if self._seen is None or self._seen.mark == self._published:
            self._restless_at = now
        if found is not self._seen:
            self._seen, self._seen_at = found, now
        if found.mark == self._published:
            return self._rescan_s
        is_first = self._published is None and found.reading.document is not None and not found.is_absent
        rest_s = min(self._seen_at + self._settle_s, self._restless_at + self._patience_s) - now
        if rest_s > 0 and not is_first:
            return rest_s
        _publish(self._store, found.reading, self._seen_at)
        self._published = found.mark
        return self._rescan_s


class ConfigMapSource:
    """Feeds `store` from the ConfigMap `name` (namespace/name) in `config_maps`, which somebody else fills."""

    def __init__(
        self,
        name: str,
        rules: Rules,
        config_maps: Store[Mapping[str, ConfigMap]],
        store: Store[Reading],
        *,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._name, self._rules, self._config_maps, self._store = name, rules, config_maps, store
        self._settle_s = settle_s

    def read(self) -> None:
        """Looks once and publishes what there is."""
        newest = self._config_maps.newest
        _publish(self._store, self._reading(self._content(newest.value.get(self._name))), newest.at)

    async def run(self) -> None:
        """Never returns; cancel it. What is published stays."""
        while True:
            newest = self._config_maps.newest
            found = self._content(newest.value.get(self._name))
            if not found.is_absent or (newest.synced and not await self._changes_again()):
                _publish(self._store, await asyncio.to_thread(self._reading, found), newest.at)
            await self._config_maps.newer_than(newest.revision)

    async def _changes_again(self) -> bool:
        """An object that is deleted and made anew, as `kubectl replace --force` does it, was never gone."""
        try:
            async with asyncio.timeout(self._settle_s):
                await self._config_maps.newer_than(self._config_maps.newest.revision)
        except TimeoutError:
            return False
        return True

    def _reading(self, found: _Content) -> Reading:
        return _reading(found, self._rules, self._store.newest.value.document)

    def _content(self, config_map: ConfigMap | None) -> _Content:
        origin = f"ConfigMap {self._name}"
        if config_map is None:
            return _Content(origin, None)
        key = document_key(config_map.data)
        if key is None:
            return _Content(origin, None, key_problem(config_map.data))
        return _Content(f"{origin} data.{key}", config_map.data[key].encode("utf-8", "surrogatepass"))


def _reading(found: _Content, rules: Rules, last: MasqDocument | None) -> Reading:
    """What `found` is by itself; its document is None when it is none. `last` is the last good one."""
    if found.problem:
        return Reading(faults=(Fault(found.origin, 0, 0, "", found.problem),))
    try:
        document = parse(found.data, found.origin, rules)
    except FaultsError as error:
        return Reading(faults=error.faults)
    return Reading(_sharing(document, last) if last else document)


def _sharing(document: MasqDocument, last: MasqDocument) -> MasqDocument:
    """The same, with the very keys of `last` where they are equal: 16,000 take a megabyte, and are soon compared."""
    known = {key: key for key in last.keys}
    return replace(document, keys=tuple(known.get(key, key) for key in document.keys))


def _publish(store: Store[Reading], reading: Reading, at: float) -> None:
    """A bad document leaves the last good one in place, with its faults. Before a good one, nothing is synced."""
    newest = store.newest
    if reading.document is None:
        reading = Reading(newest.value.document, reading.faults)
        store.publish(reading, synced=newest.synced, at=at)
    else:
        store.publish(reading, at=at)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
