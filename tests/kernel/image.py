"""What a guest boots: Debian's newest cloud kernel of a suite, unpacked from its package and never installed.

Decides which package that is, where it is kept, and what the initramfs has: busybox, `init`, and the modules that
lead to the machine's files. apt is asked with lists and sources of its own, so that the machine's stay as they are,
and with the machine's proxies. A kernel is kept, and used when Debian cannot be reached.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.build import cache_root

ARCHIVE = "http://deb.debian.org"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
METAPACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/usr/bin/busybox")
INIT = Path(__file__).with_name("init")
# In this order, each after what it needs; what a kernel has built in is left out.
MODULES = ("virtio_pci", "virtiofs", "overlay")


class ImageError(Exception):
    """There is no such kernel to be had; the message says what failed."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """`name` as reports have it; the newest that `suite` in `archive` of Debian has is meant."""

    name: str
    archive: str
    suite: str


KERNELS = (
    Kernel("linux-6.1", "debian-security", "bookworm-security"),
    Kernel("linux-6.12", "debian", "bookworm-backports"),
)


@dataclass(frozen=True, slots=True)
class Image:
    """`directory` has it all. `package` names the kernel to the last digit."""

    package: str
    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.directory / "initramfs"

    @property
    def modules(self) -> Path:
        return self.directory / "root/lib/modules"


def image(kernel: Kernel) -> Image:
    """Downloads and builds what is missing. ImageError: it cannot be had, and was never had before."""
    kept = cache_root() / "kernels" / _recipe() / kernel.suite
    kept.mkdir(parents=True, exist_ok=True)
    apt = _Apt(kernel)
    try:
        package = apt.newest()
        if not (kept / package).is_dir():
            _build(apt, package, kept)
    except ImageError as error:
        known = sorted(kept.glob("linux-image-*"), key=lambda path: path.stat().st_mtime)
        if not known:
            raise
        package = known[-1].name
        print(f"{kernel.name}: {error}\n{kernel.name}: using {package}, which was downloaded before", flush=True)
    return Image(package, kept / package)


class _Apt:
    """apt, as if one suite were all that it knew."""

    def __init__(self, kernel: Kernel) -> None:
        self.source = f"{ARCHIVE}/{kernel.archive} {kernel.suite}"
        self._directory = cache_root() / "kernels/apt" / kernel.suite
        for place in ("lists/partial", "cache/archives/partial"):
            (self._directory / place).mkdir(parents=True, exist_ok=True)
        sources = self._directory / "sources.list"
        sources.write_text(f"deb [signed-by={KEYRING}] {self.source} main\n")
        self._options = (
            *("-o", f"Dir::Etc::SourceList={sources}"),
            *("-o", "Dir::Etc::SourceParts=/dev/null"),
            *("-o", f"Dir::State::Lists={self._directory / 'lists'}"),
            *("-o", f"Dir::Cache={self._directory / 'cache'}"),
            *("-o", "APT::Sandbox::User=root"),
        )

    def newest(self) -> str:
        """The package that the metapackage depends on. ImageError: apt has none, or cannot be asked."""
        _run(["apt-get", *self._options, "-q", "update", "--error-on=any"])
        shown = _run(["apt-cache", *self._options, "depends", "--important", METAPACKAGE])
        depends = [line.split()[-1] for line in shown.splitlines() if line.split()[:1] == ["Depends:"]]
        if not depends:
            raise ImageError(f"{METAPACKAGE} of {self.source} names no kernel")
        return depends[0]

    def download(self, package: str, to: Path) -> Path:
        _run(["apt-get", *self._options, "-q", "download", package], to)
        return next(to.glob("*.deb"))


def _build(apt: _Apt, package: str, kept: Path) -> None:
    """Appears whole or not at all."""
    print(f"downloading {package} of {apt.source}", flush=True)
    with tempfile.TemporaryDirectory(dir=kept) as text:
        made, root = Path(text) / package, Path(text) / package / "root"
        root.mkdir(parents=True)
        _run(["dpkg-deb", "-x", str(apt.download(package, Path(text))), str(root)])
        release = next((root / "lib/modules").iterdir()).name
        _run(["depmod", "-b", str(root), release])
        shutil.copy(root / f"boot/vmlinuz-{release}", made / "vmlinuz")
        files = Path(text) / "initramfs"
        (files / "bin").mkdir(parents=True)
        (files / "modules").mkdir()
        shutil.copy(BUSYBOX, files / "bin/busybox")
        shutil.copy(INIT, files / "init")
        for number, module in enumerate(_modules(root, release)):
            data = module.read_bytes()
            plain = lzma.decompress(data) if module.suffix == ".xz" else data
            (files / f"modules/{number:02}-{module.name.removesuffix('.xz')}").write_bytes(plain)
        names = "\n".join(str(path.relative_to(files)) for path in sorted(files.rglob("*")))
        packed = _run(["cpio", "--quiet", "-o", "-H", "newc", "-F", str(made / "initramfs")], files, names)
        assert not packed, packed
        made.rename(kept / package)


def _modules(root: Path, release: str) -> Iterator[Path]:
    """What MODULES come to in this kernel, each once, in the order of loading."""
    seen = set()
    for name in MODULES:
        shown = _run(["modprobe", "-d", str(root), "-S", release, "--show-depends", name])
        for line in shown.splitlines():
            verb, _, rest = line.partition(" ")
            if verb == "insmod" and (path := rest.split()[0]) not in seen:
                seen.add(path)
                yield Path(path)


def _recipe() -> str:
    """Changes with whatever is built in here, so that an older one is not taken for it."""
    return hashlib.sha256(Path(__file__).read_bytes() + INIT.read_bytes()).hexdigest()[:16]


def _run(command: Sequence[str], directory: Path | None = None, text: str | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise ImageError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise ImageError(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout
