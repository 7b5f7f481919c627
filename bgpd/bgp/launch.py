"""Says how ExaBGP is started: where its files are, its environment, its command line. Starts nothing itself.

Called by `bgpd speaker run` (the systemd unit, which replaces itself by ExaBGP) and by the daemon when the
speaker is its child. The files:

    RUN/speaker/exabgp.conf    written by the daemon, read by ExaBGP; it may hold passwords
    RUN/speaker/bridge.sock    the bridge listens here, as the speaker's own unprivileged user
    RUN/speaker.sock           a symbolic link to it, the name everybody else uses
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bgpd.bgp import guardian, render


@dataclass(frozen=True, slots=True)
class SpeakerFiles:
    """The speaker's files under one run directory."""

    run: Path

    @property
    def directory(self) -> Path:
        return self.run / "speaker"

    @property
    def configuration(self) -> Path:
        return self.directory / "exabgp.conf"

    @property
    def bridge_socket(self) -> Path:
        return self.directory / "bridge.sock"

    @property
    def socket(self) -> Path:
        return self.run / "speaker.sock"

    @property
    def environment(self) -> Path:
        """ExaBGP's own settings file. It stays empty; without one ExaBGP gives advice at every start."""
        return self.directory / "exabgp.env"

    @property
    def prepared(self) -> Path:
        """What `prepare` was last done for, and the header it gave."""
        return self.directory / "prepared"

    def is_prepared(self, settings: bytes) -> bool:
        """Whether `prepare` was done for these settings, by this release, and the header is still that one."""
        try:
            mark, head = self.prepared.read_text().split("\n", 1)
            return mark == self._mark(settings) and self.configuration.read_text().startswith(head)
        except (OSError, ValueError):
            return False

    def prepare(self, header: str, settings: bytes | None = None) -> None:
        """Creates what is missing, and gives the configuration this header; its neighbors stay. Idempotent.

        An ExaBGP that runs reads it at its next start or reload, and a reload leaves a running helper alone.
        `settings`: the configuration file that the header was made from, for `is_prepared`.
        """
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            self.socket.symlink_to(self.bridge_socket.relative_to(self.run))
        if not self.environment.exists():
            _put(self.environment, "")
        before = self.configuration.read_text() if self.configuration.exists() else None
        text = render.document(header, render.blocks_of(before or ""))
        if text != before:
            _put(self.configuration, text)
        if settings is not None and not self.is_prepared(settings):
            _put(self.prepared, f"{self._mark(settings)}\n{header}")

    def _mark(self, settings: bytes) -> str:
        """Another one for other settings, and for a release that makes another header."""
        return hashlib.sha256(header(self, 0).encode() + settings).hexdigest()


def _put(file: Path, text: str) -> None:
    with beside(file, text) as temporary:
        temporary.rename(file)


@contextlib.contextmanager
def beside(file: Path, text: str) -> Iterator[Path]:
    """A temporary file in the same directory, to be renamed into place; gone if it was not.

    Readable by the directory's group, which is the speaker's, whatever our umask: it may hold passwords.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o640)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def header(files: SpeakerFiles, end_of_rib_after_s: int) -> str:
    """The configuration's first part for this installation."""
    return render.header(sys.executable, guardian.__file__, str(files.bridge_socket), end_of_rib_after_s)


def exabgp() -> Path:
    """The `exabgp` of our own virtual environment."""
    return Path(sys.executable).parent / "exabgp"


def command(files: SpeakerFiles) -> list[str]:
    """ExaBGP under `steady`. Resolved paths: after an upgrade the old process must not load the new release."""
    python = Path(sys.executable).parent.resolve() / Path(sys.executable).name
    steady = Path(__file__).resolve().with_name("steady.py")  # not imported: it brings all of ExaBGP
    return [str(python), "-P", str(steady), "server", str(files.configuration)]


def environment(files: SpeakerFiles) -> dict[str, str]:
    """ExaBGP's settings, on top of our own environment.

    It keeps the user it is started as: the unit starts it unprivileged. Its log is for faults only; sessions
    are logged by the daemon, and INFO costs a quarter of ExaBGP's processor time.
    """
    return {
        **os.environ,
        "EXABGP_ENVFILE": str(files.environment),
        "exabgp_daemon_user": pwd.getpwuid(os.geteuid()).pw_name,
        "exabgp_daemon_drop": "false",
        "exabgp_api_cli": "false",
        "exabgp_api_ack": "true",
        "exabgp_api_chunk": "50",
        "exabgp_api_show-routes-format": "v2",
        "exabgp_api_terminate": "true",  # rather than going on without peers when it has nobody to talk to
        "exabgp_log_level": "ERROR",
        "exabgp_log_destination": "stdout",
        "exabgp_bgp_openwait": "10",  # until its OPEN has come, a peer also keeps ExaBGP from a reload
        # it looks around every 10 ms when nothing happens, for 2 % of a core; 0.1 took 6 % and was not faster,
        # because a command and a peer wake it at once; 5.0 (0.4 %) took 4 ms longer for a single route
        "exabgp_reactor_speed": "1.0",
        "exabgp_tcp_bind": "",
    }
