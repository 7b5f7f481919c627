"""A network namespace of the lab as a whole machine: with a file system, processes and control groups of its own.

Decides what a container runtime and a kubelet, which believe that a machine is theirs, see of this one: the same
programs, but `/run`, `/etc`, `/var`, `/opt`, sysfs and bpffs of their own, and no process but theirs. So several fit
on one machine, whatever runs on that already. What they are and do is `kubelet`'s.

The first process of the machine is what everything hangs on: with it the kernel ends all others, wherever they have
put themselves, and takes all mounts away. It dies with the test. Only control groups outlive their processes; what a
test that was killed left of them goes at the start of the next machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tests.fabric.netns import PREFIX, Namespace
from tests.fabric.process import Process, poll, run, spawn

CGROUPS: Final = Path("/sys/fs/cgroup")
STARTED: Final = "the machine is up"
START_S: Final = 10.0
_OURS: Final = re.compile(rf"{PREFIX}-(\d+)-")
# Ours alone, whatever this machine has there. containerd's snapshots cannot lie on an overlay.
_OWN_DIRECTORIES: Final = (
    "/etc/cni",
    "/etc/kubernetes",
    "/opt/cni",
    "/var/lib/bgpd",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)
# Settings of the whole machine which a kubelet insists on.
_SHADOWED: Final = {
    "kernel/keys/root_maxbytes": 25000000,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
}
# The shell stays as the first process: its `wait` reaps every child that the others leave behind.
_FIRST_PROCESS: Final = r"""
set -e
own=$1
mount -t tmpfs -o mode=755 machine "$own"
for each in etc opt var; do
  mkdir -p "$own/$each/upper" "$own/$each/work"
  mount -t overlay -o "lowerdir=/$each,upperdir=$own/$each/upper,workdir=$own/$each/work" machine "/$each"
done
mount -t tmpfs -o mode=755 machine /run
for each in $2; do
  mkdir -p "$each"
  mount -t tmpfs -o mode=755 machine "$each"
done
mkdir "$own/cgroup" "$own/sysctl"
mount --rbind /sys/fs/cgroup "$own/cgroup"
mount -t sysfs sysfs /sys
mount --move "$own/cgroup" /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t proc proc /proc
for each in $3; do
  shadow=$own/sysctl/$(basename "${each%=*}")
  echo "${each#*=}" >"$shadow"
  mount --bind "$shadow" "/proc/sys/${each%=*}"
done
echo "$4"
sleep infinity &
wait
"""


class MachineProcess(Process):
    """A process of the machine. Ours is only nsenter, which waits for it and ends as it does."""

    @property
    def pid(self) -> int:
        """Of the process itself, as this machine counts."""
        return poll(partial(_child, self.popen.pid), START_S, lambda: f"{self.name} did not start")

    def signal(self, number: signal.Signals) -> None:
        if self.running():
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                os.kill(self.pid, number)


class Machine(Namespace):
    """`namespace` of a lab as a machine, from `start` to `stop`; what is run here runs in it.

    `first` is its first process, as this machine counts; `cgroup` is for whatever it puts into control groups.
    """

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace.lab, namespace.name)
        self.cgroup = f"/{self.netns_name}"
        self._own = namespace.lab.directory / f"{namespace.name}-machine"
        self.first = 0
        self._outer: Process | None = None
        self._started: list[Process] = []

    @property
    def root(self) -> Path:
        """Where this process sees the machine's files."""
        return Path(f"/proc/{self.first}/root")

    def start(self) -> None:
        """Raises `OSError` where there may be no control groups, and `TimeoutError` where no file systems."""
        sweep_cgroups()
        for hierarchy in hierarchies():
            _share_controllers(hierarchy)
            (hierarchy / self.netns_name).mkdir()
        self._own.mkdir()
        shadowed = " ".join(f"{key}={it}" for key, it in _SHADOWED.items() if Path("/proc/sys", key).exists())
        first = ["sh", "-c", _FIRST_PROCESS, "init", str(self._own), " ".join(_OWN_DIRECTORIES), shadowed, STARTED]
        unshare = ["unshare", "--mount", "--propagation", "private", "--ipc", "--pid", "--fork", "--kill-child"]
        self._outer = super().popen([*unshare, *first], name="machine")
        self._outer.wait_log(STARTED, START_S)
        first_of = _child(self._outer.pid)
        assert first_of is not None
        self.first = first_of

    def stop(self) -> None:
        """Ends every process of the machine. Once more does nothing."""
        if self._outer is not None:
            if self.first and self._outer.running():
                os.kill(self.first, signal.SIGKILL)
                self._outer.popen.wait(START_S)  # for the first process, and that for all others
            for each in (self._outer, *self._started):
                each.kill()
            self._outer = None
        _remove_cgroups(self.netns_name)

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return run(self._entering(argv), netns=self.path, check=check, stdin=stdin, timeout_s=timeout_s, env=env)

    def popen(
        self,
        argv: Sequence[str],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        label = name or Path(argv[0]).name
        log_path = self.lab.directory / f"{self.name}-{label}.log"
        entering = self._entering(argv)
        started = spawn(f"{self.name}/{label}", entering, log_path=log_path, netns=self.path, env=env, cwd=cwd)
        process = MachineProcess(started.name, started.popen, log_path)
        self._started.append(process)
        return self.lab.adopt(process)

    def _entering(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self.first}", "--mount", "--ipc", "--pid", "--", *argv]


@contextlib.contextmanager
def running_machine(namespace: Namespace) -> Iterator[Machine]:
    """The namespace as a machine; all that ran there is gone afterwards, whatever happened."""
    machine = Machine(namespace)
    try:
        machine.start()
        yield machine
    finally:
        machine.stop()


def sweep_cgroups() -> None:
    """Removes what tests left that no longer exist."""
    for hierarchy in hierarchies():
        for group in hierarchy.glob(f"{PREFIX}-*"):
            owner = _OURS.match(group.name)
            if owner is not None and not Path("/proc", owner.group(1)).exists():
                _remove_cgroups(group.name)


def lacking() -> str | None:
    """Why there can be no machine here although there can be network namespaces; the text of a skip."""
    locked = [str(each) for each in hierarchies() if not os.access(each, os.W_OK)]
    if locked:
        return f"control groups are read only: {', '.join(locked)}"
    if not hierarchies():
        return f"no control groups at {CGROUPS}"
    try:
        for hierarchy in hierarchies():
            _share_controllers(hierarchy)
    except OSError as error:  # a container whose processes are in what it takes for the root
        return f"control groups cannot be shared out: {error}"
    return None


def hierarchies() -> list[Path]:
    """The one of version 2, or those of version 1 and what is mounted beside them."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [each for each in CGROUPS.iterdir() if each.is_mount()] if CGROUPS.is_dir() else []


def _share_controllers(hierarchy: Path) -> None:
    """In version 2, a group has the controllers that its parent shares. It stays shared, which alone does nothing."""
    available = hierarchy / "cgroup.controllers"
    if available.exists() and hierarchy == CGROUPS:
        shared = " ".join(f"+{each}" for each in available.read_text().split())
        (hierarchy / "cgroup.subtree_control").write_text(shared)


def _remove_cgroups(name: str) -> None:
    """With all groups below."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name, topdown=False):
            Path(directory).rmdir()


def _child(parent: int) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return int(children[0]) if children else None
    return None
