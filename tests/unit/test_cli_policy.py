"""What commands print of a daemon's answers about policy, and which of them a daemon that runs is in the way of."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgpd.cli.clear import cleared
from bgpd.cli.main import main
from bgpd.model.brief import LINES
from bgpd.observe.control import Handler, Progress
from tests.unit.test_control import serve

RULES = [f"from 10.0.{each}.0/24: tcp 80" for each in range(50)]
PROBLEM = "NetworkPolicy shop/closed does not fit"
BLOCKED = {"map": "policy_ranges", "entries": 66_000, "needed": 66_100, "capacity": 65_536, "pods": {}}
POLICY = {
    "policy": "shop/closed", "pods": ["shop/web"], "ingress": RULES, "egress": None, "entries": 0, "blocked": BLOCKED
}  # fmt: skip
NO_FLOWS = {"flows": [], "lost": 0, "forgotten": 0, "notes": [], "notInForce": ""}


class Rig:
    """A configuration, and somebody on its socket who gives the same answer to each command."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._socket, self.file = directory / "status.sock", directory / "bgpd.yaml"
        config = {
            "node": {"name": "worker1"},
            "paths": {name: str(directory) for name in ("run", "state", "bpf")},
            "source": {"manifests": str(directory)},
            "bgp": {"localASN": 64512, "peers": [{"name": "tor-a", "peerAddress": "127.0.0.2", "peerASN": 64512}]},
        }
        self.file.write_text(yaml.safe_dump(config))

    def run(self, *words: str, answers: dict[str, Any], told: tuple[str, ...] = ()) -> tuple[int, str, str]:
        """Exit code, standard output, standard error. `told`: what comes before an answer."""
        return self.beside(lambda: main([*words, "--config", str(self.file)]), answers, told)

    def beside(
        self, command: Callable[[], int], answers: dict[str, Any], told: tuple[str, ...] = ()
    ) -> tuple[int, str, str]:
        """The same of something else that is run."""
        codes: list[int] = []

        async def scenario() -> None:
            codes.append(await asyncio.to_thread(command))

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
    size = "blocked: 66,000 new entries do not fit into policy_ranges; 0 entries are in force"
    assert heading == f"shop/closed  ({size})"
    assert "shop/web" in pods and problem.split(maxsplit=1) == ["PROBLEM", PROBLEM]
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


def end(pod: str, address: str, port: int | None) -> dict[str, Any]:
    return {"pod": pod, "address": address, "port": port}


WOULD_DROP = {
    "namespace": "shop", "times": 1_200, "last": "2026-01-02T03:04:05.678Z", "verdict": "audited",
    "reason": "denied_ingress", "direction": "ingress", "client": end("shop/b", "10.0.0.2", None),
    "server": end("shop/a", "10.0.0.1", 80), "protocol": "tcp", "policies": ["shop/p"],
    "why": "no ingress rule of shop/p allows it", "lost": 30,
}  # fmt: skip


def test_audit_has_each_namespace_and_its_flows(rig: Rig) -> None:
    """What is not known goes to stderr, but in JSON."""
    places = [{"namespace": "shop", "pods": 3, "isolated": 1}, {"namespace": "till", "pods": 0, "isolated": 0}]
    answer = {"namespaces": places, "flows": [WOULD_DROP], "forgotten": 0, "notInForce": ""}
    assert rig.run("policy", "audit", answers={"policy audit": answer}) == (
        0,
        "shop: of 3 pods on this node 1 are isolated\n"
        "  2026-01-02T03:04:05.678Z 1,200x ingress shop/b 10.0.0.2 -> shop/a 10.0.0.1:80 tcp: "
        "no ingress rule of shop/p allows it (+30 not told)\n"
        "till: of 0 pods on this node 0 are isolated\n"
        "  nothing that would be dropped was seen since bgpd started\n",
        "",
    )
    late = answer | {"namespaces": [], "flows": [], "forgotten": 7, "notInForce": "policy_maps: no bpffs"}
    said = "7 older flows are forgotten\nNOT IN FORCE: policy_maps: no bpffs\n"
    assert rig.run("policy", "audit", answers={"policy audit": late}) == (4, "no namespace is in audit mode\n", said)
    code, out, err = rig.run("policy", "audit", "-o", "json", answers={"policy audit": late})
    assert (code, json.loads(out), err) == (4, late, "")


@pytest.mark.parametrize("words", [("list", "x"), ("audit", "x", "y"), ("explain", "x/a"), ("clear", "x")])
def test_words_too_few_or_too_many_are_refused(rig: Rig, words: tuple[str, ...]) -> None:
    code, _, err = rig.run("policy", *words, answers={})
    assert (code, err[:12]) == (2, "usage: bgpd ")


@pytest.mark.parametrize("words", [(), ("-o", "json")])
def test_a_note_before_flows_that_are_followed_goes_to_stderr_too(rig: Rig, words: tuple[str, ...]) -> None:
    told = (json.dumps({"note": "x/a is on worker2"}), "")
    said = rig.run("flows", "--follow", *words, told=told, answers={"flows": {}})
    assert said == (0, "", "note: x/a is on worker2\n")


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ({"status": {"policy": {"policies": 1}}}, 1, "would put it back"),
        ({}, 1, "stop that first"),  # it answers, and does not say
        ({"status": {"policy": None}}, 0, "removed a table"),
    ],
)
def test_nothing_is_cleared_beside_a_daemon_that_would_put_it_back(
    rig: Rig, answers: dict[str, Any], code: int, said: str
) -> None:
    found = rig.beside(lambda: cleared(Namespace(config=rig.file), "policy", lambda paths: ["a table"]), answers)
    assert found[0] == code
    assert said in found[1] + found[2]
    assert ("removed" in found[1]) is (code == 0)


def test_what_a_daemon_left_is_cleared(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    assert cleared(Namespace(config=rig.file), "policy", lambda paths: []) == 0
    assert capsys.readouterr().out == "nothing was there\n"
