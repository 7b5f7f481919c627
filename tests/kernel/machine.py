"""One guest: QEMU without KVM, the machine's root shared read-only, one command run in it, what it leaves.

Decides how a guest is wired and how it is told what to run. It does not decide what it boots (`image`), what it runs
(`suite`), nor how long it may (`__main__`). Nothing in a guest reaches the machine but what it writes into its
directory for results; it has no network.
"""

from __future__ import annotations

import shlex
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fabric.process import Process, spawn
from tests.kernel.image import Image

TREE = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).resolve().with_name("guest")
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"  # of Debian 12's qemu-system-common
MEMORY = "2G"  # half of it may be files
# An emulator translates code for the address that it is at: programs that are at other addresses each time are
# translated each time, which takes four times as long as to run them. The rest is work that no test looks at.
KERNEL_OPTIONS = "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off norandmaps init_on_alloc=0 apparmor=0"
PROCESSOR = "max,-la57,-cx16"  # Linux 6.12 does not boot with these two under QEMU 7.2


class Guest:
    """Runs `command` in the tree of the booted `image`, from entering to leaving. `results` is /run/results there.

    After `limit_s` the command is interrupted; whoever waits for the guest gives it some more to boot and to end.
    """

    def __init__(self, image: Image, command: Sequence[str], results: Path, limit_s: float) -> None:
        self._image, self._results = image, results
        keep = [str(place) for place in (TREE, Path(sys.prefix)) if place.is_relative_to("/tmp")]
        (results / "parameters").write_text(
            f"tree={shlex.quote(str(TREE))}\nmodules={shlex.quote(str(image.modules))}\nlimit={limit_s:.0f}\n"
            f"keep=({shlex.join(keep)})\ncommand=({shlex.join(command)})\n"
        )
        (results / "guest").symlink_to(GUEST)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for tag, source in (("root", Path("/")), ("results", self._results)):
                stack.callback(self._share(source, place / tag).kill)
            self._qemu = spawn("qemu", self._command(place), log_path=self._results / "qemu")
            stack.callback(self._qemu.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def running(self) -> bool:
        return self._qemu.running()

    @property
    def status(self) -> int | None:
        """The command's; None: it has not ended yet, or the guest did not get so far."""
        file = self._results / "status"
        return int(file.read_text()) if file.exists() else None

    def console(self) -> str:
        """All that kernel and command have said; where there was no kernel, what QEMU has."""
        files = [self._results / name for name in ("console", "qemu")]
        return "\n".join(file.read_text(errors="replace") for file in files if file.exists())

    def _share(self, source: Path, path: Path) -> Process:
        """virtiofsd for `source`, whose socket answers from now on. The machine's root is read-only to it."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(1)
            number = listening.fileno()
            options = ("-o", f"source={source}", "-o", "sandbox=chroot", "-o", "cache=always")
            command = [VIRTIOFSD, f"--fd={number}", *options]
            if source == Path("/"):
                read_only = 'mount -o remount,bind,ro / && exec "$@"'
                command = ["unshare", "--mount", "sh", "-c", read_only, "sh", *command]
            return spawn("virtiofsd", command, log_path=self._results / f"virtiofsd-{path.name}", pass_fds=[number])

    def _command(self, sockets: Path) -> list[str]:
        shares = []
        for path in sorted(sockets.iterdir()):
            shares += ["-chardev", f"socket,id={path.name},path={path}"]
            shares += ["-device", f"vhost-user-fs-pci,chardev={path.name},tag={path.name}"]
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none"),
            *("-machine", "q35,accel=tcg", "-cpu", PROCESSOR, "-smp", "1", "-m", MEMORY),
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on", "-numa", "node,memdev=memory"),
            *shares,
            *("-serial", f"file:{self._results / 'console'}"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs)),
            *("-append", KERNEL_OPTIONS),
        ]
