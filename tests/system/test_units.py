"""The units, users and directories, judged by systemd's own tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

import pytest

from bgpd.bgp import guardian
from tests.system.confine import directives

SOURCE = Path(__file__).resolve().parents[2]
SYSTEMD = SOURCE / "systemd"
DAEMON, SPEAKER, BFD = (SYSTEMD / name for name in ("bgpd.service", "bgpd-speaker.service", "bgpd-bfd.service"))
UNITS = (DAEMON, SPEAKER, BFD)
PROGRAM = "/opt/bgpd/current/bin/bgpd"


def need(*programs: str) -> None:
    """Skips, by name, where a program is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def output_of(*argv: str | Path) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


# --- the units --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "limit"), [(DAEMON, 4.5), (SPEAKER, 2.0), (BFD, 2.0)], ids=["daemon", "speaker", "bfd"]
)
def test_the_sandbox_is_tight(unit: Path, limit: float) -> None:
    """systemd rates the exposure of each unit at or below its limit (0 is none, 10 is all)."""
    need("systemd-analyze")
    report = output_of("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
    rated = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
    assert rated is not None, report
    assert float(rated.group(1)) <= limit, report


def test_systemd_has_nothing_to_object(tmp_path: Path) -> None:
    """`systemd-analyze verify` reads all units without a word."""
    need("systemd-analyze")
    copies = [tmp_path / unit.name for unit in UNITS]
    for unit, copy in zip(UNITS, copies, strict=True):
        copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))  # verify wants the program to exist
    assert output_of("systemd-analyze", "verify", "--man=no", *copies) == ""


def test_the_addition_for_ipvlans_is_understood(tmp_path: Path) -> None:
    """`systemd-analyze verify` reads it with the unit, without a word."""
    need("systemd-analyze")
    unit = tmp_path / DAEMON.name
    unit.write_text(DAEMON.read_text().replace(PROGRAM, "/bin/true"))
    shutil.copy(SPEAKER, tmp_path)
    addition = tmp_path / f"{DAEMON.name}.d/ipvlan.conf"
    addition.parent.mkdir()
    shutil.copy(SYSTEMD / "ipvlan.conf", addition)
    assert output_of("systemd-analyze", "verify", "--man=no", unit) == ""


def test_the_daemon_cannot_pull_the_others_down() -> None:
    """No dependency carries a stop, restart or failure of one unit over to another."""
    daemon, speaker, bfd = map(directives, UNITS)
    binding = {"Requires", "Requisite", "BindsTo", "PartOf", "Conflicts", "PropagatesStopTo", "StopPropagatedFrom"}
    assert not binding & (daemon.keys() | speaker.keys() | bfd.keys())
    assert daemon["Wants"] == ["bgpd-speaker.service bgpd-bfd.service"]
    for others, unit in ((speaker, "bgpd-bfd.service"), (bfd, "bgpd-speaker.service")):
        named = [value for values in others.values() for value in values]
        assert not [value for value in named if "bgpd.service" in value or unit in value]


def test_the_speaker_stops_last() -> None:
    """At shutdown the daemon goes first: it would announce again what the speaker has withdrawn."""
    assert "bgpd-speaker.service" in directives(DAEMON)["After"][0].split()


def test_no_unit_owns_the_shared_directory() -> None:
    """RuntimeDirectory= would delete the other unit's socket when one of them stops."""
    assert not {"RuntimeDirectory", "StateDirectory"} & set().union(*map(directives, UNITS))


# --- user and directories -------------------------------------------------------------------------------------


def test_user_and_directories(tmp_path: Path) -> None:
    """Each helper's directory is root's, writable by that helper's group, and hands that group on."""
    need("systemd-sysusers", "systemd-tmpfiles")
    if os.geteuid():
        pytest.skip("needs root: it gives a directory to another group")
    (tmp_path / "etc").mkdir()
    output_of("systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "bgpd.sysusers")
    for _ in range(2):  # the second time changes nothing
        output_of("systemd-tmpfiles", f"--root={tmp_path}", "--create", SYSTEMD / "bgpd.tmpfiles")
    users = (tmp_path / "etc/passwd").read_text()
    for name, unit_user in (("speaker", "bgpd-speaker"), ("bfd", "bgpd-bfd")):
        found = re.search(rf"^{unit_user}:x:(\d+):(\d+):.*:/usr/sbin/nologin$", users, re.M)
        assert found is not None
        directory = (tmp_path / "run/bgpd" / name).stat()
        assert (directory.st_uid, directory.st_gid, stat.S_IMODE(directory.st_mode)) == (0, int(found[2]), 0o2770)
    assert stat.S_IMODE((tmp_path / "run/bgpd").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "var/lib/bgpd").stat().st_mode) == 0o700
    assert (tmp_path / "run/bgpd/speaker.sock").readlink() == Path("speaker/bridge.sock")


# --- ExaBGP as the unit runs it ---------------------------------------------------------------------------------

NEIGHBOR = """
neighbor {peer} {{
  router-id {local}; local-address {local}; local-as 64512; peer-as 64512; hold-time 9;
  {role}
  incoming-ttl 255; outgoing-ttl 255;
  md5-password "secret";
  family {{ ipv4 unicast; ipv6 unicast; }}
  api {{ processes [ bgpd ]; neighbor-changes; negotiated; }}
}}
"""
DEADLINE_S = 20.0


def test_exabgp_works_under_its_unit(tmp_path: Path) -> None:
    """Unprivileged and filtered as its unit says, ExaBGP listens on port 179 and speaks with MD5 and TTL security."""
    need("unshare", "nsenter", "setpriv", "ip", "systemd-analyze")
    if os.geteuid():
        pytest.skip("needs root: it makes a network namespace and changes the user")
    if find_library("seccomp") is None and not list(Path("/usr/lib").glob("*/libseccomp.so.2")):
        pytest.skip("not installed: libseccomp.so.2")
    listens = "passive true; listen 179;"
    ends = [
        ("listens", NEIGHBOR.format(local="127.0.0.1", peer="127.0.0.2", role=listens)),
        ("dials", NEIGHBOR.format(local="127.0.0.2", peer="127.0.0.1", role="connect 179;")),
    ]
    with network_namespace() as namespace:
        running = [start_speaker(tmp_path / name, text, namespace) for name, text in ends]
        try:
            for name, _ in ends:
                wait_for_session(tmp_path / name)
            for process in running:
                status = Path(f"/proc/{process.pid}/status").read_text()
                assert re.search(r"^Uid:\s+65534\s", status, re.M)
                assert re.search(r"^Seccomp:\s+2$", status, re.M)
                assert re.search(r"^CapEff:\s+0000000000000404$", status, re.M)
        finally:
            for process in running:
                process.terminate()
                process.wait(DEADLINE_S)


@contextmanager
def network_namespace() -> Iterator[int]:
    """The process id of a sleeper in a network namespace of its own, with the loopback interface up."""
    ready = "ip link set lo up && echo ready && exec sleep 600"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", ready], stdout=subprocess.PIPE, text=True) as sleeper:
        try:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == "ready\n"
            yield sleeper.pid
        finally:
            sleeper.kill()


def nobody() -> list[str]:
    """What makes of the command behind it one with the speaker's capabilities."""
    # dac_read_search is not the unit's: this source tree may lie in a home directory closed to nobody
    capabilities = "-all,+net_bind_service,+dac_read_search"
    who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    return who + [f"--{kind}={capabilities}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]


def start_speaker(directory: Path, neighbor: str, namespace: int) -> subprocess.Popen[bytes]:
    """ExaBGP with our bridge in `directory`, as nobody, with the unit's capabilities and system call filter."""
    directory.mkdir()
    configuration = directory / "exabgp.conf"
    process = f"run {sys.executable} -I {guardian.__file__} {directory}/bridge.sock 30; encoder json;"
    configuration.write_text(f"process bgpd {{ {process} }}\n{neighbor}")
    shutil.chown(directory, 65534, 65534)
    confined = [sys.executable, "-I", str(Path(__file__).with_name("confine.py")), str(SPEAKER)]
    exabgp = [sys.executable, "-P", str(Path(guardian.__file__).with_name("steady.py")), "server", str(configuration)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "exabgp_daemon_user": "nobody",
        "exabgp_daemon_drop": "false",
        "exabgp_api_cli": "false",
        "exabgp_tcp_bind": "",
        "exabgp_log_level": "INFO",
        "exabgp_log_destination": "stdout",
    }
    with (directory / "log").open("wb") as log:
        argv = ["nsenter", f"--net=/proc/{namespace}/ns/net", *nobody(), *confined, *exabgp]
        return subprocess.Popen(argv, env=environment, stdout=log, stderr=log)


def wait_for_session(directory: Path) -> None:
    """Returns when the bridge in `directory` says that its session is up."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if any(peer["state"] == "up" for peer in memory(directory / "bridge.sock")):
            return
        time.sleep(0.05)
    pytest.fail(f"no session; its log:\n{(directory / 'log').read_text()}")


def memory(path: Path) -> list[dict[str, str]]:
    """What the bridge remembers of its peers; nothing while it is not there yet."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return []
        client.sendall(b"1 #memory\n")
        with client.makefile() as answers:
            for line in answers:
                if line.startswith("line 1 "):
                    peers: list[dict[str, str]] = json.loads(line.removeprefix("line 1 "))
                    return peers
    return []


FORBIDDEN = """
import errno, mmap, os, socket

def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno == errno.EPERM
    return False

assert refused(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
assert refused(mmap.mmap, -1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
assert refused(os.chroot, "/")
print("refused")
"""

NEEDED = """
import asyncio, ctypes, socket
import kubernetes.client, msgspec, prometheus_client, pydantic, pyroute2, structlog, yaml

async def start():
    child = await asyncio.create_subprocess_exec("/bin/true")
    return await child.wait()

assert asyncio.run(start()) == 0
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
socket.getaddrinfo("localhost", 80)
print("works")
"""


@pytest.mark.parametrize(
    ("unit", "program", "said"),
    [
        (SPEAKER, FORBIDDEN, "refused\n"),
        (BFD, FORBIDDEN, "refused\n"),
        (DAEMON, FORBIDDEN, "refused\n"),
        (DAEMON, NEEDED, "works\n"),
    ],
    ids=["speaker refuses", "bfd refuses", "daemon refuses", "daemon works"],
)
def test_system_calls_under_the_unit(unit: Path, program: str, said: str) -> None:
    """The filters stop what neither process needs, and nothing that the daemon's libraries and children do."""
    need("systemd-analyze", "setpriv")
    confine = (sys.executable, "-I", Path(__file__).with_name("confine.py"), unit)
    assert output_of("setpriv", "--no-new-privs", *confine, sys.executable, "-I", "-c", program) == said


BINDS = """
import socket

with socket.socket(socket.AF_INET6) as made:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
print("bound")
"""


def test_the_speaker_may_tie_a_socket_to_an_interface() -> None:
    """To the one of an unnumbered peer; nobody may, since Linux 5.7, and the unit's filters let it."""
    need("systemd-analyze", "setpriv")
    if os.geteuid():
        pytest.skip("needs root to become nobody")
    confine = (sys.executable, "-I", Path(__file__).with_name("confine.py"), SPEAKER)
    assert output_of(*nobody(), *confine, sys.executable, "-I", "-c", BINDS) == "bound\n"
