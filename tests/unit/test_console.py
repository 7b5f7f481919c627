"""What the console answers about a configuration and a source that change, asked as `bgpd` asks it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgpd import gauges
from bgpd.bgp.bfd import Bfd
from bgpd.bgp.bird import BirdFiles
from bgpd.bgp.drain import Drainer
from bgpd.bgp.health import Health
from bgpd.bgp.plan import Drain
from bgpd.bgp.routing import Inputs, Routing
from bgpd.bgp.speaker import Speaker
from bgpd.config.load import load
from bgpd.console import POLICY_COMMANDS, Console
from bgpd.kube.feed import Feed, SourceState
from bgpd.kube.parse import NODE
from bgpd.kube.sources import manifest_source
from bgpd.masq.lint import Lint
from bgpd.masq.masquerading import Masquerading
from bgpd.masq.parse import parse
from bgpd.model.bgp import SpeakerState
from bgpd.model.fault import Fault
from bgpd.model.masq import Compat, Reading, Rules
from bgpd.model.node import Node
from bgpd.model.uplink import NO_UPLINKS
from bgpd.observe.control import ControlError
from bgpd.parts import Parts
from bgpd.policy.policing import Policing
from bgpd.policy.view import Objects
from bgpd.runtime.store import Store

HOUR_S = 3600.0
TOR = "11.11.255.1"


class Rig:
    """A console over parts that do not run: nobody connects to a speaker, nobody reads the manifests."""

    def __init__(
        self, directory: Path, speaker: str = "external", *, masquerade: bool = False, policy: bool = False
    ) -> None:
        self.file = directory / "bgpd.yaml"
        self.document: dict[str, Any] = {
            "node": {"name": "worker1"},
            "paths": {"run": str(directory / "run"), "state": str(directory), "bpf": str(directory / "bpf")},
            "source": {"manifests": str(directory)},
            "bgp": {
                "localASN": 64512,
                "speaker": speaker,
                "peers": [{"name": "tor-a", "peerAddress": TOR, "peerASN": 64512}],
                "advertisements": [{"advertisementType": "PodCIDR"}],
                "export": {"allow": ["188.188.0.0/16"]},
            },
            "masquerade": {"enabled": masquerade, "clusterCIDRs": ["188.188.0.0/16"]},
            "policy": {"enabled": policy},
        }
        self.write()
        loaded = load(self.file)
        self.inputs = Inputs(Store(loaded), Store({}), Store(Drain.NO), Store(Health()), Store(NO_UPLINKS))
        self.inputs.config.publish(loaded)
        self.speaker = Store(SpeakerState())
        link = Speaker(directory / "speaker.sock", self.speaker)
        routing = Routing("worker1", self.inputs, link, "", lambda round: None)
        self.source = manifest_source(directory, [Feed(NODE, self.inputs.nodes, "worker1")])
        drainer = Drainer(self.inputs.drain, directory / "drain")
        masquerading = None
        if masquerade:
            config, nodes = self.inputs.config, self.inputs.nodes
            masquerading = Masquerading("worker1", config, nodes, Store({}), lambda round: None)
            self.reading = masquerading.reading
        parts = Parts(masquerading, self._policing() if policy else None)
        bfd = Bfd(BirdFiles(directory), routing, lambda round: None)
        self.console = Console(self.file, self.inputs.config, self.inputs, routing, bfd, self.source, drainer, parts)

    def _policing(self) -> Policing:
        """Of a node that has heard nothing from Kubernetes."""
        objects = Objects(self.inputs.nodes, Store({}), Store({}), Store({}))
        return Policing("worker1", self.inputs.config, objects, Store({}), lambda round: None)

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.document))

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        async def asked() -> dict[str, Any]:
            return await self.console.handlers[command](arguments, lambda text: None)

        return asyncio.run(asked())

    @property
    def lint(self) -> Lint | None:
        assert self.console.masquerade is not None
        return self.console.masquerade.lint

    def publish(self, *entries: str) -> None:
        """A good document."""
        text = "nonMasqueradeCIDRs: [" + ", ".join(entries) + "]"
        self.reading.publish(Reading(parse(text.encode(), "document", Rules(Compat.AGENT, ipv6=False))))

    def reload(self, **bgp: Any) -> tuple[list[str], list[str]]:
        """What waits for a restart of the daemon, and of the speaker."""
        self.document["bgp"].update(bgp)
        self.write()
        answer = self.ask("reload")
        return answer["needsRestart"], answer["needsSpeakerRestart"]


def test_what_waits_for_a_restart_is_told_until_it_does_not(tmp_path: Path) -> None:
    """Compared with what runs, not with the last reload, however often it is asked and also when it is taken back."""
    rig = Rig(tmp_path)
    before = rig.document["source"]
    rig.document["source"] = {"kubernetes": {}}
    assert rig.reload() == (["source"], [])
    assert rig.reload() == (["source"], [])
    status = rig.ask("status")
    assert (status["source"]["kind"], status["config"]["needsRestart"]) == ("manifests", ["source"])
    assert [it.name for it in gauges.snapshot(rig.console).sources] == ["manifests"]
    rig.document["source"] = before
    assert rig.reload() == ([], [])


@pytest.mark.parametrize(
    ("speaker", "pending"),
    [
        ("external", ([], ["bgp.endOfRIBTimeoutSeconds"])),
        pytest.param("managed", (["bgp.endOfRIBTimeoutSeconds"], []), id="managed: the daemon's restart is its too"),
    ],
)
def test_whose_restart_it_waits_for(tmp_path: Path, speaker: str, pending: tuple[list[str], list[str]]) -> None:
    """The helper's command line is read by a new ExaBGP only."""
    assert Rig(tmp_path, speaker).reload(endOfRIBTimeoutSeconds=77) == pending


def test_the_age_of_an_error_does_not_know_the_wall_clock(tmp_path: Path) -> None:
    """It is a difference of monotonic times; the Unix time is derived from the same instant, with the one offset."""
    rig = Rig(tmp_path)
    lost = replace(rig.source.status.newest.value, state=SourceState.RETRYING, last_error="refused", reconnects=1)
    at = time.monotonic() - HOUR_S
    rig.source.status.publish(lost, at=at)
    assert HOUR_S <= rig.ask("status")["source"]["lastErrorAgo_s"] < HOUR_S + 60
    assert rig.console.source_error_at == at + rig.console.wall_clock_offset_s


@pytest.mark.parametrize("connected", [True, False])
def test_what_is_announced_is_measured_only_while_the_speaker_answers(tmp_path: Path, connected: bool) -> None:
    """Otherwise it may have withdrawn everything: what is wanted is known, what is announced is not."""
    rig = Rig(tmp_path)
    rig.inputs.nodes.publish({"worker1": Node("worker1", (), (ip_address("11.8.37.63"),))})
    rig.speaker.publish(SpeakerState(connected=connected, reason="" if connected else "gone"))
    (peer,) = gauges.snapshot(rig.console).peers
    assert peer.wanted
    assert (bool(peer.advertised), bool(peer.end_of_rib)) == (connected, connected)


WORKER = Node("worker1", (ip_network("188.188.1.0/24"),), (ip_address("11.8.37.63"),))
LISTED = "192.0.2.0/24"


def test_what_becomes_of_a_masquerade_document(tmp_path: Path) -> None:
    """Not read, refused, in use, refused with the last good one in use; null where nothing is masqueraded."""
    rig = Rig(tmp_path, masquerade=True)
    bad = (Fault("document", 1, 1, "", "nonsense"),)
    states = [rig.ask("status")["masquerade"]["state"]]
    rig.reading.publish(Reading(None, bad), synced=False)
    states.append(rig.ask("status")["masquerade"]["state"])
    rig.publish(LISTED)
    states.append(rig.ask("status")["masquerade"]["state"])
    rig.reading.publish(Reading(rig.reading.newest.value.document, bad))
    states.append(rig.ask("status")["masquerade"]["state"])
    assert states == ["not read yet", "refused", "in use", "refused, the last good one stays in use"]
    assert Rig(tmp_path).ask("status")["masquerade"] is None


def test_findings_are_sought_anew_only_when_they_may_differ(tmp_path: Path) -> None:
    """Not for each scrape, nor when a Node says the same again; for a new document, and when routes change."""
    rig = Rig(tmp_path, masquerade=True)
    assert rig.lint is None
    rig.inputs.nodes.publish({"worker1": WORKER})
    rig.publish(LISTED)
    first = rig.lint
    assert first is not None
    rig.inputs.nodes.publish({"worker1": replace(WORKER, labels={"zone": "b"})})
    assert rig.lint is first
    rig.publish(LISTED, LISTED)
    second = rig.lint
    assert second is not None
    assert [finding.entry for finding in second.findings] == [LISTED]
    rig.reload(advertisements=[])
    assert rig.lint is not second
    assert len(rig.ask("status")["masquerade"]["findings"]) == 2


def test_a_node_that_is_drained_on_purpose_is_no_finding(tmp_path: Path) -> None:
    """Nothing is announced then, and nobody wants to be told to advertise something."""
    rig = Rig(tmp_path, masquerade=True)
    rig.inputs.nodes.publish({"worker1": WORKER})
    rig.publish(LISTED)
    rig.reload(advertisements=[])
    assert rig.ask("status")["masquerade"]["findings"]
    rig.inputs.drain.publish(Drain.WITHDRAWN)
    assert rig.ask("status")["masquerade"]["findings"] == []


def test_masquerade_that_has_not_begun_is_not_in_force(tmp_path: Path) -> None:
    """The document is known, and nothing of it in the kernel; a node that does not masquerade shows nothing."""
    rig = Rig(tmp_path, masquerade=True)
    rig.inputs.nodes.publish({"worker1": WORKER})
    rig.publish(LISTED, LISTED)
    shown = gauges.snapshot(rig.console).masquerade
    assert shown is not None
    assert (shown.document_synced, shown.document_faults, shown.findings(), shown.flows()) == (True, 0, 1, {})
    assert shown.in_force == {"masq_ipv4": False, "masq_ipv6": False, "masq_rule": False}
    assert shown.entries == {"ipv4": 0, "ipv6": 0}
    assert shown.active == {"ipv4": False, "ipv6": False}
    assert gauges.snapshot(Rig(tmp_path).console).masquerade is None


def test_policy_that_has_not_begun_is_not_in_force(tmp_path: Path) -> None:
    """Nothing is known of the cluster, so nothing is in the kernel."""
    rig = Rig(tmp_path, policy=True)
    shown = gauges.snapshot(rig.console).policy
    assert shown is not None
    assert shown.in_force.keys() >= {"policy_maps", "policy_links", "policy_tables"}
    assert not any(shown.in_force.values())
    assert (shown.policies, shown.packets(), set(shown.entries().values())) == (0, {}, {0})
    assert shown.entries().keys() == shown.capacity.keys()
    expected = {"endpoints": dict.fromkeys(shown.endpoints, 0), "policies": 0, "blocked": []}
    assert rig.ask("status")["policy"] == expected
    nothing = {"flows": [], "lost": 0, "forgotten": 0, "notes": []}
    for arguments in ({}, {"pod": "x/a"}):  # nobody knows yet whether there is one
        answer = rig.ask("flows", **arguments)
        assert "bgpd has not read every" in answer.pop("notInForce")
        assert answer == nothing
    with pytest.raises(ControlError, match="what the kernel has is not read yet"):
        rig.ask("policy explain", client="x/a", server="x/b")


def test_commands_of_policy_say_where_it_is_off(tmp_path: Path) -> None:
    on, off = Rig(tmp_path, policy=True), Rig(tmp_path)
    assert on.console.handlers.keys() == off.console.handlers.keys()
    for command in POLICY_COMMANDS:
        with pytest.raises(ControlError, match=r"policy\.enabled: true turns it on"):
            off.ask(command)
    shown = gauges.snapshot(off.console)
    assert (shown.policy, shown.cni, off.ask("status")["policy"]) == (None, None, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"verdict": "allowed"}, "must be dropped or audited"), ({"pod": "web-0"}, "must be namespace/name")],
)
def test_flows_cannot_be_asked_for_like_that(tmp_path: Path, arguments: dict[str, str], said: str) -> None:
    with pytest.raises(ControlError, match=said) as refused:
        Rig(tmp_path, policy=True).ask("flows", **arguments)
    assert refused.value.exit == 2
