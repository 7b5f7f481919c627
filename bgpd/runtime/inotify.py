"""Says that something in a few directories changed; never what. The reader then reads the directory anew.

Made for directories of configuration, where an edit is seldom one event: editors write a temporary file
and rename it, kubelet swaps the `..data` link of a mounted ConfigMap, `kubectl cp` creates and then fills.
A burst therefore wakes the reader once, when it has been quiet for a moment, yet never later than a bound.

inotify(7) follows an inode and not a path, so a directory that is created late, deleted, renamed, mounted
over or reached through a link that now points elsewhere would go unnoticed. A look at each path once a
second finds those. A file that is a link out of its directory is not followed: watch that place as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from inotify_simple import INotify, flags

QUIET_S = 0.03  # a burst is over when nothing came for so long; an editor's write and rename take under 5 ms
LONGEST_BURST_S = 0.2  # a directory that is written to without pause is still read five times a second

_MASK = (
    flags.CREATE
    | flags.CLOSE_WRITE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.DELETE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
_PATH_MOVED = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED


@dataclass(frozen=True, slots=True)
class _Armed:
    """`watch` is None when the kernel refused one; the reader is then woken at every look instead."""

    identity: tuple[int, int]
    watch: int | None


class DirectoryWatch:
    """Watches from the moment it is made, so that the order "watch, read, wait" misses nothing.

    Make it on a running event loop, and let one task wait on it. Directories need not exist yet. Where the
    kernel has no watches left (`fs.inotify.max_user_instances` is 128 by default, and a busy node uses them
    up), it degrades to one wake each `recheck_s` seconds instead of failing.
    """

    def __init__(self, directories: Sequence[Path], *, recheck_s: float = 1.0) -> None:
        self._directories = tuple(directories)
        self._recheck_s = recheck_s
        self._loop = asyncio.get_running_loop()
        self._armed: dict[Path, _Armed] = {}
        self._dirty = asyncio.Event()
        self._last_event_at = self._loop.time()
        self._inotify = _open_inotify()
        if self._inotify is not None:
            self._loop.add_reader(self._inotify.fileno(), self._read_events)
        for directory in self._directories:
            self._arm(directory)
        self._timer = self._loop.call_later(recheck_s, self._recheck)

    async def changed(self) -> None:
        """Returns after the next change, or at once when there was one since the last return.

        Cancelling loses nothing: the change is then reported by the next call.
        """
        await self._dirty.wait()
        bound = self._loop.time() + LONGEST_BURST_S
        # It is silence that is waited for, and no event announces it.
        while (rest := min(self._last_event_at + QUIET_S, bound) - self._loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(rest)
        self._dirty.clear()

    def close(self) -> None:
        """Lets go of the descriptor and the timer; a second call does nothing."""
        self._timer.cancel()
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    async def __aenter__(self) -> DirectoryWatch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mark(self) -> None:
        self._last_event_at = self._loop.time()
        self._dirty.set()

    def _read_events(self) -> None:
        assert self._inotify is not None
        events = self._inotify.read(timeout=0)
        dropped = {event.wd for event in events if event.mask & flags.IGNORED}
        # By watch, not by inode: a directory that is deleted and made again often gets its old inode number.
        self._armed = {path: armed for path, armed in self._armed.items() if armed.watch not in dropped}
        # IGNORED alone is the echo of a watch that we removed ourselves.
        if any(event.mask & ~flags.IGNORED for event in events):
            self._mark()
        if any(event.mask & _PATH_MOVED for event in events):
            self._arm_all()

    def _recheck(self) -> None:
        self._arm_all()
        if any(armed.watch is None for armed in self._armed.values()):
            self._mark()
        self._timer = self._loop.call_later(self._recheck_s, self._recheck)

    def _arm_all(self) -> None:
        for directory in self._directories:
            if self._arm(directory):
                self._mark()

    def _arm(self, directory: Path) -> bool:
        """Whether the path now leads to another directory than it did, or to none."""
        # Looked at before it is watched: should it be swapped between the two, the next look will tell.
        found = _identity(directory)
        armed = self._armed.get(directory)
        if found == (armed.identity if armed else None):
            return False
        if armed is not None:
            del self._armed[directory]
            self._drop(armed)
        if found is not None:
            self._armed[directory] = _Armed(found, self._add(directory))
        return True

    def _add(self, directory: Path) -> int | None:
        if self._inotify is None:
            return None
        try:
            return int(self._inotify.add_watch(directory, _MASK))
        except OSError:
            return None

    def _drop(self, armed: _Armed) -> None:
        if self._inotify is None or armed.watch is None:
            return
        try:
            self._inotify.rm_watch(armed.watch)
        except OSError:
            return  # the kernel dropped it with the directory


def _open_inotify() -> INotify | None:
    try:
        return INotify(nonblocking=True)
    except OSError:
        return None


def _identity(directory: Path) -> tuple[int, int] | None:
    """Device and inode of the directory behind the path; None when there is none to be had."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class WriteWatch:
    """Wakes its one waiter whenever a file in `directory` was written to, without delay: for logs that others write.

    A hint and no more: what was written is not told, and where the kernel has no watch left it tells nothing.
    """

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._written = asyncio.Event()
        self._inotify = _open_inotify()
        if self._inotify is None:
            return
        try:
            self._inotify.add_watch(directory, flags.MODIFY | flags.CREATE)
        except OSError:
            self.close()
        else:
            self._loop.add_reader(self._inotify.fileno(), self._read)

    async def written(self) -> None:
        """Returns after the next write, or at once when there was one since the last return."""
        await self._written.wait()
        self._written.clear()

    def close(self) -> None:
        """Lets go of the descriptor; a second call does nothing."""
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    def _read(self) -> None:
        assert self._inotify is not None
        self._inotify.read(timeout=0)
        self._written.set()
