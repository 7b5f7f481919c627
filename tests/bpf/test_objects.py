"""The objects that the wheel ships are what the sources build, on any machine, and need little of a kernel."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from bgpd.datapath import loader
from tests.bpf.source import ROOT, Source

OBJECTS = sorted(loader.OBJECTS.glob("*.o"))


def test_every_source_has_its_object_and_no_object_is_left_over() -> None:
    sources = [path.name.removesuffix(".bpf.c") for path in sorted((ROOT / "bpf").glob("*.bpf.c"))]
    assert [path.stem for path in OBJECTS] == sources
    assert sources


@pytest.mark.parametrize("file", OBJECTS, ids=lambda file: file.name)
def test_an_object_is_built_again_byte_for_byte(tmp_path: Path, file: Path) -> None:
    """In another directory. If this fails, `make -C bpf` and commit what it made."""
    assert Source(tmp_path).build(file.stem).read_bytes() == file.read_bytes()


def test_make_check_accepts_the_tree_and_tells_a_source_that_differs(tmp_path: Path) -> None:
    """What a developer runs before committing."""
    source = Source(tmp_path)
    objects = f"OUT={loader.OBJECTS}"
    source.make(objects, "check")
    source.replace("masq.bpf.c", "verdict != MASQ_LISTED", "verdict == MASQ_LISTED")
    with pytest.raises(subprocess.CalledProcessError):
        source.make(objects, "check")
    source.replace("masq.bpf.c", "verdict == MASQ_LISTED", "verdict  !=  MASQ_LISTED")
    with pytest.raises(subprocess.CalledProcessError):
        source.make(objects, "check")


@pytest.mark.parametrize("file", OBJECTS, ids=lambda file: file.name)
def test_an_object_needs_no_type_information_of_the_kernel(tmp_path: Path, file: Path) -> None:
    """No CO-RE relocation in it: a kernel built without BTF loads it as well."""
    objcopy = shutil.which("llvm-objcopy-16")
    if objcopy is None:
        pytest.skip("not installed: llvm-objcopy-16")
    section = tmp_path / "btf_ext"
    subprocess.run([objcopy, f"--dump-section=.BTF.ext={section}", file, "/dev/null"], check=True)
    header = struct.unpack_from("<HBBIIIIIII", section.read_bytes())  # struct btf_ext_header
    assert header[0] == 0xEB9F  # BTF_MAGIC
    assert header[-1] == 0, "core_relo_len"
