"""Keeps on the disk what the runtime was promised: the attachments there are, and the DELs still to be done. A shell.

Both are directories of one file per attachment, named after it, with the runtime's request in it as it came
(`frame`): what can be understood on the socket can be understood here, and an operator can read it.

The two are written with unlike care. An attachment ends with its network namespace, and every namespace ends with the
machine: what must be found again is what was there when only this process ended, and for that a rename is enough. A
DEL is written by the plugin, which synchronises it: it may free what outlives the machine, an address of IPAM say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from bgpd.cni.frame import LONGEST_CONFIGURATION, LONGEST_ENVIRONMENT, LONGEST_HEAD, Frame, FrameError, decode
from bgpd.cni.protocol import CniError, Request, Verb, attachment, parse
from bgpd.config.files import UnreadableError, read_limited
from bgpd.model.attachment import Attachment, AttachmentKey

DIRECTORY = "endpoints"  # of the attachments, below that of our state
_LONGEST = LONGEST_HEAD + LONGEST_ENVIRONMENT + LONGEST_CONFIGURATION


class Journal:
    """The attachments. OSError from any method: the disk refuses; what is in memory is then as it was before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._attachments: dict[AttachmentKey, Attachment] = {}

    @property
    def attachments(self) -> Mapping[AttachmentKey, Attachment]:
        return MappingProxyType(self._attachments)

    def load(self) -> tuple[str, ...]:
        """Reads what an earlier life left, once, before anything else. Returns what could not be read.

        Such a file is left alone: GC or the attachment's DEL removes it, and its pod is found through the runtime.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in _unfinished(self._directory):
            file.unlink(missing_ok=True)
        problems = []
        for file in _files(self._directory):
            try:
                found = _remembered(file)
            except (UnreadableError, CniError) as error:
                problems.append(f"{file}: {error}")
            else:
                self._attachments[found.key] = found
        return tuple(problems)

    def add(self, frame: Frame, found: Attachment) -> None:
        """Replaces what there was of the same key."""
        temporary = self._directory / f".{found.key}"
        try:
            temporary.write_bytes(frame.encode())
            temporary.rename(self._directory / str(found.key))
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self._directory)) from None  # a write names no file
        self._attachments[found.key] = found

    def remove(self, key: AttachmentKey) -> None:
        """Once more does nothing."""
        (self._directory / str(key)).unlink(missing_ok=True)
        self._attachments.pop(key, None)


def namespaces(state: Path) -> frozenset[Path]:
    """Those of pods, as the journal in this directory has them. It may never have been there."""
    if not (state / DIRECTORY).is_dir():
        return frozenset()
    journal = Journal(state / DIRECTORY)
    journal.load()
    return frozenset(Path(found.netns) for found in journal.attachments.values())


class Queue:
    """The DELs that the plugin took while the daemon did not answer. It writes them, and only we remove them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> None:
        """Makes the directory, and removes what no plugin finishes any more. OSError: the disk refuses.

        A plugin that is just then writing finds its file gone, and tells the runtime to try again.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in _unfinished(self.directory):
            file.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """What waits, in the order in which it came."""
        return sorted(_files(self.directory), key=_written_at)

    def waiting(self) -> int:
        """How many there are. From any thread, and before the directory is made."""
        try:
            return sum(1 for _ in _files(self.directory))
        except OSError:
            return 0

    def has(self, file: Path) -> bool:
        return file.exists()

    def drop(self, file: Path) -> None:
        """Once more does nothing."""
        file.unlink(missing_ok=True)

    def file(self, key: AttachmentKey) -> Path:
        """Where the DEL of this attachment is, if one waits."""
        return self.directory / str(key)


def read(file: Path) -> Request:
    """The request in a file. UnreadableError, or CniError as the socket would answer."""
    try:
        return parse(decode(read_limited(file, _LONGEST).data))
    except FrameError as error:
        raise UnreadableError(str(error)) from None


def _remembered(file: Path) -> Attachment:
    request = read(file)
    if request.verb is not Verb.ADD or str(request.key) != file.name:
        raise UnreadableError("it is not the ADD that its name says")
    return attachment(request)


def _files(directory: Path) -> Iterator[Path]:
    return (each for each in directory.iterdir() if not each.name.startswith("."))


def _unfinished(directory: Path) -> list[Path]:
    return [each for each in directory.iterdir() if each.name.startswith(".")]


def _written_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
