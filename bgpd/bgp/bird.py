"""Talks to BIRD, which speaks BFD for this node: its control socket, its configuration, its sessions as they change.

A shell around `bird_codec`. How it is started: `bgpd bfd run` (the unit bgpd-bfd.service) replaces itself by BIRD, so
that sessions outlive the daemon and the speaker. The files:

    RUN/bfd/bird.conf      written by the daemon, read by BIRD
    RUN/bfd/bird.log       a line for each change of state: what wakes the daemon
    RUN/bfd/bird.ctl       BIRD listens here, as its own unprivileged user

That a line was written is a hint; what is believed is `show bfd sessions`, asked for at each hint and once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bgpd.bgp import bird_codec
from bgpd.bgp.launch import beside
from bgpd.model.bfd import Session, Wanted
from bgpd.model.outcome import DONE, Outcome
from bgpd.model.prefix import Address
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import TargetError

ANSWER_S = 2.0  # BIRD answers in a millisecond
LOAD_TIMEOUT_S = 5.0
PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
MISSING = "BIRD is not installed, and it speaks BFD for bgpd: apt-get install bird2, then systemctl start bgpd-bfd"
_LINE = re.compile(r"(?:(\d{4})([ -]))?(.*)")


def program() -> Path | None:
    """BIRD; None: it is not installed."""
    found = shutil.which("bird", path=PLACES)
    return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class BirdFiles:
    """BIRD's files under one run directory."""

    run: Path

    @property
    def directory(self) -> Path:
        return self.run / "bfd"

    @property
    def configuration(self) -> Path:
        return self.directory / "bird.conf"

    @property
    def log(self) -> Path:
        return self.directory / "bird.log"

    @property
    def socket(self) -> Path:
        return self.directory / "bird.ctl"

    def prepare(self) -> None:
        """Creates what is missing; a configuration that is there stays. Idempotent."""
        self.directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        if not self.configuration.exists():
            self.write({})

    def command(self, bird: Path) -> list[str]:
        """Stays in the foreground, and keeps the user it is started as."""
        return [str(bird), "-f", "-c", str(self.configuration), "-s", str(self.socket)]

    def read(self) -> str:
        try:
            return self.configuration.read_text()
        except FileNotFoundError:
            return ""

    def logged(self) -> str:
        """What BIRD noted last; empty where it cannot be read.

        The newer file is read first: begins BIRD another one meanwhile, it is read twice, instead of not at all.
        """
        parts = []
        for path in (self.log, self.log.with_name(f"{self.log.name}.before")):
            with contextlib.suppress(OSError):
                parts.append(path.read_text(errors="replace"))
        return "".join(reversed(parts))

    def write(self, wanted: Mapping[str, Wanted]) -> str:
        """Puts the configuration in its place; what it is now."""
        text = bird_codec.document(wanted, str(self.log))
        if text != self.read():
            with beside(self.configuration, text) as temporary:
                temporary.rename(self.configuration)
        return text


class RefusedError(TargetError):
    """BIRD refused one command."""


class Bird:
    """One BIRD. It also is the actuator of its configuration: the sessions it should keep, by peer name."""

    def __init__(self, files: BirdFiles) -> None:
        self.files = files
        self._have: Mapping[str, Wanted] = {}

    async def sessions(self) -> dict[Address, Session]:
        """As they are now. TargetError: BIRD cannot be asked."""
        try:
            shown = await self._ask("show bfd sessions")
            return bird_codec.sessions(shown, time.time() - time.monotonic())
        except RefusedError:
            return {}  # no protocol bfd: nobody wants a session

    def said_down(self) -> set[Address]:
        """The peers that said themselves that the session is down, as of the last fall of each; see `bird_codec`."""
        return bird_codec.said_down(self.files.logged())

    async def observe(self) -> Mapping[str, Wanted]:
        """What BIRD has loaded, or will load once it runs; nothing where that is not what the file asks for."""
        text = self.files.read()
        try:
            is_loaded = await self._loaded() == bird_codec.digest_of(text)
        except TargetError:
            is_loaded = True
        self._have = bird_codec.wanted_of(text) if is_loaded else {}
        return self._have

    async def apply(self, changes: Sequence[Change[str, Wanted]]) -> Sequence[Outcome]:
        """All of them in one reload: BIRD leaves alone the sessions that are the same before and after."""
        wanted = dict(self._have)
        for change in changes:
            if change.want is None:
                wanted.pop(change.key, None)
            else:
                wanted[change.key] = change.want
        try:
            text = self.files.write(wanted)  # first: a BIRD that is started later reads it then
        except OSError as error:
            raise TargetError(f"{self.files.configuration} cannot be written: {error.strerror}") from None
        await self._ask("configure")
        deadline = asyncio.get_running_loop().time() + LOAD_TIMEOUT_S
        while await self._loaded() != bird_codec.digest_of(text):
            if asyncio.get_running_loop().time() > deadline:
                raise TargetError("BIRD has not loaded its new configuration; see the log of bgpd-bfd")
            await asyncio.sleep(0.01)
        self._have = wanted
        return [DONE] * len(changes)

    async def _loaded(self) -> str:
        return bird_codec.loaded_digest(await self._ask("show protocols all"))

    async def _ask(self, command: str) -> list[str]:
        """The lines of BIRD's answer, over a connection of its own: there is little to ask, and nothing to keep."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.files.socket))
        except OSError as error:
            remedy = "is bgpd-bfd.service running?" if program() else MISSING
            raise TargetError(f"{self.files.socket}: {error.strerror or error}; {remedy}") from None
        try:
            async with _in_time(ANSWER_S, f"{self.files.socket}: BIRD does not answer; see the log of bgpd-bfd"):
                await _answer(reader)  # it greets
                writer.write(f"{command}\n".encode())
                return await _answer(reader)
        except (OSError, ValueError) as error:
            raise TargetError(f"{self.files.socket}: {error}") from None
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> list[str]:
    """Up to the line whose code is followed by a blank: `1002-first`, ` next`, `0000 last`."""
    lines = []
    while line := (await reader.readline()).decode(errors="replace").rstrip("\n"):
        found = _LINE.match(line)
        assert found is not None  # it matches whatever there is
        code, kind, text = found.groups()
        lines.append(text if code else line.removeprefix(" "))
        if kind == " ":
            if code >= "8000":
                raise RefusedError(f"BIRD refuses its configuration or a command: {' / '.join(lines)}")
            return lines
    raise ValueError("BIRD closed the connection")


@contextlib.asynccontextmanager
async def _in_time(seconds: float, otherwise: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TargetError(otherwise) from None
