"""`systemd/install` and `systemd/uninstall`, run into a directory: what is there afterwards, and what is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bgpd
from bgpd.cni.publish import PROGRAMS

SOURCE = Path(__file__).resolve().parents[2]
LIMIT_S = 600.0  # the packages may have to come over a slow network
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


def run(*argv: str | Path, status: int = 0, root: Path | None = None) -> str:
    """The output of a command that must end with `status`."""
    environment = dict(os.environ, **({"DESTDIR": str(root)} if root else {}))
    out = subprocess.PIPE
    done = subprocess.run(
        argv, stdout=out, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S, env=environment, check=False
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def install(root: Path, wheels: Path, *options: str | Path, status: int = 0) -> str:
    command = (SOURCE / "systemd/install", "--python", PYTHON, "--root", root, "--find-links", wheels)
    return run(*command, *options, status=status)


def everything(root: Path) -> list[Path]:
    """Every file and link under `root`."""
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_symlink() or not path.is_dir())


def releases(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "opt/bgpd/releases").iterdir())


def current(root: Path) -> str:
    return (root / "opt/bgpd/current").resolve().name


@pytest.fixture(scope="session")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with one installation in it; tests that use it leave it as it is."""
    root = tmp_path_factory.mktemp("installed")
    install(root, wheels)
    return root


def test_what_an_installation_holds(installed: Path) -> None:
    """Commands, units, user, directories and the example configuration are in their places."""
    for path in (
        "opt/bgpd/current/bin/bgpd",
        "opt/bgpd/current/bin/exabgp",
        "etc/systemd/system/bgpd.service",
        "etc/systemd/system/bgpd-bfd.service",
        "etc/systemd/system/bgpd-speaker.service",
        "etc/sysusers.d/bgpd.conf",
        "etc/tmpfiles.d/bgpd.conf",
        "etc/bgpd/bgpd.yaml",
    ):
        assert (installed / path).is_file(), path
    assert releases(installed) == [f"{bgpd.__version__}-1"]
    assert (installed / "etc/bgpd/bgpd.yaml").read_text() == (SOURCE / "config/bgpd.yaml").read_text()


def test_the_installed_commands_run(installed: Path) -> None:
    """`bgpd` on the PATH is this version, and ExaBGP beside it starts."""
    assert bgpd.__version__ in run(installed / "usr/local/bin/bgpd", "version")
    assert "5.0" in run(installed / "opt/bgpd/current/bin/exabgp", "version")


def test_paths_that_outlive_an_upgrade(installed: Path) -> None:
    """`bgpd` names itself by way of `current`, for its paths go into ExaBGP's configuration; ExaBGP stays with
    the release it was started from."""
    opt = installed / "opt/bgpd"
    scripts = opt / "current/bin"
    assert (scripts / "bgpd").read_text().startswith(f"#!{opt}/current/bin/python")
    assert (scripts / "exabgp").read_text().startswith(f"#!{opt}/releases/{current(installed)}/bin/python")
    said = run(scripts / "python", "-I", "-c", "import bgpd.bgp.bridge as bridge; print(bridge.__file__)")
    assert said.startswith(f"{opt}/current/")


def test_an_upgrade_keeps_the_release_before(tmp_path: Path, wheels: Path) -> None:
    """Each installation is a release of its own; the one before stays, older ones go, and so does half of one."""
    install(tmp_path, wheels)
    half = tmp_path / f"opt/bgpd/releases/{bgpd.__version__}-7"
    half.mkdir()
    said = install(tmp_path, wheels)
    assert not half.exists()
    assert releases(tmp_path) == [f"{bgpd.__version__}-1", f"{bgpd.__version__}-8"]
    assert "the speaker need not be restarted" in said
    install(tmp_path, wheels)
    assert releases(tmp_path) == [f"{bgpd.__version__}-8", f"{bgpd.__version__}-9"]
    assert current(tmp_path) == f"{bgpd.__version__}-9"


def test_a_changed_bridge_wants_the_speaker_restarted(tmp_path: Path, wheels: Path) -> None:
    """As long as the running speaker lacks what an upgrade brought, every upgrade says so, and what to do."""
    install(tmp_path, wheels)
    (parts,) = (tmp_path / "opt/bgpd/current/lib").glob("python3*/site-packages/bgpd/bgp")
    (parts / "bridge.py").write_text("# an older one\n")
    # The process to look for is known by its command line, which is all of a speaker that is needed here.
    argv = (sys.executable, "-c", "input()", parts.resolve() / "steady.py")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as speaker:
        for _ in range(2):
            said = install(tmp_path, wheels)
            assert f"the speaker is still of {bgpd.__version__}-1 (its bridge.py changed)" in said
            assert "systemctl kill" in said
        speaker.communicate(b"\n")
    assert releases(tmp_path) == [f"{bgpd.__version__}-{number}" for number in (1, 2, 3)]


def test_a_failed_upgrade_changes_nothing(installed: Path, wheels: Path, tmp_path: Path) -> None:
    """When a package cannot be had, the installation in use stays what it was."""
    before = everything(installed)
    empty = tmp_path / "empty"
    empty.mkdir()
    said = install(installed, empty, status=1)
    assert re.search(r"not installed; releases/\S+ is still in use", said)
    assert everything(installed) == before


def test_a_wheel_instead_of_the_source(tmp_path: Path, wheels: Path) -> None:
    """`--wheel` installs that file, under its own version, without building anything."""
    (wheel,) = wheels.glob("bgpd-*.whl")
    install(tmp_path, wheels, "--wheel", wheel)
    assert current(tmp_path) == f"{bgpd.__version__}-1"


def test_the_configuration_is_the_operators(tmp_path: Path, wheels: Path) -> None:
    """An installation does not overwrite a configuration, and --keep-config leaves it behind."""
    configuration = tmp_path / "etc/bgpd/bgpd.yaml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("# mine\n")
    install(tmp_path, wheels)
    assert configuration.read_text() == "# mine\n"
    run(SOURCE / "systemd/uninstall", "--keep-config", root=tmp_path)
    assert everything(tmp_path) == [Path("etc/bgpd/bgpd.yaml")]


def test_uninstalling_leaves_nothing(tmp_path: Path, wheels: Path) -> None:
    """After an installation, an upgrade and drop-ins of the operator's, no file is left; again is no error."""
    install(tmp_path, wheels)
    install(tmp_path, wheels)
    dropin = tmp_path / "etc/systemd/system/bgpd.service.d/override.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Service]\nWatchdogSec=60\n")
    for _ in range(2):
        run(SOURCE / "systemd/uninstall", "--root", tmp_path)
        assert everything(tmp_path) == []


def test_what_lets_pods_go_stays(tmp_path: Path) -> None:
    """The plugin goes, but not the script that stands in its place; how to remove that is said."""
    plugin = tmp_path / "opt/cni/bin/bgpd-cni"
    plugin.parent.mkdir(parents=True)
    plugin.write_bytes(b"\x7fELF")
    run(SOURCE / "systemd/uninstall", "--root", tmp_path)
    assert not plugin.exists()
    plugin.write_bytes((PROGRAMS / "uninstalled.sh").read_bytes())
    assert f"rm {plugin}" in run(SOURCE / "systemd/uninstall", "--root", tmp_path)
    assert plugin.exists()


@pytest.mark.parametrize("script", ["install", "uninstall"])
@pytest.mark.parametrize("wrong", [["--nonsense"], ["--root"]], ids=["unknown option", "no value"])
def test_a_wrong_option_is_named(script: str, wrong: list[str]) -> None:
    """A wrong command line changes nothing, says what is wrong and shows what is right."""
    said = run(SOURCE / "systemd" / script, *wrong, status=2)
    assert wrong[0] in said
    assert "Usage:" in said
