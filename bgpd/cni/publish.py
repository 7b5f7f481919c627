"""Puts the plugin and its conflist where the runtime looks, and keeps the conflist as `conflist` plans it. A shell.

Nothing is written before the daemon says that it is ready: with the conflist in place every ADD of the node needs us.
The conflist is replaced as a whole, and is on the disk before it has its name, because a runtime that finds half a
file after a power failure starts no pod. It goes once there has been nothing to chain to for a while: the chain that
it copies may just be being replaced.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bgpd.cni.conflist import CONFIG_MAP_KEY, QUEUE, SOCKET, Action, Plan, Settings, chained, verbatim
from bgpd.cni.protocol import PLUGIN_TYPE
from bgpd.config.files import UnreadableError, read_limited
from bgpd.config.schema import Config
from bgpd.model.attachment import OWN_FILE
from bgpd.model.configmap import ConfigMap
from bgpd.observe import log
from bgpd.runtime.inotify import DirectoryWatch
from bgpd.runtime.store import Store

PROGRAMS = Path(__file__).parent / "programs"
LONGEST = 1 << 20  # etcd's limit for an object, and a thousand times a usual conflist
PATIENCE_S = 5.0  # a package manager or an init container that replaces a file leaves it away for less than a second
RESCAN_S = 10.0  # finds what inotify cannot tell, and tries again what the disk refused


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """The runtime's two directories. They need not exist yet."""

    configurations: Path
    programs: Path


class Publisher:
    """`config_map` is namespace/name of the operator's own conflist; None: the node's first one is chained to."""

    def __init__(
        self,
        places: Places,
        settings: Settings,
        config_map: str | None,
        config_maps: Store[Mapping[str, ConfigMap]],
        *,
        patience_s: float = PATIENCE_S,
        rescan_s: float = RESCAN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places, self._settings, self._clock = places, settings, clock
        self._config_map, self._config_maps = config_map, config_maps
        self._patience_s, self._rescan_s = patience_s, rescan_s
        self._since: float | None = None  # when there began to be nothing to chain to
        self._log = log.get("cni")
        self.plan = Plan(Action.KEEP, problem="bgpd is not ready yet")
        self.problem = ""
        """Why the plan is not carried out; empty: it is."""

    @property
    def published(self) -> bool:
        """Whether the chain that the runtime uses has us in it, as planned."""
        return not (self.plan.problem or self.problem)

    async def run(self, ready: asyncio.Event) -> None:
        """Never returns; cancel it. What is published stays."""
        await ready.wait()
        changed = asyncio.Event()
        self._config_maps.on_change(changed.set)
        async with DirectoryWatch([self._places.configurations]) as watch:
            while True:
                changed.clear()
                wait_s = self.publish()
                waits = [asyncio.create_task(watch.changed()), asyncio.create_task(changed.wait())]
                try:
                    await asyncio.wait(waits, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in waits:
                        each.cancel()

    def publish(self) -> float:
        """Looks once and does what is to be done; returns in how many seconds to look again at the latest."""
        before = (self.plan, self.problem)
        self.plan, self.problem = self._planned(), ""
        wait_s = self._rescan_s
        try:
            if self.plan.action is Action.REMOVE and (rest_s := self._rest_s()) > 0:
                wait_s = min(rest_s, wait_s)
            elif self.plan.action is Action.REMOVE:
                if self.plan.target:  # which has us in it
                    install(self._places.programs)
                remove(self._places.configurations)
            elif self.plan.action is Action.WRITE:
                install(self._places.programs)
                replace(self._places.configurations / OWN_FILE, self.plan.content, 0o600)
        except OSError as error:
            self.problem = f"{error.filename or self._places.configurations}: {error.strerror}"
        if (self.plan, self.problem) != before:
            self._tell()
        return wait_s

    def _rest_s(self) -> float:
        """How long to be patient yet. A chain that has us in it is no reason to wait."""
        if not self.plan.problem:
            return 0.0
        if self._since is None:
            self._since = self._clock()
        return self._since + self._patience_s - self._clock()

    def _planned(self) -> Plan:
        if self._config_map is not None:
            return self._verbatim(self._config_map)
        try:
            plan = chained(files(self._places.configurations), self._settings)
        except OSError as error:
            plan = Plan(Action.KEEP, problem=f"{error.filename}: {error.strerror}")
        if plan.action is not Action.REMOVE or not plan.problem:
            self._since = None
        if plan.problem and not plan.target:
            plan = dataclasses.replace(plan, problem=f"{self._places.configurations}: {plan.problem}")
        return plan

    def _verbatim(self, name: str) -> Plan:
        newest, origin = self._config_maps.newest, f"ConfigMap {name}"
        if not newest.synced:
            return Plan(Action.KEEP, origin, problem=f"{origin}: not read yet")
        found = newest.value.get(name)
        return verbatim(found.data.get(CONFIG_MAP_KEY) if found else None, origin, self._settings)

    def _tell(self) -> None:
        told = {"target": self.plan.target} if self.plan.target else {}
        for warning in self.plan.warnings:
            self._log.warning("conflist", warning=warning, **told)
        if problem := self.problem or self.plan.problem:
            self._log.warning("conflist", problem=problem, **told)
        else:
            self._log.info("conflist", action=self.plan.action.value, **told)


def settings(config: Config) -> Settings:
    """What the plugin is told."""
    paths, cni = config.paths, config.cni
    assert cni.chaining_mode is not None, "the plugin is off"
    return Settings(cni.chaining_mode, paths.run / SOCKET.name, paths.state / QUEUE.name, cni.deadline_seconds)


def remove(directory: Path) -> None:
    """Takes our conflist away, so that the chain it was made from counts again. Once more does nothing."""
    file = directory / OWN_FILE
    try:
        file.unlink()
    except FileNotFoundError:
        return
    _synchronise(directory)


def install(directory: Path, machine: str = platform.machine()) -> None:
    """Puts the plugin into the runtime's directory, unless it is there. OSError: it cannot, or not here."""
    replace(directory / PLUGIN_TYPE, program(machine), 0o755)


def program(machine: str = platform.machine()) -> bytes:
    """The plugin itself. OSError: there is none for such a machine."""
    source = PROGRAMS / f"{PLUGIN_TYPE}.{machine}"
    try:
        return source.read_bytes()
    except FileNotFoundError:
        built = sorted(each.suffix[1:] for each in PROGRAMS.glob(f"{PLUGIN_TYPE}.*"))
        text = f"there is no {PLUGIN_TYPE} for {machine}, only for {', '.join(built)}; see bgpd/cni/plugin/Makefile"
        raise OSError(0, text, str(source)) from None


def files(directory: Path) -> dict[str, bytes]:
    """The regular files of the runtime's directory. One that cannot be read is empty, which is no configuration."""
    try:
        names = [each.name for each in directory.iterdir()]
    except FileNotFoundError:
        return {}
    return {name: _content(directory / name) for name in names if (directory / name).is_file()}


def _content(file: Path) -> bytes:
    try:
        return read_limited(file, LONGEST).data
    except UnreadableError:
        return b""


def replace(file: Path, content: bytes, mode: int) -> None:
    """Whole, or as before; and only if it differs: a runtime reads all files again when one is written."""
    try:
        if file.read_bytes() == content and file.stat().st_mode & 0o777 == mode:
            return
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")  # no runtime reads a name like that
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as written:
            written.write(content)
            written.flush()
            os.fchmod(written.fileno(), mode)
            os.fsync(written.fileno())
        temporary.rename(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from None
    _synchronise(file.parent)


def _synchronise(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
