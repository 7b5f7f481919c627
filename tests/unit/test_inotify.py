"""Real files and a real kernel: what wakes the watcher of a directory, and how often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from bgpd.runtime import inotify
from bgpd.runtime.inotify import DirectoryWatch

NEVER_S = 0.05
SOON_S = 2.0


def run(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


async def wakes(watch: DirectoryWatch) -> bool:
    try:
        async with asyncio.timeout(SOON_S):
            await watch.changed()
    except TimeoutError:
        return False
    return True


async def stays_quiet(watch: DirectoryWatch) -> bool:
    try:
        async with asyncio.timeout(NEVER_S):
            await watch.changed()
    except TimeoutError:
        return True
    return False


def write(path: Path, text: str = "x") -> None:
    path.write_text(text)


def read_all(directory: Path) -> None:
    assert [path.read_text() for path in directory.iterdir()]


def replace(path: Path) -> None:
    temporary = path.with_name(".tmp")
    temporary.write_text("y")
    temporary.rename(path)


def swap_data_link(directory: Path) -> None:
    """What kubelet does when a mounted ConfigMap changes."""
    (directory / "..2").mkdir()
    (directory / "..2" / "old").write_text("new")
    (directory / "..data_tmp").symlink_to("..2")
    (directory / "..data_tmp").rename(directory / "..data")


@pytest.mark.parametrize(
    "change",
    [
        lambda directory: write(directory / "new"),
        lambda directory: write(directory / "old"),
        lambda directory: replace(directory / "old"),
        lambda directory: (directory / "old").unlink(),
        lambda directory: (directory / "old").chmod(0o600),
        lambda directory: (directory / "old").rename(directory.parent / "elsewhere"),
        swap_data_link,
    ],
    ids=["create", "rewrite", "replace", "delete", "chmod", "move away", "swap ..data"],
)
def test_a_change_wakes_once(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Each kind of edit wakes the reader, and only once."""
    directory = tmp_path / "d"
    directory.mkdir()
    write(directory / "old")

    async def scenario() -> None:
        async with DirectoryWatch([directory]) as watch:
            change(directory)
            assert await wakes(watch)
            assert await stays_quiet(watch)

    run(scenario)


def test_reading_does_not_wake(tmp_path: Path) -> None:
    """The reader's own reads never wake it again."""
    write(tmp_path / "old")

    async def scenario() -> None:
        async with DirectoryWatch([tmp_path]) as watch:
            read_all(tmp_path)
            assert await stays_quiet(watch)

    run(scenario)


def test_changes_before_the_first_wait_count(tmp_path: Path) -> None:
    """What changes between making the watch and waiting on it is reported."""

    async def scenario() -> None:
        async with DirectoryWatch([tmp_path]) as watch:
            write(tmp_path / "new")
            await asyncio.sleep(0.05)
            assert await wakes(watch)

    run(scenario)


def test_endless_writing_still_wakes(tmp_path: Path) -> None:
    """A directory that never rests wakes the reader within the bound."""

    async def scribble() -> None:
        while True:
            write(tmp_path / "busy")
            await asyncio.sleep(inotify.QUIET_S / 3)

    async def scenario() -> None:
        async with DirectoryWatch([tmp_path]) as watch:
            busy = asyncio.create_task(scribble())
            start = time.monotonic()
            assert await wakes(watch)
            assert inotify.QUIET_S < time.monotonic() - start < 5 * inotify.LONGEST_BURST_S
            busy.cancel()

    run(scenario)


def test_cancelling_loses_no_change(tmp_path: Path) -> None:
    """A wait that is cancelled while the burst settles leaves the change for the next wait."""

    async def scenario() -> None:
        async with DirectoryWatch([tmp_path]) as watch:
            waiting = asyncio.create_task(watch.changed())
            write(tmp_path / "new")
            await asyncio.sleep(inotify.QUIET_S / 3)
            waiting.cancel()
            assert await wakes(watch)

    run(scenario)


def test_a_directory_made_later_is_watched(tmp_path: Path) -> None:
    """A missing directory is no error; its appearance and everything after it wake."""
    late = tmp_path / "a" / "late"

    async def scenario() -> None:
        async with DirectoryWatch([late], recheck_s=0.02) as watch:
            assert await stays_quiet(watch)
            late.mkdir(parents=True)
            assert await wakes(watch)
            write(late / "new")
            assert await wakes(watch)

    run(scenario)


def test_a_directory_made_again_is_watched_again(tmp_path: Path) -> None:
    """Delete and make anew: both wake, and so does a file in the new one."""
    directory = tmp_path / "d"
    directory.mkdir()

    async def scenario() -> None:
        async with DirectoryWatch([directory], recheck_s=0.02) as watch:
            directory.rmdir()
            assert await wakes(watch)
            directory.mkdir()
            assert await wakes(watch)
            write(directory / "new")
            assert await wakes(watch)

    run(scenario)


def test_a_link_to_another_directory_is_followed(tmp_path: Path) -> None:
    """A watched path that is a link wakes when it is turned, and then watches the new target only."""
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "link"
    one.mkdir()
    two.mkdir()
    link.symlink_to(one)

    async def scenario() -> None:
        async with DirectoryWatch([link], recheck_s=0.02) as watch:
            link.unlink()
            link.symlink_to(two)
            assert await wakes(watch)
            write(one / "unseen")
            assert await stays_quiet(watch)
            write(two / "seen")
            assert await wakes(watch)

    run(scenario)


def test_one_directory_named_twice(tmp_path: Path) -> None:
    """Two names of one directory share a kernel watch; losing one name must not blind the other."""
    directory, link = tmp_path / "d", tmp_path / "link"
    directory.mkdir()
    link.symlink_to(directory)

    async def scenario() -> None:
        async with DirectoryWatch([link, directory], recheck_s=0.02) as watch:
            link.unlink()
            assert await wakes(watch)
            await asyncio.sleep(0.06)
            assert await stays_quiet(watch)
            write(directory / "new")
            assert await wakes(watch)

    run(scenario)


def test_a_refused_watch_degrades_to_polling(tmp_path: Path) -> None:
    """A path the kernel will not watch (here: no directory) wakes the reader at every look."""
    write(tmp_path / "file")

    async def scenario() -> None:
        async with DirectoryWatch([tmp_path / "file"], recheck_s=0.02) as watch:
            assert await wakes(watch)
            assert await wakes(watch)

    run(scenario)


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    """A second close does nothing."""

    async def scenario() -> None:
        watch = DirectoryWatch([tmp_path])
        watch.close()
        watch.close()

    run(scenario)
