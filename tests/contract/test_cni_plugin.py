"""The plugin itself, as the wheel ships it: with a daemon, with one that is down, hangs or is killed; full disks."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bgpd.cni.conflist import QUEUE, SOCKET
from bgpd.cni.journal import read
from bgpd.cni.protocol import VERSIONS, Verb
from bgpd.cni.publish import PROGRAMS
from bgpd.model.attachment import AttachmentKey
from bgpd.observe.unixsocket import is_answered
from tests.contract.cni_runtime import PLUGIN, Answer, call
from tests.fabric.process import Process, poll, spawn
from tests.unit.cni_requests import CONTAINER, configuration, environment, previous

SOURCES = Path(__file__).parents[2] / "bgpd" / "cni" / "plugin"
SOON_S = 20.0
QUEUE_FILES = 1024  # as queue.c has it


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


class Node:
    """A daemon's directories, and the plugin called with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket, self.queue = directory / "cni.sock", directory / "cni-queue"
        self.calls = directory / "calls"
        self.daemon: Process | None = None

    def start(self) -> None:
        places = [self.socket, self.queue, self.directory / "endpoints", self.calls]
        argv = [sys.executable, "-m", "tests.contract.cni_daemon", *map(str, places)]
        root = Path(__file__).parents[2]
        self.daemon = spawn("cni-daemon", argv, log_path=self.directory / "log", cwd=root)
        poll(lambda: is_answered(self.socket), SOON_S, self.daemon.log_tail)

    def call(
        self, verb: str, version: str = "1.1.0", *, deadline_s: int = 5, container: str = CONTAINER, **changes: Any
    ) -> Answer:
        values = configuration(version, socket=str(self.socket), queue=str(self.queue), **changes)
        values["deadline-seconds"] = deadline_s
        variables = environment(verb, CNI_CONTAINERID=container)
        return call(PLUGIN, verb, values, variables)

    @property
    def told(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    @property
    def queued(self) -> list[str]:
        return names(self.queue) if self.queue.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    if made.daemon is not None:
        made.daemon.kill()


# --- what it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_programs_are_built_from_these_sources(machine: str) -> None:
    """If this fails, `make -C bgpd/cni/plugin` and commit what it made."""
    files = [*sorted(SOURCES.glob("*.c")), *sorted(SOURCES.glob("*.h"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    program = (PROGRAMS / f"bgpd-cni.{machine}").read_bytes()
    assert f"bgpd-cni from sources {digest}".encode() in program
    assert program[:4] == b"\x7fELF"
    assert len(program) < 64 << 10


def test_the_program_is_built_again_byte_for_byte(tmp_path: Path) -> None:
    """In another directory."""
    lacking = [tool for tool in ("make", "clang-16", "ld.lld-16") if shutil.which(tool) is None]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    shutil.copytree(SOURCES, tmp_path / "plugin")
    subprocess.run(["make", "-s", "-C", tmp_path / "plugin", "OUT=out", "native"], check=True, capture_output=True)
    built = tmp_path / "plugin" / "out" / f"bgpd-cni.{platform.machine()}"
    assert built.read_bytes() == PLUGIN.read_bytes()


def test_make_check_accepts_the_tree() -> None:
    if shutil.which("clang-format-16") is None:
        pytest.skip("not installed: clang-format-16")
    subprocess.run(["make", "-s", "-C", SOURCES, "check"], check=True, capture_output=True)


def test_the_plugin_and_the_daemon_mean_the_same_places() -> None:
    """Python's defaults are those that the plugin was built with."""
    program = PLUGIN.read_bytes()
    for place in (SOCKET, QUEUE):
        assert str(place).encode() + b"\0" in program


@pytest.mark.parametrize("version", [*VERSIONS, "9.9.9", None])
def test_version_needs_no_daemon(version: str | None) -> None:
    stdin = "" if version is None else json.dumps({"cniVersion": version})
    answer = call(PLUGIN, "VERSION", stdin, {})
    known = version if version in VERSIONS else "1.1.0"
    assert (answer.status, answer.printed) == (0, {"cniVersion": known, "supportedVersions": list(VERSIONS)})


# --- with a daemon ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_verb_in_every_version(node: Node, version: str) -> None:
    node.start()
    added = node.call("ADD", version)
    assert (added.status, added.printed) == (0, previous(version))
    for verb, since in (("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")):
        valid: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": CONTAINER, "ifname": "eth0"}]}
        answer = node.call(verb, version, **valid)
        if version >= since:
            assert (answer.status, answer.printed) == (0, None), verb
        else:
            assert (answer.status, answer.code, answer.printed["cniVersion"]) == (1, 1, version)
    for _ in range(2):
        deleted = node.call("DEL", version)
        assert (deleted.status, deleted.printed) == (0, None)
    assert node.told == [
        f"attach {CONTAINER} 10.244.1.7 fd00::7",
        f"detach {CONTAINER} known",
        f"detach {CONTAINER} unknown",
    ]


def test_the_daemon_s_refusal_is_passed_on(node: Node) -> None:
    node.start()
    answer = node.call("ADD", prevResult=None)
    assert (answer.status, answer.code) == (1, 7)
    assert answer.printed["msg"].startswith("there is no prevResult; put bgpd-cni behind the main plugin")
    text = call(PLUGIN, "ADD", json.dumps(configuration(socket=str(node.socket)))[:-1], environment("ADD"))
    assert text.code in (6, 11)  # what cannot be read as JSON names no socket: the default one may not be there


def test_200_plugins_at_once(node: Node) -> None:
    """As when a node boots."""
    node.start()
    containers = [f"c{number}" for number in range(200)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda container: node.call("ADD", container=container, deadline_s=60), containers))
    assert [answer.status for answer in answers] == [0] * len(containers)
    assert {line.split()[1] for line in node.told} == set(containers)


def test_an_add_whose_plugin_is_killed_is_undone(node: Node) -> None:
    node.start()
    values = json.dumps(configuration(socket=str(node.socket)))
    variables = {**environment("ADD", CNI_CONTAINERID="slow-1")}
    with subprocess.Popen([PLUGIN], stdin=subprocess.PIPE, env=variables) as plugin:
        assert plugin.stdin is not None
        plugin.stdin.write(values.encode())
        plugin.stdin.close()
        poll(lambda: bool(node.told), SOON_S, lambda: "it was never attached")
        plugin.kill()
    poll(lambda: "detach slow-1 known" in node.told, SOON_S, lambda: str(node.told))


# --- without one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_without_a_daemon_all_but_del_fail_and_say_what_to_start(node: Node, verb: str, code: int) -> None:
    answer = node.call(verb, "0.4.0")
    assert (answer.status, answer.code, answer.printed["cniVersion"]) == (1, code, "0.4.0")
    assert answer.printed["msg"] == (
        f'bgpd at {node.socket} cannot be reached: No such file or directory; start it with "systemctl start bgpd"'
    )
    node.socket.touch()
    assert "Connection refused" in node.call(verb).printed["msg"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_del_is_queued_and_done_at_the_next_start(node: Node, version: str) -> None:
    for _ in range(2):  # the second takes no room
        answer = node.call("DEL", version)
        assert (answer.status, answer.printed) == (0, None)
        assert answer.said.endswith(f"; the DEL is queued in {node.queue}\n")
    assert node.queued == [f"cluster,{CONTAINER},eth0"]
    request = read(node.queue / node.queued[0])
    assert (request.verb, request.key) == (Verb.DEL, AttachmentKey("cluster", CONTAINER, "eth0"))
    assert (node.queue / node.queued[0]).stat().st_mode & 0o777 == 0o600
    node.start()
    assert node.told == [f"detach {CONTAINER} unknown"]
    assert node.queued == []


def test_a_daemon_that_is_killed_loses_no_del_and_knows_its_attachments(node: Node) -> None:
    node.start()
    assert node.call("ADD").status == 0
    assert node.daemon is not None
    node.daemon.kill()
    assert node.call("ADD", container="second").code == 11
    assert node.call("DEL").status == 0
    node.start()
    assert node.told[-1] == f"detach {CONTAINER} known"
    assert node.queued == []


def test_a_daemon_killed_during_an_add_fails_it(node: Node) -> None:
    node.start()
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(node.call, "ADD", container="slow-1")
        poll(lambda: bool(node.told), SOON_S, lambda: "it was never attached")
        assert node.daemon is not None
        node.daemon.kill()
        answer = adding.result()
    assert answer.code == 11
    assert answer.printed["msg"].startswith(f"bgpd at {node.socket} ended before it answered")


def test_a_daemon_that_hangs_is_an_error_and_no_hang(node: Node) -> None:
    """And a DEL is queued; the daemon does it when it goes on."""
    node.start()
    assert node.daemon is not None
    node.daemon.pause()
    started = time.monotonic()
    answer = node.call("ADD", deadline_s=1)
    assert answer.code == 11
    assert f"bgpd at {node.socket} did not answer within 1 s" in answer.printed["msg"]
    assert time.monotonic() - started >= 0.9
    assert node.call("DEL", deadline_s=1, container="gone").status == 0
    assert node.queued == ["cluster,gone,eth0"]
    node.daemon.resume()
    poll(lambda: node.queued == [], SOON_S, lambda: str(node.queued))
    assert "detach gone unknown" in node.told


def test_a_daemon_that_takes_no_connection_is_an_error_and_no_hang(node: Node) -> None:
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(str(node.socket))
        full.listen(0)
        first = socket.socket(socket.AF_UNIX)
        first.connect(str(node.socket))
        with first:
            answer = node.call("ADD", deadline_s=1)
    assert answer.code == 11
    assert "did not answer within 1 s" in answer.printed["msg"]


def speaking(path: Path, said: bytes) -> Callable[[], None]:
    """Accepts one connection, says this, and ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 20)
                connection.sendall(said)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread.join


@pytest.mark.parametrize(
    "said", [b"", b"bgpd-cni/1 0 10\n{}", b"bgpd-cni/1 0 1\n{}", b"HTTP/1.1 400\r\n", b"bgpd-cni/1 x 2\n{}"]
)
def test_half_an_answer_is_none(node: Node, said: bytes) -> None:
    """The daemon may be killed while it speaks."""
    join = speaking(node.socket, said)
    answer = node.call("ADD", deadline_s=10)
    join()
    assert answer.code == 11
    assert "ended before it answered" in answer.printed["msg"]


# --- the queue's limits -----------------------------------------------------------------------------------


def test_a_full_queue_refuses_so_that_the_runtime_tries_again(node: Node) -> None:
    node.queue.mkdir()
    for number in range(QUEUE_FILES):
        (node.queue / f"f{number}").touch()
    answer = node.call("DEL")
    assert (answer.status, answer.code) == (1, 11)
    assert answer.printed["msg"].endswith(
        f"the DEL cannot be queued either: {node.queue} holds 1024 of them already, and bgpd takes none"
    )
    (node.queue / "f0").unlink()
    assert node.call("DEL").status == 0


def test_a_full_disk_refuses_and_leaves_nothing(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: mounting a small tmpfs needs CAP_SYS_ADMIN")
    node.queue.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", node.queue], check=True)
    try:
        with (node.queue / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
            while True:
                ballast.write(bytes(4096))
        answer = node.call("DEL")
        assert (answer.status, answer.code) == (1, 11)
        assert answer.printed["msg"].endswith(f"{node.queue}: No space left on device")
        assert node.queued == ["ballast"]
        (node.queue / "ballast").unlink()
        assert node.call("DEL").status == 0
    finally:
        subprocess.run(["umount", node.queue], check=True)


def test_a_state_directory_that_is_not_there_refuses(node: Node) -> None:
    node.queue = node.directory / "never" / "cni-queue"
    answer = node.call("DEL")
    assert answer.code == 11
    assert answer.printed["msg"].endswith(f"{node.queue}: No such file or directory")


@pytest.mark.parametrize(
    ("changes", "variables", "text"),
    [
        ({"name": None}, {}, "DEL needs CNI_CONTAINERID, CNI_IFNAME and the network's name"),
        ({}, {"CNI_CONTAINERID": "../../etc/x"}, "DEL needs CNI_CONTAINERID, CNI_IFNAME and the network's name"),
        ({}, {"CNI_IFNAME": None}, "DEL needs CNI_CONTAINERID, CNI_IFNAME and the network's name"),
        ({}, {"CNI_CONTAINERID": "c" * 250}, "network, container and interface have names too long for a file's"),
        (
            {"prevResult": "x" * 70_000},
            {},
            "with its configuration it is longer than the 65536 bytes that a queued one may have",
        ),
    ],
)
def test_a_del_that_cannot_be_named_is_not_queued(
    node: Node, changes: dict[str, Any], variables: dict[str, str | None], text: str
) -> None:
    values = configuration(socket=str(node.socket), queue=str(node.queue), **changes)
    answer = call(PLUGIN, "DEL", values, environment("DEL", **variables))
    assert answer.code == 11
    assert answer.printed["msg"].endswith(text)
    assert node.queued == []


# --- bad input to the plugin itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"socket": "cni.sock"}, "socket"),
        ({"socket": "/" + "x" * 108}, "socket"),
        ({"socket": "/run/é"}, "socket"),
        ({"queue": 3}, "queue"),
        ({"deadline-seconds": 0}, "deadline-seconds"),
        ({"deadline-seconds": 601}, "deadline-seconds"),
        ({"deadline-seconds": 1.5}, "deadline-seconds"),
        ({"deadline-seconds": "5"}, "deadline-seconds"),
    ],
)
def test_a_value_that_the_plugin_needs_and_cannot_use(changes: dict[str, Any], text: str) -> None:
    """A path with an escape is refused too: nothing here decodes them."""
    answer = call(PLUGIN, "ADD", configuration() | changes, environment("ADD"))
    assert (answer.status, answer.code) == (1, 7)
    assert answer.printed["msg"].startswith(
        f'the value of "{text}" in the configuration of bgpd-cni cannot be used; give '
    )


@pytest.mark.parametrize("verb", ["", "PING"])
def test_an_unknown_verb(verb: str) -> None:
    answer = call(PLUGIN, verb, configuration(), {})
    assert (answer.status, answer.code) == (1, 4)
    assert answer.printed["msg"] == "CNI_COMMAND must be ADD, DEL, CHECK, GC, STATUS or VERSION"


def test_input_without_measure() -> None:
    """Longer than any configuration, and more variables than any runtime sets."""
    answer = call(PLUGIN, "ADD", " " * ((1 << 20) + 1), environment("ADD"))
    assert (answer.code, answer.printed["msg"]) == (
        5,
        "the network configuration on stdin is longer than 1048576 bytes",
    )
    answer = call(PLUGIN, "ADD", configuration(), environment("ADD", CNI_ARGS="A=" + "x" * 65_536))
    assert (answer.code, answer.printed["msg"]) == (
        4,
        "the CNI_ variables of the environment are longer than 65536 bytes together",
    )


def test_keys_within_values_are_not_the_plugin_s(node: Node) -> None:
    """Only those of the outermost object count, and strings with quotes and brackets in them are strings."""
    decoy = {
        "socket": "relative",
        "queue": 3,
        "cniVersion": "9",
        "text": '}"]\\{"socket": "x"',
        "list": [{"a": [1, "]"]}],
    }
    values = {"decoy": decoy, "args": [decoy]} | configuration(socket=str(node.socket), queue=str(node.queue))
    answer = call(PLUGIN, "ADD", values, environment("ADD"))
    assert (answer.code, answer.printed["cniVersion"]) == (11, "1.0.0")
    assert str(node.socket) in answer.printed["msg"]


def test_nothing_outlives_a_plugin_that_is_killed_while_it_waits(node: Node) -> None:
    """Not even when the daemon hangs: what it was asked for is undone once it goes on."""
    node.start()
    assert node.daemon is not None
    node.daemon.pause()
    variables = {**environment("ADD", CNI_CONTAINERID="gone")}
    with subprocess.Popen([PLUGIN], stdin=subprocess.PIPE, env=variables) as plugin:
        assert plugin.stdin is not None
        plugin.stdin.write(json.dumps(configuration(socket=str(node.socket))).encode())
        plugin.stdin.close()
        plugin.kill()
    node.daemon.resume()
    assert node.call("ADD").status == 0
    remembered = node.directory / "endpoints"
    poll(lambda: names(remembered) == [f"cluster,{CONTAINER},eth0"], SOON_S, lambda: str(names(remembered)))
