"""What `bgpd doctor` says of the places that the container runtime and the CNI plugin meet at."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bgpd.cli.main import main
from bgpd.cni.publish import Places, Publisher, settings
from bgpd.config.load import load
from bgpd.model.attachment import OWN_FILE
from bgpd.model.configmap import ConfigMap
from bgpd.observe.unixsocket import listen
from bgpd.runtime.store import Store

FLANNEL = {"cniVersion": "0.3.1", "name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}
ALL = ("conflist", "plugin", "results", "socket")


class Rig:
    """A node's directories, none of which is there yet."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self.file = capsys, directory / "bgpd.yaml"
        self.paths = {name: directory / name for name in ("run", "state", "bpf", "cniConf", "cniBin", "cniCache")}
        self.socket, self.own = self.paths["run"] / "cni.sock", self.paths["cniConf"] / OWN_FILE
        self.write({"chainingMode": "auto"})

    def write(self, cni: dict[str, Any]) -> None:
        document = {
            "source": {"manifests": str(self.file.parent / "manifests")},
            "paths": {name: str(path) for name, path in self.paths.items()},
            "bgp": {
                "localASN": 64512,
                "listenPort": 0,
                "peers": [{"name": "tor-a", "peerAddress": "127.0.0.2", "peerASN": 64512}],
            },
            "policy": {"enabled": True},
            "cni": cni,
        }
        self.file.write_text(json.dumps(document))

    def chain(self, name: str = "10-flannel.conflist", text: str = json.dumps(FLANNEL)) -> None:
        self.paths["cniConf"].mkdir(exist_ok=True)
        (self.paths["cniConf"] / name).write_text(text)

    def publish(self) -> None:
        """As the daemon does."""
        config, none = load(self.file).config, Store[Mapping[str, ConfigMap]]({})
        places = Places(self.paths["cniConf"], self.paths["cniBin"])
        Publisher(places, settings(config), config.cni.config_map, none).publish()
        self._capsys.readouterr()  # it logs

    def told(self) -> dict[str, list[tuple[str, str]]]:
        """State and text by what of the CNI they are about."""
        main(["doctor", "-o", "json", "--config", str(self.file)])
        found: dict[str, list[tuple[str, str]]] = {}
        for each in json.loads(self._capsys.readouterr().out):
            part, _, what = each["what"].partition(": ")
            if part == "cni":
                found.setdefault(what, []).append((each["state"], each["text"]))
        return found

    def states(self) -> dict[str, str]:
        return {what: findings[-1][0] for what, findings in self.told().items()}


@pytest.fixture
def rig(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Rig:
    return Rig(tmp_path, capsys)


def test_a_node_whose_main_plugin_is_missing(rig: Rig) -> None:
    """The one thing that only the operator can put right; the rest will be there."""
    told = rig.told()
    ((state, text),) = told["conflist"]
    assert (state, text.startswith(f"{rig.own.parent}: no .conf")) == ("bad", True)
    assert "install the main CNI plugin" in text
    assert rig.states() == {"conflist": "bad", "plugin": "warn", "results": "warn", "socket": "warn"}
    ((_, text),) = told["results"]
    assert text.startswith(f"{rig.paths['cniCache']}/results does not exist")


def test_before_the_daemon_has_run(rig: Rig) -> None:
    rig.chain()
    told = rig.told()
    assert {what: findings[-1][0] for what, findings in told.items()} == dict.fromkeys(ALL, "warn")
    text = "is not there yet: bgpd writes it from 10-flannel.conflist once a pod can be given its policy"
    assert told["conflist"] == [("warn", f"{rig.own} {text}")]


def test_a_node_that_is_well(rig: Rig) -> None:
    """And once more when the chain is another, or the plugin, which the daemon puts right."""
    rig.chain()
    rig.publish()
    for place in ("results", "multus/results"):
        (rig.paths["cniCache"] / place).mkdir(parents=True)
        (rig.paths["cniCache"] / place / "cbr0-1-eth0").write_text("{}")
    rig.paths["run"].mkdir()
    with contextlib.closing(listen(rig.socket)):
        told = rig.told()
        assert told == {
            "conflist": [("ok", f"{rig.own} is 10-flannel.conflist with the plugin behind it")],
            "plugin": [("ok", f"{rig.paths['cniBin']}/bgpd-cni is this release's")],
            "results": [("ok", f"2 in {rig.paths['cniCache']}: what runs already is found")],
            "socket": [("ok", f"{rig.socket} answers the plugin")],
        }
        rig.chain(text=json.dumps({**FLANNEL, "name": "another"}))
        (rig.paths["cniBin"] / "bgpd-cni").write_bytes(b"of another release")
        assert rig.states() == {"conflist": "warn", "plugin": "warn", "results": "ok", "socket": "ok"}


def test_a_published_chain_that_nobody_serves(rig: Rig) -> None:
    """No pod starts."""
    rig.chain()
    rig.publish()
    ((state, text),) = rig.told()["socket"]
    assert (state, "no pod starts" in text, str(rig.socket) in text) == ("bad", True, True)


def test_what_the_chain_is_warned_of(rig: Rig) -> None:
    rig.chain()
    rig.chain("00-mine.conf", "{}")
    assert [state for state, _ in rig.told()["conflist"]] == ["warn", "warn"]
    rig.chain(text="{")
    *_, (state, text) = rig.told()["conflist"]
    assert (state, "10-flannel.conflist: it is no JSON" in text) == ("bad", True)


def test_a_plugin_that_cannot_be_executed(rig: Rig) -> None:
    rig.chain()
    rig.publish()
    (rig.paths["cniBin"] / "bgpd-cni").chmod(0o644)
    ((state, text),) = rig.told()["plugin"]
    assert (state, "noexec" in text) == ("bad", True)


def test_a_conflist_of_the_operators_own(rig: Rig) -> None:
    """Whether it is as the ConfigMap says is for the daemon to tell, which reads it."""
    rig.write({"chainingMode": "auto", "configMap": "kube-system/cni-configuration"})
    ((state, text),) = rig.told()["conflist"]
    assert (state, text) == ("warn", f"bgpd will write {rig.own} from ConfigMap kube-system/cni-configuration")
    rig.chain(OWN_FILE)
    assert rig.states()["conflist"] == "ok"


def test_without_the_plugin_nothing_is_said(rig: Rig) -> None:
    rig.write({})
    assert rig.told() == {}
