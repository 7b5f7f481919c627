"""What is pinned: found again, refused if it is something else, replaced without a gap; and where one cannot pin."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from bgpd.datapath import libbpf, pins
from bgpd.datapath.layout import MAPS, PRESENT, MapSpec, MapType
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.loader import Installed
from bgpd.datapath.maps import Map
from bgpd.model.lpm import LpmKey
from bgpd.model.prefix import parse_prefix
from tests.bpf.conftest import PROGRAM_S
from tests.bpf.source import ROOT

SPEC = MAPS["ipmasq_v4"]
KEY = LpmKey.of(parse_prefix("192.0.2.0/24"))
RDONLY_PROG = 1 << 7  # BPF_F_RDONLY_PROG


def test_a_pinned_map_is_found_again_with_its_entries(directory: Path) -> None:
    """By whoever comes later: the first one has closed its own."""
    made = pins.open_or_create(directory / "list", SPEC)
    made.update({KEY: PRESENT})
    made.close()
    found = pins.open_or_create(directory / "list", SPEC)
    assert (found.id, found.entries()) == (made.id, {KEY: PRESENT})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(SPEC, type=MapType.HASH), "its type is hash, not lpm_trie"),
        (replace(SPEC, type=MapType.HASH, key_size=4), "its type is hash, not lpm_trie, its key_size is 4, not 8"),
        (replace(SPEC, key_size=20), "its key_size is 20, not 8"),
        (replace(SPEC, value_size=8), "its value_size is 8, not 1"),
        (replace(SPEC, max_entries=511), "its max_entries is 511, not 16384"),
        (replace(SPEC, flags=SPEC.flags | RDONLY_PROG), "its flags is 129, not 1"),
    ],
)
def test_another_map_is_refused_by_name_place_and_difference(directory: Path, other: MapSpec, said: str) -> None:
    """And left where it is."""
    path = directory / "ipmasq_v4"
    foreign = pins.open_or_create(path, other)
    with pytest.raises(DatapathError) as caught:
        pins.open_or_create(path, SPEC)
    assert str(caught.value) == (
        f"{path} is another map than ipmasq_v4: {said}; stop what uses it and remove it: rm {path}"
    )
    still = pins.open_map(path, other)
    assert still is not None
    assert still.id == foreign.id


def test_flags_of_a_map_that_others_made_may_differ(directory: Path) -> None:
    """Newer releases of Cilium let their programs only read it."""
    pins.open_or_create(directory / "list", replace(SPEC, flags=SPEC.flags | RDONLY_PROG))
    found = pins.open_or_create(directory / "list", SPEC, exact=False)
    assert found.spec.flags == SPEC.flags | RDONLY_PROG


def test_a_program_is_no_map(masq: Installed) -> None:
    """Reading its properties as a map's would give numbers, and wrong ones."""
    pin = masq.programs["masquerade"].pin
    with pytest.raises(DatapathError, match=f"{pin} is not a BPF map; remove it if nobody uses it: rm {pin}"):
        pins.open_map(pin, SPEC)
    with pytest.raises(DatapathError, match="is not a BPF prog"):
        pins.get(pin.with_name("ipmasq_v4"), "prog")


def test_a_directory_in_a_map_s_place_is_named_with_the_remedy(directory: Path) -> None:
    """The kernel says that permission is denied, and root has it. The remedy helps."""
    pin = directory / "ipmasq_v4"
    pin.mkdir(parents=True)
    (pin / "inside").mkdir()
    for kind in ("map", "prog"):
        with pytest.raises(DatapathError) as caught:
            pins.get(pin, kind)
        said, _, command = str(caught.value).partition(": ")
        assert said == f"{pin} is not a BPF {kind}; remove it if nobody uses it"
    subprocess.run(command.split(), check=True)
    assert pins.open_or_create(pin, SPEC).entries() == {}


def test_a_pin_that_is_replaced_is_never_missing(directory: Path) -> None:
    """The name is never deleted: the new one moves over it."""
    old, new = pins.open_or_create(directory / "list", SPEC), Map.create(SPEC)
    with INotify() as watch:
        watch.add_watch(directory, flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO)
        pins.substitute(new.fd, directory / "list")
        seen = [(each.name, flags(each.mask)) for each in watch.read(timeout=0)]
    assert seen == [("list_new", flags.CREATE), ("list_new", flags.MOVED_FROM), ("list", flags.MOVED_TO)]
    found = pins.open_map(directory / "list", SPEC)
    assert found is not None
    assert found.id == new.id != old.id


def test_what_a_killed_one_left_half_replaced_is_in_nobody_s_way(directory: Path) -> None:
    old, new = pins.open_or_create(directory / "list", SPEC), Map.create(SPEC)
    pins.put(old.fd, directory / "list_new")
    pins.substitute(new.fd, directory / "list")
    assert [path.name for path in directory.iterdir()] == ["list"]


def test_where_there_is_no_bpffs_the_remedy_is_to_mount_it(bpffs: Path, tmp_path: Path) -> None:
    with pytest.raises(DatapathError) as caught:
        pins.open_or_create(tmp_path / "bgpd" / "list", SPEC)
    assert str(caught.value) == f"{tmp_path}/bgpd: there is no bpffs; mount -t bpf bpf {tmp_path}"
    assert not (tmp_path / "bgpd").exists()


@pytest.fixture
def read_only(directory: Path, tmp_path: Path) -> Iterator[Path]:
    """The same bpffs, somewhere else, where nothing can be written."""
    pins.open_or_create(directory / "list", SPEC)
    place = tmp_path / "read-only"
    place.mkdir()
    subprocess.run(["mount", "--bind", directory, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_bpffs_mounted_read_only_is_named(read_only: Path) -> None:
    assert pins.open_map(read_only / "list", SPEC) is not None
    with pytest.raises(DatapathError, match=f"{read_only} cannot be written: mounted read-only, or not root?"):
        pins.open_or_create(read_only / "another", SPEC)


def test_without_cap_bpf_the_capability_is_named(directory: Path) -> None:
    """By a process that has everything else that root has."""
    pins.prepare(directory)
    program = (
        "import sys; from pathlib import Path; from bgpd.datapath import loader\n"
        "loader.install(loader.shipped('masq'), Path(sys.argv[1]))"
    )
    without = f"-cap_{libbpf.CAP_BPF},-cap_{libbpf.CAP_SYS_ADMIN}"
    command = ["setpriv", f"--bounding-set={without}", sys.executable, "-c", program, str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "Operation not permitted: CAP_BPF is missing (before Linux 5.8 CAP_SYS_ADMIN); run as root" in said
    assert list(directory.iterdir()) == []


def test_what_a_refusal_means_depends_on_who_asks_which_kernel() -> None:
    """EPERM has two causes and two remedies; other errors keep their words."""
    assert "CAP_BPF" in libbpf.explain(errno.EPERM, may=False, version=(4, 19))
    assert "LimitMEMLOCK=infinity" in libbpf.explain(errno.EPERM, may=True, version=(5, 10))
    assert libbpf.explain(errno.EPERM, may=True, version=(5, 11)) == "Operation not permitted"
    assert "MemoryMax=" in libbpf.explain(errno.ENOMEM, may=True, version=(6, 1))
    assert libbpf.explain(libbpf.ENOTSUPP, may=True, version=(6, 1)) == "Operation not supported by this kernel"
