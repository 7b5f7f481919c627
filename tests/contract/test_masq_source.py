"""The document's file on a real file system, under a real clock: however it is written, what counts of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bgpd.masq.source import PATIENCE_S, SETTLE_S, FileSource
from bgpd.model.masq import Compat, Reading, Rules
from bgpd.runtime.store import Store
from tests.contract.test_source_contract import running

RULES = Rules(Compat.AGENT, ipv6=False)
SOON_S = 10.0
REWRITES, REWRITING_S = 1000, 10.0
ENTRIES = 50


def listing(number: int) -> str:
    """A document of its own for each number, with as many entries as any other."""
    entries = "".join(f"- 10.{number >> 8}.{number & 255}.{host}/32\n" for host in range(ENTRIES))
    return f"nonMasqueradeCIDRs:\n{entries}"


def number_of(reading: Reading) -> int | None:
    """Which document counts; None: none, or one that was never written whole."""
    prefixes = list(reading.document.entries) if reading.document else []
    numbers = {int(prefix.network_address) >> 8 & 0xFFFF for prefix in prefixes}
    return numbers.pop() if len(numbers) == 1 and len(prefixes) == ENTRIES else None


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def renamed(path: Path, text: str) -> None:
    new = path.with_name(".new")
    new.write_text(text)
    new.rename(path)


def made_anew(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)


def swapped(path: Path, text: str) -> None:
    """What kubelet's AtomicWriter does to a mounted ConfigMap."""
    directory = path.parent / f"..{time.monotonic_ns()}"
    directory.mkdir()
    (directory / path.name).write_text(text)
    if not path.is_symlink():
        path.symlink_to(f"..data/{path.name}")
    new = path.parent / "..data_tmp"
    new.symlink_to(directory.name)
    old = (path.parent / "..data").resolve() if (path.parent / "..data").is_symlink() else None
    new.rename(path.parent / "..data")
    if old is not None:
        (old / path.name).unlink()
        old.rmdir()


WRITERS = [in_place, renamed, made_anew, swapped]
Writer = Callable[[Path, str], None]


def run(
    path: Path,
    scenario: Callable[[Store[Reading]], Awaitable[None]],
    settle_s: float = SETTLE_S,
    patience_s: float = PATIENCE_S,
) -> None:
    async def main() -> None:
        store = Store(Reading())
        source = FileSource(path, RULES, store, settle_s=settle_s, patience_s=patience_s)
        async with running(source):  # type: ignore[arg-type]
            await scenario(store)

    asyncio.run(main())


async def until(store: Store[Reading], number: int) -> None:
    async with asyncio.timeout(SOON_S):
        while number_of(store.newest.value) != number:
            await store.newer_than(store.newest.revision)


@pytest.mark.parametrize("write", WRITERS)
def test_a_change_is_followed_however_it_is_written(tmp_path: Path, write: Writer) -> None:
    """The file appears, changes twice, and what counts is each time what was written."""
    path = tmp_path / "ip-masq-agent"

    async def scenario(store: Store[Reading]) -> None:
        for number in range(3):
            await asyncio.to_thread(write, path, listing(number))
            await until(store, number)
        assert store.newest.synced
        assert store.newest.value.faults == ()

    run(path, scenario)


@pytest.mark.parametrize("write", [in_place, swapped])
def test_a_directory_that_comes_late(tmp_path: Path, write: Writer) -> None:
    """A volume that is mounted after the daemon has started; before it, the default list counts."""
    path = tmp_path / "later" / "config" / "ip-masq-agent"

    async def scenario(store: Store[Reading]) -> None:
        async with asyncio.timeout(SOON_S):
            while store.newest.value.document is None:
                await store.newer_than(store.newest.revision)
        assert store.newest.value.document.is_default
        path.parent.mkdir(parents=True)
        await asyncio.to_thread(write, path, listing(7))
        await until(store, 7)

    run(path, scenario)


def test_a_file_that_becomes_a_mounted_config_map(tmp_path: Path) -> None:
    """And the other way round: the path may be either, at any time."""
    path = tmp_path / "masq"

    async def scenario(store: Store[Reading]) -> None:
        in_place(path, listing(1))
        await until(store, 1)
        path.unlink()
        path.mkdir()
        swapped(path / "config", listing(2))
        await until(store, 2)
        swapped(path / "config", listing(3))
        await until(store, 3)
        path.rename(tmp_path / "away")
        in_place(path, listing(4))
        await until(store, 4)

    run(path, scenario)


def test_a_slow_writer_is_waited_for(tmp_path: Path) -> None:
    """Every prefix of this list is a list as well; none of them counts."""
    path = tmp_path / "ip-masq-agent"

    async def scenario(store: Store[Reading]) -> None:
        in_place(path, listing(1))
        await until(store, 1)
        with path.open("w") as file:
            for line in listing(2).splitlines(keepends=True):
                file.write(line)
                file.flush()
                await asyncio.sleep(0.02)
                assert number_of(store.newest.value) == 1
        await until(store, 2)
        assert store.newest.revision == 2

    run(path, scenario, settle_s=1.0, patience_s=60.0)  # a busy machine is slow as well


@pytest.mark.parametrize("write", [renamed, swapped])
def test_a_thousand_rewrites_in_ten_seconds(tmp_path: Path, write: Writer) -> None:
    """The newest wins and the last is never lost; on the way, whole documents only, and never an older one."""
    path = tmp_path / "ip-masq-agent"
    write(path, listing(0))
    seen: list[int | None] = []

    def rewrite() -> None:
        start = time.monotonic()
        for number in range(REWRITES):
            time.sleep(max(0.0, start + number * REWRITING_S / REWRITES - time.monotonic()))
            write(path, listing(number))

    async def scenario(store: Store[Reading]) -> None:
        store.on_change(lambda: seen.append(number_of(store.newest.value)))
        await asyncio.to_thread(rewrite)
        await until(store, REWRITES - 1)

    run(path, scenario)
    assert None not in seen
    assert seen == sorted(set(seen), key=lambda number: number or 0)
    assert len(seen) <= 2 + 2 * REWRITING_S / PATIENCE_S
