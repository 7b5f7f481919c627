"""Configurations no daemon can use, as the commands meet them: exit 2, file and line, cause and remedy, at once.

What the parser makes of each fault is tested in tests/unit; here only that `bgpd check` and `bgpd run` behave: the
same words from both, nothing started, nothing made. No network is needed, but a place for the daemon to start in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fabric.netns import Lab
from tests.fabric.node import BIN, BgpdNode, node_manifest
from tests.fabric.process import poll

Edit = Callable[[dict[str, Any]], None]

TOR_A = {"name": "tor-a", "peerAddress": "11.11.255.1", "peerASN": 64512}

OTHER = {"peerAddress": "11.11.255.2"}


@pytest.fixture
def node(lab: Lab) -> BgpdNode:
    """A node with one namespace, no cable and a good configuration."""
    bgp = {
        "localASN": 64512,
        "peers": [dict(TOR_A)],
        "advertisements": [{"advertisementType": "PodCIDR"}],
        "export": {"allow": ["188.188.0.0/16"]},
    }
    made = BgpdNode(lab.namespace("alone"), "alone", bgp)
    (made.manifests / "node.yaml").write_text(node_manifest("alone", ["188.188.0.0/24"], "11.8.37.63"))
    return made


def refused(node: BgpdNode) -> str:
    """What `check` prints, after `run` has been seen to print the same; neither has made or started anything."""
    check, run = node.try_bgpd("check"), node.try_bgpd("run")
    assert (check.returncode, run.returncode) == (2, 2), (check.stderr, run.stderr)
    assert run.stderr == check.stderr
    assert check.stdout == ""
    assert node.try_bgpd("status").returncode == 3  # looks for the daemon where one would be, and soon
    assert "Traceback" not in check.stderr
    assert not (node.directory / "run").exists()
    return check.stderr


def test_a_good_file_passes_and_shows_the_plan(node: BgpdNode) -> None:
    """`check` exits 0 with sessions and routes, and makes nothing."""
    shown = node.try_bgpd("check")
    assert shown.returncode == 0, shown.stderr
    assert "188.188.0.0/24" in shown.stdout
    assert not (node.directory / "run").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(bytes(range(256)) * 64, "", id="binary"),
        pytest.param(b"#" * 1024 + b"\n" + b"a: b\n" * (10 << 20), "it has more than", id="50 MB"),
        pytest.param(b"a: " + b"[" * 100_000, "", id="deeply nested"),
        pytest.param(b"source: {manifests: /x}\nsource: {manifests: /y}\n", "source", id="duplicate keys"),
        pytest.param(b"a: 1\n---\nb: 2\n", "second document", id="two documents"),
    ],
)
def test_a_file_that_is_no_configuration(node: BgpdNode, content: bytes, told: str) -> None:
    """Refused in well under a minute and without a traceback, with the file's name first."""
    node.config_file.write_bytes(content)
    text = refused(node)
    assert all(line.startswith(str(node.config_file)) for line in text.splitlines()), text
    assert told in text, text


def test_a_file_that_is_not_there_or_no_file(node: BgpdNode) -> None:
    """Missing, and a directory: both say so."""
    node.config_file.unlink()
    assert "the file does not exist" in refused(node)
    node.config_file.mkdir()
    assert "it is a directory" in refused(node)


def test_all_faults_are_told_at_once(node: BgpdNode) -> None:
    """Six different ones in one file: each with line, column, key and what would be right."""
    secret = node.directory / "key.md5"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    bgp = node.config["bgp"]
    bgp["peers"][0] |= {"families": ["ipv5-unicast"], "authPasswordFile": str(secret)}
    bgp["peers"] += [TOR_A | {"name": "twin"}, TOR_A | {"name": "x", "peerAddress": "11.11.255.2"}]
    bgp["peers"][2]["authPasswordFile"] = "/nowhere/key.md5"
    bgp["export"] = {"allow": ["188.188.0.1/16"]}
    bgp["holdTime"] = 9
    node.write_config()
    text = refused(node)
    for told in (
        "bgp.peers[0].families[0]",
        "did you mean 188.188.0.0/16?",
        "unknown key 'holdTime'",
        "/nowhere/key.md5: the file does not exist",
    ):
        assert told in text, text
    for line in text.splitlines():
        place = line.removeprefix(f"{node.config_file}:").split(":")
        assert place[0].isdigit(), line
        assert place[1].isdigit(), line
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        pytest.param(
            lambda bgp: bgp["peers"].append(TOR_A | {"name": "twin"}),
            "bgp.peers[1].peerAddress",
            id="one address twice",
        ),
        pytest.param(
            lambda bgp: bgp["peers"].append(TOR_A | OTHER), "has the name 'tor-a' already", id="one name twice"
        ),
        pytest.param(lambda bgp: bgp["export"].update(allow=["10.0.0.1/8"]), "mean 10.0.0.0/8?", id="host bits"),
        pytest.param(lambda bgp: bgp["peers"][0].update(families=["l2vpn"]), "l2vpn", id="unknown family"),
        pytest.param(lambda bgp: bgp.update(localASN=0), "bgp.localASN", id="AS 0"),
    ],
)
def test_a_contradiction_is_named_by_its_key(node: BgpdNode, edit: Edit, told: str) -> None:
    """One fault, one line, with the place in the file and the key path."""
    edit(node.config["bgp"])
    node.write_config()
    (line,) = refused(node).splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("mode", "told"),
    [(None, "the file does not exist"), (0o644, "chmod 0600"), (0o622, "chmod 0600")],
    ids=["missing", "world-readable", "world-writable"],
)
def test_a_password_file_must_be_there_and_private(node: BgpdNode, mode: int | None, told: str) -> None:
    """Otherwise the fault names file, reason and remedy, and never the password."""
    secret = node.directory / "key.md5"
    if mode is not None:
        secret.write_text("hunter2\n")
        secret.chmod(mode)
    node.config["bgp"]["peers"][0]["authPasswordFile"] = str(secret)
    node.write_config()
    (line,) = refused(node).splitlines()
    assert "bgp.peers[0].authPasswordFile" in line
    assert str(secret) in line
    assert told in line
    assert "hunter2" not in line


def test_a_running_daemon_survives_every_one_of_them(node: BgpdNode) -> None:
    """Reloaded with an empty, a binary, a huge and a missing file in turn, it goes on with what it had."""
    node.start()
    good = node.config_file.read_bytes()
    for bad in (b"", bytes(range(256)), b"a: b\n" * (10 << 20), b"a: " + b"[" * 100_000):
        node.config_file.write_bytes(bad)
        answer = ask_to_reload(node)
        assert str(node.config_file) in answer, answer
        assert node.status()["config"]["state"] == "refused, running on the last good one"
        assert [row["peer"] for row in node.status()["peers"]] == ["tor-a"]
    node.config_file.unlink()
    assert "the file does not exist" in ask_to_reload(node)
    node.config_file.write_bytes(good)
    node.bgpd("reload")
    poll(lambda: node.status()["config"]["state"] == "in use", 5, lambda: str(node.status()))


def ask_to_reload(node: BgpdNode) -> str:
    """The refusal; the command finds the daemon by a configuration that can be read."""
    file = node.directory / "where.yaml"
    file.write_text(f"paths: {{run: {node.directory / 'run'}}}\n")
    done = node.namespace.run([str(BIN / "bgpd"), "reload", "--config", str(file)], check=False)
    assert done.returncode == 2, done
    return done.stderr
