"""What `bgpd doctor` can say of BPF on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bgpd.datapath import features, libbpf, links
from bgpd.policy import filters, parents
from tests.bpf.conftest import PROGRAM_S
from tests.bpf.source import ROOT


def test_this_machine_can_do_everything(directory: Path) -> None:
    """Or the other tests here could not have run. Looking changes nothing."""
    facts = list(features.probe(directory))
    assert [fact for fact in facts if not fact.ok] == []
    names = {"libbpf", "bpffs", "capabilities", "lpm map", "lpm batches", "socket filter", "kernel btf"}
    assert {fact.what for fact in facts} == names
    assert not directory.exists()


def test_a_missing_bpffs_is_one_fact_of_several(bpffs: Path, tmp_path: Path) -> None:
    """The rest is told all the same."""
    bad = [fact for fact in features.probe(tmp_path / "bgpd") if not fact.ok]
    assert [(fact.what, fact.needed) for fact in bad] == [("bpffs", True)]
    assert f"mount -t bpf bpf {tmp_path}" in bad[0].text


def test_without_privileges_it_says_what_it_could_not_ask(directory: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bgpd.datapath import features\n"
        "for fact in features.probe(Path(sys.argv[1])): print(fact.what, fact.ok, fact.text)"
    )
    without = f"-cap_{libbpf.CAP_BPF},-cap_{libbpf.CAP_SYS_ADMIN}"
    command = ["setpriv", f"--bounding-set={without}", sys.executable, "-c", program, str(directory)]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=PROGRAM_S).stdout
    *others, last = said.splitlines()
    assert last.startswith("capabilities False Operation not permitted: CAP_BPF is missing")
    assert all(" True " in line for line in others)


def test_objects_load_where_the_kernel_does_not_tell_its_own_types(directory: Path) -> None:
    """It is said, and does no harm."""
    program = (
        "import sys; from pathlib import Path\n"
        "from bgpd.datapath import features, loader\n"
        "from bgpd.policy import parents\n"
        "place = Path(sys.argv[1])\n"
        "print(*(fact.text for fact in features.probe(place) if not fact.ok and not fact.needed))\n"
        "for name in ('masq', 'policy'): loader.install(loader.shipped(name), place)\n"
        "print(*parents.install(place).programs)"
    )
    hidden = f'mount -t tmpfs none {features.BTF.parent} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", hidden, "sh", sys.executable, "-c", program, str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stderr
    said, loaded = done.stdout.splitlines()
    assert said == f"no {features.BTF} (CONFIG_DEBUG_INFO_BTF); the objects shipped here do without"
    assert "macvlan_ingress" in loaded


def test_how_programs_get_to_parents_is_told_as_it_is_done(directory: Path) -> None:
    """And what a newer kernel would add: its number stands where something is missing, and nowhere else."""
    facts = [features.ring_buffer(), features.tcx(), features.sender_netns()]
    assert facts[0].ok and not any(fact.needed for fact in facts if not fact.ok)
    assert [fact.ok for fact in facts[1:]] == [links.has_tcx(), features.can_tell_netns()]
    assert all(fact.ok != ("Linux 6." in fact.text) for fact in facts)
    installed = parents.install(directory)
    how = parents.ParentLinks if facts[1].ok else filters.ParentFilters
    assert type(filters.actuator(installed, directory)) is how
    assert facts[2].ok == ("macvlan_egress" in installed.programs)
