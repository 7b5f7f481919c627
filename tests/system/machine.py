"""A machine with a systemd of its own: this one's files, in a container, with a network namespace of the lab.

Decides how it boots, how commands run in it and what of its files differ from this machine's: everything that
is written there goes into a layer in memory, which ends with it. Only `sysinit.target` is started, none of
the services and timers that are installed here. What is installed in it is the tests' business.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from tests.fabric.netns import Namespace, missing
from tests.fabric.process import poll, spawn

BOOT_S: Final = 30.0
COMMAND_S: Final = 300.0  # an installation on a busy machine
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # root's, on Debian
CGROUPS: Final = Path("/sys/fs/cgroup")
# In a mount namespace of its own, so that nothing of this is left when the container's process has ended.
LAYER: Final = """
layer=$1; shift
mount -t tmpfs none "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$layer/upper",workdir="$layer/work" "$layer/root"
exec "$@"
"""


def lacking() -> str | None:
    """Why there can be no such machine here, or None: the text of a skip."""
    if not any(CGROUPS.iterdir() if CGROUPS.is_dir() else ()):
        return f"no cgroups at {CGROUPS}: systemd cannot run"
    return missing("systemd-nspawn", "unshare")


class Machine:
    """Booted by `start`; ends by `stop`, at the latest with the lab. `shared` are directories to see, by path."""

    def __init__(self, namespace: Namespace, shared: Mapping[str, Path]) -> None:
        self._layer = namespace.lab.directory / f"{namespace.name}-machine"
        self._layer.mkdir()
        container = [
            "systemd-nspawn",
            "--quiet",
            f"--directory={self._layer / 'root'}",
            f"--machine={namespace.netns_name}",
            f"--network-namespace-path={namespace.path}",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--register=no",
            "--console=pipe",
            *(f"--bind-ro={directory}:{path}" for path, directory in shared.items()),
        ]
        if not Path("/run/systemd/system").is_dir():
            container.append("--keep-unit")  # nobody to ask for a unit of its own
        layered = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", LAYER, "sh", str(self._layer)]
        self._argv = [*layered, *container, "--boot", "--", "--unit=sysinit.target"]
        self._namespace = namespace

    def start(self) -> Self:
        lab = self._namespace.lab
        log = lab.directory / f"{self._namespace.name}-machine.log"
        self._process = lab.adopt(spawn("machine", self._argv, log_path=log))
        poll(self._is_up, BOOT_S, self._process.log_tail)
        return self

    def stop(self) -> None:
        self._process.stop()

    def run(self, *argv: str, status: int = 0, stdin: str | None = None) -> str:
        """What a command says as root in there, by both its outputs; it must end with `status`."""
        done = self._run(argv, stdin)
        assert done.returncode == status, f"{argv} ended with {done.returncode}: {done.stdout}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-ec", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "sh", path, stdin=text)

    def unit(self, name: str, *properties: str) -> list[str]:
        """The values of some properties of a unit."""
        shown = dict(line.split("=", 1) for line in self.run("systemctl", "show", name).splitlines())
        return [shown[it] for it in properties]

    def changes(self) -> set[Path]:
        """Every file and link that was written since the boot, or replaced; directories do not count."""
        upper = Path(f"/proc/{self._process.pid}/root{self._layer}/upper")
        return {path.relative_to(upper) for path in _files(upper)}

    def _is_up(self) -> bool:
        return self._process.running() and "running" in self._run(("systemctl", "is-system-running"), None).stdout

    def _run(self, argv: tuple[str, ...], stdin: str | None) -> subprocess.CompletedProcess[str]:
        init = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().strip()
        if not init:
            return subprocess.CompletedProcess(argv, 1, "not started")
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
        return subprocess.run(
            ["nsenter", f"--target={init}", *spaces, "--", *argv],
            stdin=None if stdin is not None else subprocess.DEVNULL,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            env={"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"},
            check=False,
        )


def _files(directory: Path) -> Iterator[Path]:
    for parent, directories, files in os.walk(directory):
        for name in (*files, *(it for it in directories if (Path(parent) / it).is_symlink())):
            yield Path(parent) / name
