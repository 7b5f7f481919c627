"""The plugin and its conflist in the runtime's directories, on a clock set by hand; and as it follows changes."""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import pytest

from bgpd.cni.conflist import Action, Settings
from bgpd.cni.publish import PROGRAMS, Places, Publisher, install, remove
from bgpd.model.attachment import OWN_FILE
from bgpd.model.configmap import ConfigMap
from bgpd.runtime.store import Store
from tests.unit.test_cni_conflist import FLANNEL, OURS, WRITTEN
from tests.unit.test_cni_server import until

PATIENCE_S, RESCAN_S = 5.0, 1000.0
NAME = "kube-system/cni-configuration"


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


class Bench:
    """A publisher whose `publish` is called by hand. `publish` advances the clock first."""

    def __init__(self, directory: Path, config_map: str | None = None) -> None:
        self.places = Places(directory / "net.d", directory / "bin")
        self.now = 100.0
        self.config_maps: Store[Mapping[str, ConfigMap]] = Store({})
        self.publisher = Publisher(
            self.places,
            Settings(),
            config_map,
            self.config_maps,
            patience_s=PATIENCE_S,
            rescan_s=RESCAN_S,
            clock=lambda: self.now,
        )

    def target(self, value: object, name: str = "10-flannel.conflist") -> Path:
        self.places.configurations.mkdir(exist_ok=True)
        file = self.places.configurations / name
        file.write_text(json.dumps(value))
        return file

    def publish(self, after_s: float = 0.0) -> float:
        self.now += after_s
        return self.publisher.publish()

    @property
    def ours(self) -> Path:
        return self.places.configurations / OWN_FILE

    @property
    def plugins(self) -> list[object]:
        return list(json.loads(self.ours.read_text())["plugins"])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_conflist_and_plugin_are_written(bench: Bench) -> None:
    """For root alone and for all to run."""
    bench.target(FLANNEL)
    assert bench.publish() == RESCAN_S
    assert bench.plugins[-1] == OURS
    assert bench.ours.stat().st_mode & 0o777 == 0o600
    plugin = bench.places.programs / "bgpd-cni"
    assert plugin.read_bytes() == (PROGRAMS / f"bgpd-cni.{platform.machine()}").read_bytes()
    assert plugin.stat().st_mode & 0o777 == 0o755
    assert names(bench.places.configurations) == [OWN_FILE, "10-flannel.conflist"]
    assert names(bench.places.programs) == ["bgpd-cni"]


def test_what_is_as_it_should_be_is_not_written_again(bench: Bench) -> None:
    """A runtime reads everything anew when a file is written."""
    bench.target(FLANNEL)
    bench.publish()
    before = [bench.ours.stat().st_ino, (bench.places.programs / "bgpd-cni").stat().st_ino]
    bench.publish()
    assert [bench.ours.stat().st_ino, (bench.places.programs / "bgpd-cni").stat().st_ino] == before


def test_it_follows_the_target_and_puts_back_what_others_change(bench: Bench) -> None:
    bench.target(FLANNEL)
    bench.publish()
    bench.target(FLANNEL | {"plugins": FLANNEL["plugins"][:1]})
    bench.publish()
    assert bench.plugins == [FLANNEL["plugins"][0], OURS]
    bench.ours.write_text("{}")
    (bench.places.programs / "bgpd-cni").chmod(0o600)
    bench.publish()
    assert bench.plugins == [FLANNEL["plugins"][0], OURS]
    assert (bench.places.programs / "bgpd-cni").stat().st_mode & 0o777 == 0o755


def test_half_a_target_changes_nothing(bench: Bench) -> None:
    target = bench.target(FLANNEL)
    bench.publish()
    target.write_text(target.read_text()[:40])
    bench.publish(100 * PATIENCE_S)
    assert bench.plugins[-1] == OURS
    assert bench.publisher.plan.action is Action.KEEP


def test_ours_goes_once_the_target_has_been_gone_for_a_while(bench: Bench) -> None:
    """What replaces a file may take it away first."""
    target = bench.target(FLANNEL)
    bench.publish()
    target.unlink()
    assert bench.publish() == PATIENCE_S
    bench.publish(PATIENCE_S - 1)
    assert bench.ours.exists()
    bench.target(FLANNEL)
    bench.publish()
    target.unlink()
    assert bench.publish(PATIENCE_S) == PATIENCE_S  # it is counted anew
    assert bench.ours.exists()
    bench.publish(PATIENCE_S)
    assert not bench.ours.exists()


def test_ours_goes_at_once_when_the_chain_has_us_in_it(bench: Bench) -> None:
    """The plugin stays: the chain needs it."""
    bench.target(FLANNEL)
    bench.publish()
    bench.target(FLANNEL | {"plugins": [*FLANNEL["plugins"], OURS]})
    bench.publish()
    assert not bench.ours.exists()
    assert (bench.places.programs / "bgpd-cni").exists()


def test_removing_gives_the_node_back_as_it_was(bench: Bench) -> None:
    """Twice is the same."""
    target = bench.target(FLANNEL)
    before = target.read_bytes()
    bench.publish()
    for _ in range(2):
        remove(bench.places.configurations)
        assert names(bench.places.configurations) == [target.name]
    assert target.read_bytes() == before


def test_a_place_that_refuses_is_told_and_tried_again(bench: Bench) -> None:
    bench.target(FLANNEL)
    bench.places.programs.write_text("a file where a directory should be")
    assert bench.publish() == RESCAN_S
    assert bench.publisher.problem == f"{bench.places.programs / 'bgpd-cni'}: Not a directory"
    assert not bench.ours.exists()  # a chain that ends in a plugin that is not there starts no pod
    bench.places.programs.unlink()
    bench.publish()
    assert (bench.publisher.problem, bench.plugins[-1]) == ("", OURS)


def test_a_machine_we_have_no_plugin_for_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no bgpd-cni for riscv64, only for aarch64, x86_64"):
        install(tmp_path, "riscv64")


def test_a_directory_that_is_not_there_yet_is_none_to_chain_to(bench: Bench) -> None:
    bench.publish()
    problem = f"{bench.places.configurations}: no .conf, .conflist, .json file to chain to"
    assert bench.publisher.plan.problem.startswith(problem)


def test_an_operator_s_conflist_is_written_to_the_letter(tmp_path: Path) -> None:
    """Not before the ConfigMap has been read; and it stays when the ConfigMap goes."""
    bench = Bench(tmp_path, NAME)
    bench.target(FLANNEL)
    bench.publish()
    assert bench.publisher.plan.problem == f"ConfigMap {NAME}: not read yet"
    bench.config_maps.publish({NAME: ConfigMap(NAME, {"cni-config": WRITTEN})})
    bench.publish()
    assert bench.ours.read_text() == WRITTEN
    bench.config_maps.publish({})
    bench.publish(100 * PATIENCE_S)
    assert bench.ours.read_text() == WRITTEN
    assert bench.publisher.plan.problem.startswith(f"ConfigMap {NAME}: there is no key cni-config")


def test_it_waits_until_the_daemon_is_ready_and_then_follows(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.target(FLANNEL)

    async def scenario() -> None:
        ready = asyncio.Event()
        task = asyncio.create_task(bench.publisher.run(ready))
        try:
            await asyncio.sleep(0.05)
            assert not bench.ours.exists()
            ready.set()
            await until(bench.ours.exists)
            bench.target(FLANNEL | {"name": "another"})
            await until(lambda: '"another"' in bench.ours.read_text())
            bench.ours.unlink()
            await until(bench.ours.exists)
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(scenario())


def test_it_follows_the_config_map(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NAME)
    bench.places.configurations.mkdir()

    async def scenario() -> None:
        ready = asyncio.Event()
        ready.set()
        task = asyncio.create_task(bench.publisher.run(ready))
        try:
            for name in ("cbr0", "generic-veth"):
                text = WRITTEN.replace("generic-veth", name)
                bench.config_maps.publish({NAME: ConfigMap(NAME, {"cni-config": text})})
                await until(lambda text=text: bench.ours.exists() and bench.ours.read_text() == text)  # type: ignore[misc]
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(scenario())
