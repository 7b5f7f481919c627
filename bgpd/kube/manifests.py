"""Keeps stores equal to the Kubernetes objects in a directory of YAML and JSON files.

Decides which files count, which of two definitions of one object wins, and what stays when a file cannot be
read. What is in a file is `objects`' business, and what an object means is `parse`'s.

A file that does not parse counts with what was last read of it, an object of the wrong shape with its own
last good form. Nobody can tell a file that is being written from one that was meant to become shorter, so an
object is let go only when no file has lost one for `settle_s`; what a file adds counts at once. So what goes together
is gone in one step, however many files it was in.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bgpd.config.document import MAX_BYTES
from bgpd.kube.feed import Feed, SourceState, SourceStatus, entered
from bgpd.kube.files import Mark, mark_of, read_regular
from bgpd.kube.objects import Found, ObjectKey, Reading, read_objects
from bgpd.model.fault import Fault
from bgpd.runtime.inotify import DirectoryWatch
from bgpd.runtime.store import Store

SUFFIXES = (".yaml", ".yml", ".json")
SETTLE_S = 0.3  # an editor truncates and writes, or moves the old file away first: a few milliseconds
RESCAN_S = 10.0  # finds what inotify cannot tell: files linked from elsewhere, network file systems


class ManifestSource:
    """Feeds every kind of `feeds` from `directory`, which need not exist yet."""

    def __init__(
        self,
        directory: Path,
        feeds: Sequence[Feed[Any]],
        *,
        settle_s: float = SETTLE_S,
        rescan_s: float = RESCAN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._feeds, self._clock = directory, tuple(feeds), clock
        self._settle_s, self._rescan_s = settle_s, rescan_s
        self._files: dict[str, _File] = {}
        self.status = Store(SourceStatus(SourceState.STARTING, clock()), clock)

    async def run(self) -> None:
        """Never returns; cancel it. What is published stays."""
        async with DirectoryWatch([self._directory]) as watch:
            while True:
                wait_s = self.read()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await watch.changed()

    def read(self) -> float:
        """Looks at the directory once and publishes; returns in how many seconds to look at the latest."""
        now = self._clock()
        try:
            marks = self._marks()
        except OSError as error:
            self._unreachable(error, now)
            return self._rescan_s
        for name in sorted(marks.keys() | self._files.keys()):
            self._read_file(name, marks.get(name), now)
        since = max((file.since for file in self._files.values() if file.leaving), default=None)
        if since is not None and now >= since + self._settle_s:
            self._let_go()
            since = None
        merged, faults = _merged(self._files)
        incomplete = any(file.never_whole for file in self._files.values())
        for feed in self._feeds:
            mapping = {
                key.key: found.value
                for key, found in merged.items()
                if key.kind == feed.kind.name and feed.takes(key.key, found.labels)
            }
            feed.store.publish(mapping, synced=feed.store.newest.synced or not incomplete, at=now)
        self._report(tuple(faults), now)
        return self._rescan_s if since is None else max(0.0, since + self._settle_s - now)

    def _marks(self) -> dict[str, Mark | None]:
        return {path.name: mark_of(path) for path in self._directory.iterdir() if _counts(path)}

    def _read_file(self, name: str, mark: Mark | None, now: float) -> None:
        file = self._files.get(name)
        if file is None or file.mark != mark or file.is_unreadable:
            reading = self._reading(name)
            if file is None or file.mark != mark or file.reading != reading:
                file = _next(file, mark, reading, now)
        self._files[name] = file
        if file.reading is None and not file.leaving:
            del self._files[name]

    def _let_go(self) -> None:
        settled = {name: replace(file, leaving=()) for name, file in self._files.items()}
        self._files = {name: file for name, file in settled.items() if file.reading is not None}

    def _reading(self, name: str) -> Reading | None:
        """None: there is no such file."""
        path = self._directory / name
        try:
            data = read_regular(path, MAX_BYTES + 1)
        except FileNotFoundError:
            if not path.is_symlink():
                return None
            problem = "cannot be read: the link leads nowhere"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        else:
            return read_objects(data, str(path), self._feeds)
        return Reading(faults=(Fault(str(path), 0, 0, "", problem),), is_partial=True, is_unreadable=True)

    # --- how it is doing ----------------------------------------------------------------------------------

    def _report(self, faults: tuple[Fault, ...], now: float) -> None:
        whole = all(feed.store.newest.synced for feed in self._feeds)
        current = self.status.newest.value
        state = SourceState.SYNCED if whole else SourceState.STARTING
        error = current.last_error if whole or not faults else str(faults[0])
        lacks = "; ".join(filter(None, (feed.emptiness for feed in self._feeds)))
        warning = f"{self._directory}: {lacks}" if lacks else ""
        current = replace(current, last_error=error, faults=faults, warning=warning)
        self.status.publish(entered(current, state, now))

    def _unreachable(self, error: OSError, now: float) -> None:
        """The directory is missing, which says nothing about what was in it: unlike an empty one."""
        current = self.status.newest.value
        if current.state is SourceState.SYNCED:
            current = replace(current, reconnects=current.reconnects + 1)
            current = entered(current, SourceState.RETRYING, now)
        text = f"{self._directory} cannot be read: {error.strerror}; is source.manifests right?"
        self.status.publish(replace(current, last_error=text))


@dataclass(frozen=True, slots=True)
class _File:
    """What counts of one file: `standing`, and for a while after `since` what was in it before, `leaving`.

    `reading` None: the file is gone. `never_whole`: something in it could not be read so far.
    """

    mark: Mark | None
    reading: Reading | None
    standing: tuple[Found, ...]
    leaving: tuple[Found, ...]
    since: float
    never_whole: bool

    @property
    def is_unreadable(self) -> bool:
        return self.reading is not None and self.reading.is_unreadable


def _next(before: _File | None, mark: Mark | None, reading: Reading | None, now: float) -> _File:
    """The file as it is now, keeping of `before` what was not meant to go, or may not have been."""
    content = reading or Reading()
    defined = {found.key for found in content.found}
    earlier = (*before.standing, *before.leaving) if before else ()
    missing = [found for found in earlier if found.key not in defined]
    kept = tuple(found for found in missing if content.is_partial or found.key in content.broken)
    leaving = () if content.is_partial else tuple(f for f in missing if f.key not in content.broken)
    unknown = content.broken - defined - {found.key for found in kept}
    never_whole = bool(unknown) or (content.is_partial and (before is None or before.never_whole))
    return _File(mark, reading, (*content.found, *kept), leaving, now, never_whole)


def _merged(files: dict[str, _File]) -> tuple[dict[ObjectKey, Found], list[Fault]]:
    """One definition per object, the first by file name, then by place; the others are faults."""
    merged: dict[ObjectKey, Found] = {}
    faults: list[Fault] = []
    ordered = [files[name] for name in sorted(files)]
    for file in ordered:
        faults += file.reading.faults if file.reading else ()
        for found in file.standing:
            first = merged.setdefault(found.key, found)
            if first is not found:
                text = f"{found.key} is defined already at {first.place}; that one counts, remove one"
                faults.append(Fault(found.file, found.line, found.column, "metadata.name", text))
    for file in ordered:
        for found in file.leaving:
            merged.setdefault(found.key, found)  # an object that moved to another file counts as it is there
    return merged, faults


def _counts(path: Path) -> bool:
    """Editors' files and kubelet's links begin with a dot, or do not end like this."""
    return path.suffix in SUFFIXES and not path.name.startswith((".", "#"))
