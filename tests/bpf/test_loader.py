"""An object in the kernel: pinned, adopted by whoever starts next, replaced when it is another one."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from bgpd.datapath import layout, libbpf, loader, pins
from bgpd.datapath.layout import MAPS, PRESENT
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.loader import Installed
from bgpd.model.lpm import LpmKey
from bgpd.model.prefix import parse_prefix
from bgpd.policy import ipvlans, parents, podhooks
from tests.bpf.conftest import PROGRAM_S
from tests.bpf.packets import packet
from tests.bpf.program import run
from tests.bpf.source import ROOT, Source

ENTRY = LpmKey.of(parse_prefix("192.0.2.0/24"))
INSIDE = parse_prefix("192.0.2.7/32").network_address
KEEP, MASQUERADE = 0, 1


def install(directory: Path, file: Path | None = None) -> Installed:
    return loader.install(file or loader.shipped("masq"), directory)


def pinned(directory: Path) -> dict[str, int]:
    """The id of every map that is pinned."""
    found = {name: pins.open_map(directory / name, spec) for name, spec in MAPS.items()}
    return {name: each.id for name, each in found.items() if each is not None}


def pinned_program(directory: Path) -> int:
    """Its id."""
    fd = pins.get(directory / "masquerade", "prog")
    assert fd is not None
    try:
        return libbpf.program_info(fd)[2]
    finally:
        os.close(fd)


def test_objects_are_pinned_whole(directory: Path) -> None:
    """Between them every map that the layout knows, and their programs; nothing else."""
    masq, policy = install(directory), loader.install(loader.shipped("policy"), directory)
    macvlan = parents.install(directory)  # of its two programs for egress the one that this kernel can have
    ipvlan = parents.install(directory, ipvlans.KIND)
    programs = {*masq.programs, *policy.programs, *macvlan.programs, *ipvlan.programs}
    assert {path.name for path in directory.iterdir()} == {*MAPS, *programs}
    maps = {**masq.maps, **policy.maps, **macvlan.maps, **ipvlan.maps}
    assert pinned(directory) == {name: each.id for name, each in maps.items()}
    assert programs == {
        "masquerade",
        *("policy", "policy_reply", "policy_bridge", "policy_astray"),
        *(program.pin.name for program in parents.programs(macvlan).values()),
        *(program.pin.name for program in parents.programs(ipvlan, ipvlans.KIND).values()),
        parents.program(ipvlan, podhooks.FILTER).pin.name,
    }
    assert masq.programs["masquerade"].replaced


def test_it_is_installed_once_however_many_ask(directory: Path) -> None:
    """At the daemon's start every reconcile loop does, from a thread of its own."""
    told: list[Installed] = []
    datapath = loader.Datapath("policy", directory, told.append)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(datapath.installed) for _ in range(4)]
    assert {id(each.result()) for each in asked} == {id(each) for each in told}
    assert len(told) == 1


def test_pins_survive_the_process_and_are_adopted_by_the_next(directory: Path) -> None:
    """The same program and maps, entries included: nothing that points at them needs to be touched."""
    program = (
        "import sys; from pathlib import Path; from bgpd.datapath import loader\n"
        "installed = loader.install(loader.shipped('masq'), Path(sys.argv[1]))\n"
        f"installed.maps['ipmasq_v4'].update({{{bytes(ENTRY)!r}: {PRESENT!r}}})"
    )
    subprocess.run([sys.executable, "-c", program, directory], cwd=ROOT, check=True, timeout=60)
    before, number = pinned(directory), pinned_program(directory)
    assert run(directory / "masquerade", packet(INSIDE)).value == KEEP
    installed = install(directory)
    assert not installed.programs["masquerade"].replaced
    assert installed.programs["masquerade"].id == number
    assert (pinned(directory), pinned_program(directory)) == (before, number)
    assert set(installed.maps["ipmasq_v4"].entries()) == {ENTRY}


def test_another_program_replaces_the_pinned_one_and_keeps_its_maps(directory: Path, tmp_path: Path) -> None:
    """An upgrade: the list stays, the decision is the new one's."""
    before = install(directory)
    before.maps["ipmasq_v4"].update({ENTRY: PRESENT})
    source = Source(tmp_path)
    source.replace("masq.bpf.c", "return verdict != MASQ_LISTED;", "return verdict == MASQ_LISTED;")
    after = install(directory, source.build())
    assert after.programs["masquerade"].replaced
    assert after.programs["masquerade"].tag != before.programs["masquerade"].tag
    assert after.programs["masquerade"].id == pinned_program(directory) != before.programs["masquerade"].id
    assert {name: each.id for name, each in after.maps.items()} == {
        name: each.id for name, each in before.maps.items()
    }
    assert run(directory / "masquerade", packet(INSIDE)).value == MASQUERADE
    assert install(directory).programs["masquerade"].replaced, "and back"


def test_the_same_program_with_other_maps_is_replaced(directory: Path) -> None:
    """Its tag is the same, but it would ask a list that nobody writes any more."""
    install(directory)
    (directory / "ipmasq_v4").unlink()
    installed = install(directory)
    assert installed.programs["masquerade"].replaced
    installed.maps["ipmasq_v4"].update({ENTRY: PRESENT})
    assert run(directory / "masquerade", packet(INSIDE)).value == KEEP


def test_pins_that_somebody_removed_are_put_back(masq: Installed, directory: Path) -> None:
    """The very maps that the program uses, though another map has the name meanwhile, and the very program."""
    before, program = pinned(directory), pinned_program(directory)
    (directory / "ipmasq_v4").unlink()
    (directory / "ipmasq_v6").unlink()
    pins.open_or_create(directory / "ipmasq_v6", replace(MAPS["ipmasq_v6"], max_entries=1))
    (directory / "masquerade").unlink()
    for _ in range(2):
        loader.restore(masq, directory)
        assert (pinned(directory), pinned_program(directory)) == (before, program)
    shutil.rmtree(directory)
    loader.restore(masq, directory)
    assert (pinned(directory), pinned_program(directory)) == (before, program)


def test_a_map_of_another_layout_is_replaced_and_the_others_are_used_on(directory: Path) -> None:
    """As a release left it that had other layouts."""
    first = pins.open_or_create(directory / "ipmasq_v4", MAPS["ipmasq_v4"])
    other = pins.open_or_create(directory / "ipmasq_hits_v6", replace(MAPS["ipmasq_hits_v6"], max_entries=64))
    first.update({ENTRY: PRESENT})
    installed = install(directory)
    assert installed.renewed == {"ipmasq_hits_v6"}
    assert pinned(directory) == {name: each.id for name, each in installed.maps.items()}
    assert other.id not in pinned(directory).values()
    assert installed.maps["ipmasq_v4"].id == first.id
    assert install(directory).renewed == frozenset()


def test_maps_that_only_other_releases_have_go_and_nothing_else(directory: Path) -> None:
    """What is no map stays, and a map that was not made with the name that it has there, or with one of a program."""
    installed = install(directory)
    gone = {"ipmasq_v5", "policy_sets_by_pod"}
    for name in (*gone, "policy"):
        pins.open_or_create(directory / name, replace(MAPS["ipmasq_v4"], name=name))
    pins.open_or_create(directory / "policy_other", MAPS["ipmasq_v4"])
    pins.put(installed.programs["masquerade"].fd, directory / "masq_before")
    assert install(directory).dropped == gone
    names = {*installed.maps, "masquerade", "masq_before", "policy", "policy_other"}
    assert {path.name for path in directory.iterdir()} == names
    assert install(directory).dropped == frozenset()


def test_no_map_goes_from_a_directory_where_others_pin(directory: Path) -> None:
    """What one is called there says nothing of whose it is."""
    for name in ("policy_sets", "elsewhere"):
        pins.open_or_create(directory / name, replace(MAPS["ipmasq_v4"], name=name))
    installed = install(directory)
    assert installed.dropped == frozenset()
    assert {path.name for path in directory.iterdir()} == {*installed.maps, "masquerade", "policy_sets", "elsewhere"}


@pytest.mark.parametrize("is_gone", [False, True], ids=["of another layout", "gone"])
def test_maps_that_belong_together_are_replaced_together_and_what_tells_last(directory: Path, is_gone: bool) -> None:
    """Numbers in the one mean nothing to another's. Killed before the last, the next one sees it as it was."""
    before = loader.install(loader.shipped("policy"), directory)
    together = layout.TOGETHER[0]
    pin, other = directory / "policy_rules", replace(MAPS["policy_rules"], max_entries=64)
    pin.unlink()
    if not is_gone:
        pins.open_or_create(pin, other)
    with INotify() as watch:
        watch.add_watch(directory, flags.MOVED_TO)
        after = loader.install(loader.shipped("policy"), directory)
        moved = [each.name for each in watch.read(timeout=0) if each.name in MAPS]
    assert set(moved) == together
    assert moved[-1] == "policy_rules"
    assert after.renewed == (together - {"policy_rules"} if is_gone else together)
    same = {name for name, each in after.maps.items() if each.id == before.maps[name].id}
    assert same == before.maps.keys() - together
    assert all(program.replaced for program in after.programs.values())


def test_an_object_of_another_abi_is_refused(directory: Path, tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.replace("include/bgpd/layout.h", "BGPD_ABI = 1,", "BGPD_ABI = 2,")
    file = source.build()
    with pytest.raises(DatapathError, match=rf"{file} has ABI 2, and this bgpd 1: .*install bgpd again"):
        install(directory, file)
    assert list(directory.iterdir()) == []


def test_an_object_with_another_map_is_refused(directory: Path, tmp_path: Path) -> None:
    """A layout that changed and an ABI that was forgotten."""
    source = Source(tmp_path)
    source.replace("include/bgpd/layout.h", "#define IPMASQ_ENTRIES 16384", "#define IPMASQ_ENTRIES 512")
    with pytest.raises(DatapathError, match="its map ipmasq_v4 is not the one that this bgpd knows"):
        install(directory, source.build())


def test_what_the_verifier_says_is_in_the_error(directory: Path, tmp_path: Path) -> None:
    """A program that reads what may be NULL: the message has the verifier's own words."""
    source = Source(tmp_path)
    source.replace("masq.bpf.c", "	if (counter)\n		__sync", "	__sync")
    with pytest.raises(DatapathError, match=r"loading .*masq\.o: .*map_value_or_null"):
        install(directory, source.build())
    assert list(directory.iterdir()) == []


def test_a_refusal_is_told_in_the_words_of_this_kernel(directory: Path, tmp_path: Path) -> None:
    """Shipped objects without the ends of their programs: that takes no compiler, so other kernels are asked too."""
    leave, idle = bytes((0x95, *bytes(7))), bytes((0xB7, *bytes(7)))  # linux/bpf.h: exit; r0 = 0
    for name in ("masq", "policy", "macvlan"):
        broken = tmp_path / f"{name}.o"
        broken.write_bytes(loader.shipped(name).read_bytes().replace(leave, idle))
        with pytest.raises(DatapathError, match=rf"loading .*{name}\.o: .*last insn is not an exit or jmp"):
            install(directory, broken)
    assert list(directory.iterdir()) == []


def test_a_missing_object_is_named(bpffs: Path) -> None:
    with pytest.raises(DatapathError, match=r"opening /nowhere/masq\.o: No such file"):
        install(bpffs, Path("/nowhere/masq.o"))


def test_nothing_is_left_open(directory: Path) -> None:
    """Installing a hundred times holds as many descriptors as installing once."""
    installed = install(directory)
    gc.collect()  # of tests before this one
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(100):
        installed = install(directory)
        loader.restore(installed, directory)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert libbpf.map_info(installed.maps["ipmasq_v4"].fd).id == installed.maps["ipmasq_v4"].id


def test_every_object_loads_with_what_the_unit_grants(directory: Path) -> None:
    """The verifier is stricter with a process that lacks CAP_PERFMON, and tests run as root with everything."""
    unit = (loader.OBJECTS.parents[2] / "systemd/bgpd.service").read_text()
    (granted,) = re.findall(r"^CapabilityBoundingSet=(.+)$", unit, re.MULTILINE)
    caps = ",".join(f"+{each.removeprefix('CAP_').lower()}" for each in granted.split())
    program = (
        "import sys; from pathlib import Path\n"
        "from bgpd.datapath import loader; from bgpd.policy import ipvlans, parents\n"
        "kinds = {each.object: each for each in (parents.MACVLAN, ipvlans.KIND)}\n"
        "for name in sys.argv[2:]:\n"
        "    place, known = Path(sys.argv[1]) / name, name in kinds\n"
        "    done = parents.install(place, kinds[name]) if known else loader.install(loader.shipped(name), place)\n"
        "    print(*done.programs)"
    )
    names = sorted(path.stem for path in loader.OBJECTS.glob("*.o"))
    command = ["setpriv", f"--bounding-set=-all,{caps}", sys.executable, "-c", program, str(directory), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stderr
    assert all(line.split() for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == len(names)
