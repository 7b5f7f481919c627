"""`systemd/install`, all three units and `systemd/uninstall` under a real systemd, as two ToRs see the node.

One node of the fabric is a machine with a systemd of its own. Every test finds the product installed and
healthy there, and leaves it so or uninstalled.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.fabric.netns import Lab, missing
from tests.fabric.node import node_manifest, two_tor_bgp
from tests.fabric.observe import BgpCapture
from tests.fabric.process import poll
from tests.fabric.test_lifecycle import never_without
from tests.fabric.topology import BOTH_FAMILIES, CABLE, TwoTorFabric
from tests.system.machine import Machine, lacking
from tests.system.test_install import PYTHON, SOURCE

DAEMON, SPEAKER, BFD = "bgpd.service", "bgpd-speaker.service", "bgpd-bfd.service"
INSTALL = ("/srv/bgpd/systemd/install", "--python", PYTHON, "--find-links", "/srv/wheels")
UNINSTALL = "/srv/bgpd/systemd/uninstall"
CONFIG = "/etc/bgpd/bgpd.yaml"
HEALTHY_S = 30.0
BFD_MS = 300  # a machine that is busy is not taken for dead
WATCHDOG = f"/run/systemd/system/{DAEMON}.d/watchdog.conf"


class Installed:
    """The product on the first node of the fabric."""

    def __init__(self, fabric: TwoTorFabric, machine: Machine) -> None:
        self.fabric, self.place, self.machine = fabric, fabric.nodes[0], machine

    def install(self) -> str:
        """The first one finds the operator's configuration and Node object in place, and so starts the units."""
        place = self.place
        source = {"manifests": "/etc/bgpd/manifests"}
        config = {"node": {"name": place.name}, "source": source, "bgp": two_tor_bgp(self.fabric, bfd={})}
        self.machine.write(CONFIG, yaml.safe_dump(config))
        node = node_manifest(place.name, list(place.pod_cidrs), place.address, place.address6)
        self.machine.write("/etc/bgpd/manifests/node.yaml", node)
        return self.machine.run(*INSTALL)

    def is_installed(self) -> bool:
        return "loaded" in self.machine.unit(DAEMON, "LoadState")

    def pid(self, unit: str) -> str:
        (found,) = self.machine.unit(unit, "MainPID")
        assert found != "0", f"{unit} does not run"
        return found

    def wait_healthy(self) -> None:
        def is_healthy() -> bool:
            with contextlib.suppress(AssertionError, json.JSONDecodeError):
                peers = json.loads(self.machine.run(*status))["peers"]
                return all(it["state"] == it["bfd"]["state"] == "up" for it in peers)
            return False

        status = ("bgpd", "status", "-o", "json")
        poll(is_healthy, HEALTHY_S, lambda: self.machine.run("journalctl", "--no-pager", "-n", "30"), every_s=0.2)
        for tor in self.fabric.tors:
            for prefix in self.place.pod_cidrs:
                tor.speaker.wait_route(prefix)


@pytest.fixture(scope="module")
def machine_and_fabric(wheels: Path) -> Iterator[tuple[TwoTorFabric, Machine]]:
    reason = lacking() or missing("bird")
    if reason is not None:
        pytest.skip(reason)
    with Lab() as lab:
        fabric = TwoTorFabric(lab, neighbor=replace(BOTH_FAMILIES, bfd_ms=BFD_MS)).start()
        machine = Machine(fabric.nodes[0].namespace, {"/srv/bgpd": SOURCE, "/srv/wheels": wheels}).start()
        yield fabric, machine
        machine.stop()


@pytest.fixture
def node(machine_and_fabric: tuple[TwoTorFabric, Machine]) -> Installed:
    installed = Installed(*machine_and_fabric)
    if not installed.is_installed():
        installed.install()
    installed.wait_healthy()
    return installed


@contextlib.contextmanager
def unnoticed(node: Installed) -> Iterator[None]:
    """Asserts that the ToRs hear nothing but keepalives, still have the routes, and neither helper was restarted."""
    others = node.pid(SPEAKER), node.pid(BFD)
    with BgpCapture(node.place.namespace, CABLE) as capture:
        yield
        node.wait_healthy()
    assert capture.dropped == 0
    assert capture.besides_keepalives() == []
    assert (node.pid(SPEAKER), node.pid(BFD)) == others


def test_all_units_run_after_the_installation(node: Installed) -> None:
    """Enabled for the next boot, active now, the helpers not as root; `systemctl status` says that all is well."""
    for unit in (DAEMON, SPEAKER, BFD):
        assert node.machine.unit(unit, "ActiveState", "UnitFileState", "Result") == ["active", "enabled", "success"]
    for unit, user in ((SPEAKER, "bgpd-speaker"), (BFD, "bgpd-bfd")):
        assert node.machine.run("stat", "-c", "%U", f"/proc/{node.pid(unit)}").strip() == user
    assert node.machine.unit(DAEMON, "StatusText") == ["ok"]


def test_reload(node: Installed) -> None:
    """`systemctl reload bgpd` takes over a changed file in the same process."""
    daemon = node.pid(DAEMON)
    with unnoticed(node):
        node.machine.run("sh", "-ec", f"echo 'log: {{level: debug}}' >>{CONFIG}")
        node.machine.run("systemctl", "reload", DAEMON)
        journal = ("journalctl", "--output=cat", f"_PID={daemon}")
        poll(lambda: "configuration loaded" in node.machine.run(*journal), 10, lambda: node.machine.run(*journal))
    assert node.pid(DAEMON) == daemon


def test_a_reload_of_a_file_with_faults_fails_and_changes_nothing(node: Installed) -> None:
    """`systemctl reload` says so, the journal says why, `systemctl status` goes on saying it until it is mended."""
    with unnoticed(node):
        node.machine.run("sh", "-ec", f"cp {CONFIG} {CONFIG}.good; echo 'nonsense: 1' >>{CONFIG}")
        node.machine.run("sh", "-c", f"! systemctl reload {DAEMON}")
        assert "nonsense" in node.machine.run("journalctl", "--output=cat", f"--unit={DAEMON}", "-n", "20")
        (text,) = node.machine.unit(DAEMON, "StatusText")
        assert text.startswith("configuration refused")
        node.machine.run("sh", "-ec", f"mv {CONFIG}.good {CONFIG}; systemctl reload {DAEMON}")
    assert node.machine.unit(DAEMON, "ActiveState", "StatusText") == ["active", "ok"]


def test_restart(node: Installed) -> None:
    """`systemctl restart bgpd` is nothing that the fabric hears of."""
    with unnoticed(node):
        node.machine.run("systemctl", "restart", DAEMON)


def other_daemon(node: Installed, signal: str) -> str:
    """Sends the daemon a signal, waits until systemd has started another, and returns the journal's end."""
    daemon = node.pid(DAEMON)
    with unnoticed(node):
        node.machine.run("kill", f"-{signal}", daemon)
        poll(lambda: node.machine.unit(DAEMON, "MainPID")[0] not in ("0", daemon), 20, lambda: "no other daemon")
    return node.machine.run("journalctl", "--no-pager", f"--unit={DAEMON}", "--lines=50")


ENTER = """
from pathlib import Path
from bgpd.netlink.enter import within
from bgpd.netlink.rtsocket import GROUP_TC, RtWatch
try:
    print(within(Path("/run/netns/pod"), lambda: Path("/proc/thread-self/net/dev").read_text().count(":")))
    RtWatch([GROUP_TC], everywhere=True).close()
except OSError as error:
    print(error.strerror)
"""


def test_pods_are_entered_with_the_addition_for_ipvlans_only(node: Installed) -> None:
    """By what the unit lets the daemon do: a unit that differs from it in what it runs."""
    machine, other = node.machine, "/run/systemd/system/entering.service"
    python = "/opt/bgpd/current/bin/python"
    machine.write("/run/enter.py", ENTER)
    text = machine.run("cat", f"/etc/systemd/system/{DAEMON}")
    text = re.sub(r"(?m)^(Type|ExecStart|Restart|WatchdogSec)=.*$", "", text)
    machine.write(other, text.replace("[Service]", f"[Service]\nType=oneshot\nExecStart={python} /run/enter.py"))
    machine.run("ip", "netns", "add", "pod")

    def said() -> str:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "entering.service")
        return machine.run("journalctl", "--output=cat", "--unit=entering.service")

    try:
        assert "it cannot be entered: Operation not permitted; bgpd needs CAP_SYS_ADMIN" in said()
        machine.run("install", "-D", "-m", "0644", "/srv/bgpd/systemd/ipvlan.conf", f"{other}.d/ipvlan.conf")
        assert said().splitlines().count("1") == 1, "it has its own loopback, and no more"
    finally:
        machine.run("rm", "-r", other, f"{other}.d")
        machine.run("ip", "netns", "del", "pod")
        machine.run("systemctl", "daemon-reload")


def test_daemon_that_dies(node: Installed) -> None:
    """systemd starts another at once."""
    assert "killed, status=9/KILL" in other_daemon(node, "KILL")


def test_daemon_that_hangs(node: Installed) -> None:
    """systemd ends it when its watchdog was not fed, and starts another."""
    node.machine.write(WATCHDOG, "[Service]\nWatchdogSec=2\n")
    try:
        node.machine.run("systemctl", "daemon-reload")
        node.machine.run("systemctl", "restart", DAEMON)
        node.wait_healthy()
        assert "Failed with result 'watchdog'" in other_daemon(node, "STOP")
    finally:
        node.machine.run("rm", WATCHDOG)
        node.machine.run("systemctl", "daemon-reload")


def test_speaker_that_dies(node: Installed) -> None:
    """systemd starts another ExaBGP, and the ToRs keep the routes meanwhile; the daemon stays."""
    daemon, speaker = node.pid(DAEMON), node.pid(SPEAKER)
    with never_without(node.fabric, node.place.pod_cidrs):
        node.machine.run("kill", "-KILL", speaker)
        poll(lambda: node.machine.unit(SPEAKER, "MainPID")[0] not in ("0", speaker), 20, lambda: "no other speaker")
        for tor in node.fabric.tors:
            for prefix in node.place.pod_cidrs:
                tor.speaker.wait_route(prefix, where=lambda route: not route.stale)
        node.wait_healthy()
    assert node.pid(DAEMON) == daemon


def test_bfd_daemon_that_dies(node: Installed) -> None:
    """systemd starts another BIRD, which has its sessions again; daemon and speaker stay."""
    others, bird = (node.pid(DAEMON), node.pid(SPEAKER)), node.pid(BFD)
    node.machine.run("kill", "-KILL", bird)
    poll(lambda: node.machine.unit(BFD, "MainPID")[0] not in ("0", bird), 20, lambda: "no other BIRD")
    node.wait_healthy()
    assert (node.pid(DAEMON), node.pid(SPEAKER)) == others


def test_speaker_that_is_stopped(node: Installed) -> None:
    """`systemctl stop` withdraws every route before the session closes."""
    with BgpCapture(node.place.namespace, CABLE) as capture:
        node.machine.run("systemctl", "stop", SPEAKER)
        for tor in node.fabric.tors:
            for prefix in node.place.pod_cidrs:
                tor.speaker.wait_no_route(prefix)
    for tor in node.fabric.tors:
        assert len(capture.besides_keepalives(src=node.place.address, dst=tor.loopback)) >= len(node.place.pod_cidrs)
    node.machine.run("systemctl", "start", SPEAKER)
    node.wait_healthy()


def test_upgrade(node: Installed) -> None:
    """The daemon runs the new release, the speaker goes on with the old one, and nobody notices."""
    daemon = node.pid(DAEMON)
    with unnoticed(node):
        said = node.install()
    assert "the speaker need not be restarted" in said
    assert node.pid(DAEMON) != daemon


def test_uninstall(node: Installed) -> None:
    """The routes are withdrawn first; neither file, user, unit nor runtime directory is left."""
    node.machine.run(UNINSTALL)
    for tor in node.fabric.tors:
        for prefix in node.place.pod_cidrs:
            tor.speaker.wait_no_route(prefix)
    assert [path for path in node.machine.changes() if "bgpd" in str(path)] == []
    assert node.machine.run("sh", "-c", "ls /run | grep bgpd", status=1) == ""
    for user in ("bgpd-speaker", "bgpd-bfd"):
        assert node.machine.run("getent", "passwd", user, status=2) == ""
        assert node.machine.run("getent", "group", user, status=2) == ""
    assert node.machine.run("systemctl", "list-units", "--all", "--no-legend", "bgpd*") == ""
    node.machine.run(UNINSTALL)
