"""When a document counts and what stays when it is none: a file read by hand on a clock set by hand; ConfigMaps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bgpd.masq.memory import Memory
from bgpd.masq.parse import parse
from bgpd.masq.source import ConfigMapSource, FileSource
from bgpd.model.configmap import ConfigMap
from bgpd.model.masq import Reading
from bgpd.runtime.inotify import DirectoryWatch
from bgpd.runtime.store import Store
from tests.contract.test_source_contract import running
from tests.unit.test_masq_references import AGENT, CILIUM, PRIVATE, RESERVED

SETTLE_S, PATIENCE_S, RESCAN_S = 0.25, 2.0, 10.0
SOON_S = 5.0


def listing(*cidrs: str) -> str:
    return f"nonMasqueradeCIDRs: [{', '.join(cidrs)}]\n"


def shown(reading: Reading) -> list[str] | None:
    return None if reading.document is None else [str(entry) for entry in reading.document.entries]


class Bench:
    """A source that is read by hand. `read` advances the clock first."""

    def __init__(self, path: Path, store: Store[Reading] | None = None) -> None:
        self.path = path
        self.now = 100.0
        self.store = Store(Reading()) if store is None else store
        self.source = FileSource(
            path,
            AGENT,
            self.store,
            settle_s=SETTLE_S,
            patience_s=PATIENCE_S,
            rescan_s=RESCAN_S,
            clock=lambda: self.now,
        )

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def read(self, after_s: float = 1.0) -> list[str] | None:
        self.now += after_s
        self.wait_s = self.source.read()
        return shown(self.store.newest.value)

    def settled(self) -> list[str] | None:
        self.read()
        return self.read(SETTLE_S)

    @property
    def faults(self) -> list[str]:
        return [str(fault).removeprefix(f"{self.path}") for fault in self.store.newest.value.faults]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "ip-masq-agent")


def test_a_document_that_is_there_counts_at_once(bench: Bench) -> None:
    """At start there is nothing to wait for."""
    bench.write(listing("10.0.0.0/8"))
    assert bench.read() == ["10.0.0.0/8"]
    assert bench.store.newest.synced
    assert bench.wait_s == RESCAN_S
    assert bench.store.newest.value.document is not None
    assert bench.store.newest.value.document.origin == str(bench.path)


def test_a_change_counts_when_it_has_settled(bench: Bench) -> None:
    """Half of `- 128.0.0.0/16` would keep the pods' addresses towards half of the world."""
    bench.write(listing("10.0.0.0/8"))
    bench.read()
    bench.write("nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 128.0.0.0/1")
    assert bench.read() == ["10.0.0.0/8"]
    assert bench.wait_s == pytest.approx(SETTLE_S)
    bench.write("nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 128.0.0.0/16\n")
    assert bench.read(SETTLE_S / 2) == ["10.0.0.0/8"]
    assert bench.read(SETTLE_S / 2) == ["10.0.0.0/8"]
    assert bench.read(SETTLE_S / 2) == ["10.0.0.0/8", "128.0.0.0/16"]
    assert bench.wait_s == RESCAN_S


def test_a_file_that_never_rests_is_believed_now_and_then(bench: Bench) -> None:
    """Else whoever writes it too often would be ignored for ever."""
    bench.write(listing("10.0.0.0/8"))
    bench.read()
    seen = []
    for number in range(100):
        bench.write(listing(f"10.{number}.0.0/16"))
        seen.append(bench.read(0.1))
    assert len({tuple(each or ()) for each in seen}) == pytest.approx(10 / PATIENCE_S, abs=1)


def test_what_comes_back_in_time_was_never_gone(bench: Bench) -> None:
    """An editor that moves the file away first."""
    bench.write(listing("11.0.0.0/8"))
    bench.read()
    revision = bench.store.newest.revision
    bench.path.rename(bench.path.with_name("away"))
    assert bench.read() == ["11.0.0.0/8"]
    bench.path.with_name("away").rename(bench.path)
    bench.settled()
    assert bench.store.newest.revision == revision


def test_a_file_that_is_gone_means_the_default_list(bench: Bench) -> None:
    """As in both references, once it is sure; at start, too."""
    assert bench.read() is None
    assert not bench.store.newest.synced
    assert bench.read(SETTLE_S) == PRIVATE
    assert bench.store.newest.synced
    bench.write(listing("11.0.0.0/8"))
    assert bench.settled() == ["11.0.0.0/8"]
    bench.path.unlink()
    assert bench.settled() == PRIVATE


def test_zero_bytes_have_to_settle_as_well(bench: Bench) -> None:
    """It is what truncating a file leaves for a moment."""
    bench.write("")
    assert bench.read() is None
    assert bench.read(SETTLE_S) == PRIVATE


def test_a_bad_document_keeps_the_last_good_one_whole(bench: Bench) -> None:
    """With every fault; of the bad one not even a flag counts."""
    bench.write(listing("11.0.0.0/8"))
    bench.read()
    bench.write(listing("10.0.0.1/8", "x") + "masqLinkLocal: true\n")
    assert bench.settled() == ["11.0.0.0/8"]
    document = bench.store.newest.value.document
    assert document is not None
    assert not document.masq_link_local
    assert bench.store.newest.synced
    assert bench.faults == [
        ":1:22: nonMasqueradeCIDRs[0]: '10.0.0.1/8' has host bits set; did you mean 10.0.0.0/8?",
        ":1:34: nonMasqueradeCIDRs[1]: 'x' has no length; write it like 192.0.2.0/24 or 2001:db8::/64",
    ]
    bench.write(listing("12.0.0.0/8"))
    assert bench.settled() == ["12.0.0.0/8"]
    assert bench.faults == []


def test_a_bad_document_from_the_start_is_not_synced(bench: Bench) -> None:
    """So that nothing is taken out of the kernel on its strength."""
    bench.write("{")
    assert bench.settled() is None
    assert not bench.store.newest.synced
    assert len(bench.faults) == 1


@pytest.mark.parametrize("kind", ["pipe", "unreadable", "huge", "parent is a file"])
def test_what_cannot_be_read_is_no_absence(tmp_path: Path, kind: str) -> None:
    """The last good document stays, and the fault says what is in the way."""
    bench = Bench(tmp_path / "d" / "f")
    bench.path.parent.mkdir()
    bench.write(listing("11.0.0.0/8"))
    bench.read()
    bench.path.unlink()
    if kind == "pipe":
        os.mkfifo(bench.path)
    elif kind == "unreadable":
        bench.path.symlink_to(bench.path)
    elif kind == "huge":
        bench.write(" " * 3_000_000)
    else:
        bench.path.parent.rmdir()
        bench.path.parent.write_text("")
    assert bench.settled() == ["11.0.0.0/8"]
    assert len(bench.faults) == 1


def test_a_source_made_anew_carries_on_from_the_store(bench: Bench) -> None:
    """Other rules or another path, the same last good document."""
    bench.write(listing("11.0.0.0/8"))
    bench.read()
    other = Bench(bench.path.with_name("other"), bench.store)
    other.write("{")
    assert other.settled() == ["11.0.0.0/8"]
    assert len(other.faults) == 1


def test_a_link_swap_as_kubelet_does_it(bench: Bench) -> None:
    """The file is a link through `..data`, which is swapped in one step."""
    directory = bench.path.parent
    for number in range(2):
        (directory / f"..{number}").mkdir()
        (directory / f"..{number}" / bench.path.name).write_text(listing(f"1{number}.0.0.0/8"))
    (directory / "..data").symlink_to("..0")
    bench.path.symlink_to(f"..data/{bench.path.name}")
    assert bench.read() == ["10.0.0.0/8"]
    (directory / "..new").symlink_to("..1")
    (directory / "..new").rename(directory / "..data")
    assert bench.settled() == ["11.0.0.0/8"]


def test_a_directory_is_a_mounted_config_map(tmp_path: Path) -> None:
    """Its one file, or `config`, or `ip-masq-agent`; none at all is no document, and no choice is a fault."""
    bench = Bench(tmp_path)
    assert bench.settled() == PRIVATE
    (tmp_path / "..data").mkdir()
    (tmp_path / "any").write_text(listing("10.0.0.0/8"))
    assert bench.settled() == ["10.0.0.0/8"]
    (tmp_path / "other").write_text(listing("11.0.0.0/8"))
    assert bench.settled() == ["10.0.0.0/8"]
    assert bench.faults == [": it holds 'any', 'other'; put the document under the key 'config'"]
    (tmp_path / "config").write_text(listing("12.0.0.0/8"))
    assert bench.settled() == ["12.0.0.0/8"]
    assert bench.store.newest.value.document is not None
    assert bench.store.newest.value.document.origin == str(tmp_path / "config")


# --- a ConfigMap ------------------------------------------------------------------------------------------------


NAME = "kube-system/ip-masq-agent"
ConfigMaps = Store[Mapping[str, ConfigMap]]


async def until(store: Store[Reading], holds: Callable[[Reading], bool]) -> Reading:
    async with asyncio.timeout(SOON_S):
        newest = store.newest
        while not (newest.revision and holds(newest.value)):
            newest = await store.newer_than(newest.revision)
    return newest.value


def follow(scenario: Callable[[ConfigMaps, Store[Reading]], object], settle_s: float = 0.05) -> None:
    async def main() -> None:
        config_maps: ConfigMaps = Store({})
        store = Store(Reading())
        async with running(ConfigMapSource(NAME, CILIUM, config_maps, store, settle_s=settle_s)):  # type: ignore[arg-type]
            await scenario(config_maps, store)  # type: ignore[misc]

    asyncio.run(main())


def of(**data: str) -> dict[str, ConfigMap]:
    return {NAME: ConfigMap(NAME, data)}


def test_a_config_map_is_followed() -> None:
    """Any of its keys by the rule; a bad one keeps the last good list and names the object and the key."""

    async def scenario(config_maps: ConfigMaps, store: Store[Reading]) -> None:
        config_maps.publish(of(config=listing("10.0.0.0/8")))
        reading = await until(store, lambda reading: shown(reading) == ["10.0.0.0/8"])
        assert reading.document is not None
        assert reading.document.origin == f"ConfigMap {NAME} data.config"
        config_maps.publish(of(config=listing("10.0.0.0/33")))
        reading = await until(store, lambda reading: bool(reading.faults))
        assert shown(reading) == ["10.0.0.0/8"]
        assert str(reading.faults[0]).startswith(f"ConfigMap {NAME} data.config:1:22: nonMasqueradeCIDRs[0]: ")
        config_maps.publish(of(a="", b=""))
        reading = await until(store, lambda reading: "it holds 'a', 'b'" in str(reading.faults))
        assert shown(reading) == ["10.0.0.0/8"]
        config_maps.publish(of(whatever=listing("11.0.0.0/8")))
        assert (await until(store, lambda reading: not reading.faults)).document is not None
        assert store.newest.synced

    follow(scenario)


def test_a_config_map_that_is_gone_means_the_default_list() -> None:
    """Once it is sure, and once the source has delivered at all."""

    async def scenario(config_maps: ConfigMaps, store: Store[Reading]) -> None:
        config_maps.publish({}, synced=False)
        config_maps.publish({}, synced=True)
        await until(store, lambda reading: shown(reading) == RESERVED)

    follow(scenario)


def test_nothing_is_known_before_the_source_has_delivered() -> None:
    """An API server that cannot be reached has not said that there is no such ConfigMap."""

    async def scenario(config_maps: ConfigMaps, store: Store[Reading]) -> None:
        config_maps.publish({}, synced=False)
        await asyncio.sleep(0.05)
        assert store.newest.revision == 0

    follow(scenario, settle_s=0)


def test_a_config_map_that_is_made_anew_was_never_gone() -> None:
    """`kubectl replace --force`."""

    async def scenario(config_maps: ConfigMaps, store: Store[Reading]) -> None:
        config_maps.publish(of(config=listing("10.0.0.0/8")))
        await until(store, lambda reading: shown(reading) == ["10.0.0.0/8"])
        config_maps.publish({})
        await asyncio.sleep(0)
        config_maps.publish(of(config=listing("11.0.0.0/8")))
        await until(store, lambda reading: shown(reading) == ["11.0.0.0/8"])
        assert store.newest.revision == 2

    follow(scenario, settle_s=SOON_S)


# --- over a reboot ----------------------------------------------------------------------------------------------


def test_the_last_good_document_outlives_a_reboot(bench: Bench, tmp_path: Path) -> None:
    """It counts until there is another, and is not synced: it adds to the kernel and removes nothing."""
    memory = tmp_path / "memory"
    bench.write(listing("11.0.0.0/8", "fd00::/8") + "masqLinkLocal: true\nresyncInterval: 1.5s\n")
    bench.read()
    before = bench.store.newest.value.document
    assert before is not None
    Memory(memory, bench.store).keep(before)
    after = Bench(bench.path)
    Memory(memory, after.store).recall()
    recalled = after.store.newest.value.document
    assert recalled is not None
    assert shown(after.store.newest.value) == ["11.0.0.0/8", "fd00::/8"]
    assert (recalled.link_local, recalled.resync_interval_s) == (before.link_local, 1.5)
    assert (after.store.newest.synced, recalled.origin) == (False, str(memory))
    after.write("{")
    assert after.settled() == ["11.0.0.0/8", "fd00::/8"]
    assert (len(after.faults), after.store.newest.synced) == (1, False)
    after.write(listing("12.0.0.0/8"))
    assert after.settled() == ["12.0.0.0/8"]
    assert after.store.newest.synced


@pytest.mark.parametrize("text", [None, "", "{", "nonMasqueradeCIDRs: [x]"])
def test_a_memory_that_is_none_is_no_trouble(bench: Bench, tmp_path: Path, text: str | None) -> None:
    """The first start, or a file that was cut short."""
    memory = tmp_path / "memory"
    if text is not None:
        memory.write_text(text)
    Memory(memory, bench.store).recall()
    assert (bench.store.newest.synced, bench.store.newest.value.document) == (False, None)
    bench.write(listing("11.0.0.0/8"))
    assert bench.read() == ["11.0.0.0/8"]


def test_a_memory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """And is made up for by the next document."""
    file = tmp_path / "later" / "memory"
    memory = Memory(file, Store(Reading()))
    memory.keep(parse(listing("11.0.0.0/8").encode(), "first", CILIUM))
    assert memory.problem == f"{file}: the document cannot be remembered: No such file or directory"
    file.parent.mkdir()
    memory.keep(parse(listing("12.0.0.0/8").encode(), "second", CILIUM))
    assert memory.problem == ""
    assert "12.0.0.0/8" in file.read_text()


def recalled(file: Path) -> list[str] | None:
    store = Store(Reading())
    Memory(file, store).recall()
    return shown(store.newest.value)


def test_an_entry_that_stays_is_kept_once(bench: Bench) -> None:
    """Of 16,000 the next document has the very same, so that it costs no memory and is compared as pointers."""
    bench.write(listing("10.0.0.0/8", "11.0.0.0/8"))
    bench.read()
    before = bench.store.newest.value.document
    bench.write(listing("12.0.0.0/8", "11.0.0.0/8"))
    assert bench.settled() == ["12.0.0.0/8", "11.0.0.0/8"]
    after = bench.store.newest.value.document
    assert before is not None
    assert after is not None
    assert after.keys[1] is before.keys[1]
    assert {id(after.keys[1])} < {id(key) for key in after.kept[4]}


def test_a_memory_follows_the_documents(tmp_path: Path) -> None:
    """Whoever is in the store when it looks is kept; what it keeps is what the next life recalls."""

    async def scenario() -> None:
        store = Store(Reading())
        async with running(Memory(tmp_path / "memory", store, after_s=0.01)), DirectoryWatch([tmp_path]) as watch:  # type: ignore[arg-type]
            for text in ("11.0.0.0/8", "12.0.0.0/8"):
                store.publish(Reading(parse(listing(text).encode(), "a file", CILIUM)))
                while recalled(tmp_path / "memory") != [text]:
                    await watch.changed()

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))
