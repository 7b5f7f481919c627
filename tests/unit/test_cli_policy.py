"""What commands print of a daemon's answers about policy, and which of them a daemon that runs is in the way of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgpd.cli.main import main
from bgpd.model.brief import LINES
from bgpd.observe.control import Handler, Progress
from tests.unit.test_control import serve

RULES = [f"from 10.0.{each}.0/24: tcp 80" for each in range(50)]
PROBLEM = "NetworkPolicy shop/closed does not fit"
POLICY = {"policy": "shop/closed", "pods": ["shop/web"], "ingress": RULES, "egress": None, "entries": 0}
NO_FLOWS = {"flows": [], "lost": 0, "forgotten": 0, "notes": [], "notInForce": ""}


class Rig:
    """A configuration, and somebody on its socket who gives the same answer to each command."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._socket, self._file = directory / "status.sock", directory / "bgpd.yaml"
        config = {
            "node": {"name": "worker1"},
            "paths": {name: str(directory) for name in ("run", "state", "bpf")},
            "source": {"manifests": str(directory)},
            "bgp": {"localASN": 64512, "peers": [{"name": "tor-a", "peerAddress": "127.0.0.2", "peerASN": 64512}]},
        }
        self._file.write_text(yaml.safe_dump(config))

    def run(self, *words: str, answers: dict[str, Any], told: tuple[str, ...] = ()) -> tuple[int, str, str]:
        """Exit code, standard output, standard error. `told`: what comes before an answer."""
        codes: list[int] = []

        async def scenario() -> None:
            codes.append(await asyncio.to_thread(main, [*words, "--config", str(self._file)]))

        serve(self._socket, scenario, {name: _says(it, told) for name, it in answers.items()})
        return codes[0], *self._capsys.readouterr()


def _says(answer: dict[str, Any], told: tuple[str, ...]) -> Handler:
    async def handler(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        for text in told:
            progress(text)
        return answer

    return handler


@pytest.fixture
def rig(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Rig:
    return Rig(tmp_path, capsys)


def test_of_a_policy_the_problem_comes_first_and_of_many_rules_the_first(rig: Rig) -> None:
    """JSON has all of them."""
    answer = {"policies": [POLICY | {"problems": [PROBLEM]}], "problems": [f"policy: {PROBLEM}"]}
    code, out, err = rig.run("policy", "list", answers={"policy list": answer})
    heading, pods, problem, *rules = out.splitlines()
    assert (code, err) == (4, f"policy: {PROBLEM}\n")
    assert "shop/closed" in heading and "shop/web" in pods and problem.split(maxsplit=1) == ["PROBLEM", PROBLEM]
    assert [rule.split(maxsplit=1)[1] for rule in rules] == [*RULES[:LINES], f"and {len(RULES) - LINES} more"]
    _, out, _ = rig.run("policy", "list", "-o", "json", answers={"policy list": answer})
    assert json.loads(out)[0]["ingress"] == RULES


def test_why_there_are_no_flows_goes_to_stderr(rig: Rig) -> None:
    assert rig.run("flows", answers={"flows": NO_FLOWS}) == (0, "", "")
    late = NO_FLOWS | {"notInForce": "policy_maps: there is no bpffs", "notes": ["x/a is on worker2"]}
    said = "NOT IN FORCE: policy_maps: there is no bpffs\nnote: x/a is on worker2\n"
    assert rig.run("flows", answers={"flows": late}) == (4, "", said)
    code, out, err = rig.run("flows", "-o", "json", answers={"flows": late})
    assert (code, json.loads(out), err) == (4, late, "")


@pytest.mark.parametrize("words", [(), ("-o", "json")])
def test_a_note_before_flows_that_are_followed_goes_to_stderr_too(rig: Rig, words: tuple[str, ...]) -> None:
    told = (json.dumps({"note": "x/a is on worker2"}), "")
    said = rig.run("flows", "--follow", *words, told=told, answers={"flows": {}})
    assert said == (0, "", "note: x/a is on worker2\n")


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("policy", "policy"),
        ("masq", "masquerade"),
        ("noderoutes", "nodeRoutes"),
        ("virtualservers", "virtualServers"),
    ],
)
def test_nothing_is_cleared_beside_a_daemon_that_would_put_it_back(rig: Rig, command: str, part: str) -> None:
    """Nor while one that answers does not say."""
    keeping: dict[str, Any] = {"status": {part: {}}}
    for answers in (keeping, {}):
        code, out, err = rig.run(command, "clear", answers=answers)
        assert (code, out) == (1, "")
        assert "bgpd runs and would put it back" in err and err.endswith("stop that first\n")
