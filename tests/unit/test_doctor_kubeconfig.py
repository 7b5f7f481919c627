"""What `bgpd doctor` says of the kubeconfig before there is a daemon to try it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bgpd.cli.main import main


def test_a_kubeconfig_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kubeconfig, file = tmp_path / "kubeconfig", tmp_path / "bgpd.yaml"
    peer = {"name": "tor-a", "peerAddress": "127.0.0.2", "peerASN": 64512}
    document = {
        "source": {"kubernetes": {"kubeconfig": str(kubeconfig)}},
        "paths": {name: str(tmp_path / name) for name in ("run", "state", "bpf")},
        "bgp": {"localASN": 64512, "listenPort": 0, "peers": [peer]},
    }
    file.write_text(json.dumps(document))
    assert main(["doctor", "-o", "json", "--config", str(file)]) == 4
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["kubeconfig"]["state"] == "bad"
    assert found["kubeconfig"]["text"].startswith(f"{kubeconfig}: cannot be read: No such file or directory")
