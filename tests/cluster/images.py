"""The image of the tests' pods, made by hand: there is no registry. A docker-archive, as `docker save` writes one.

There is one static program in it, which is server and client. The sandbox is of the same image: without anything to
serve, the program only waits until it is told to end.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Final

IMAGE: Final = "bgpd.test/pod:1"
PROGRAM: Final = "podserver"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(file: Path, program: Path, machine: str) -> None:
    """The archive, with `program` as what a container runs unless it is told otherwise."""
    layer = _tar({f"bin/{PROGRAM}": program.read_bytes()}, 0o755)
    config = {
        "architecture": _MACHINES[machine],
        "os": "linux",
        "config": {"Entrypoint": [f"/bin/{PROGRAM}"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    contents = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    file.write_bytes(_tar(contents, 0o644))


def _tar(contents: dict[str, bytes], mode: int) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in contents.items():
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(content), mode
            archive.addfile(about, io.BytesIO(content))
    return written.getvalue()
