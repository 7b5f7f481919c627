"""Which configuration is in effect while objects come, break and go, and what their status is to say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bgpd.ciliumbgp.conditions import ACCEPTED, MISSING_PEER_CONFIGS, unwritten
from bgpd.ciliumbgp.derive import Derived, Feeds
from bgpd.config.load import Loaded
from bgpd.config.parse import parse
from bgpd.kube.ciliumbgp import ADVERTISEMENT, CLUSTER_CONFIG, PEER_CONFIG
from bgpd.model.bgp import Secret
from bgpd.model.custom import Custom, Target
from bgpd.model.node import Node
from bgpd.runtime.store import Store
from tests.unit.test_ciliumbgp_translate import ADVERT, CLUSTER, PEER, RACK, edited, read, with_peer

NODE = "worker1"
FIRST, SECOND = "peer-65000-tor1", "peer-65000-tor2"
PLAIN = edited(PEER, authSecretRef="bgp-auth-secret")


class Rig:
    """A `Derived` with stores that a test fills; files are of a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.secrets = directory
        self.nodes: Store[Mapping[str, Node]] = Store({})
        self.feeds = Feeds()
        self.file: Store[Loaded] = Store(self._loaded())
        self.derived = Derived(NODE, self.file, self.nodes, self.feeds)

    def _loaded(self, **bgp: Any) -> Loaded:
        section = {"peersFrom": "cilium", "authSecrets": str(self.secrets), **bgp}
        text = yaml.safe_dump({"source": {"manifests": "/m"}, "bgp": section})
        return Loaded(parse(text.encode(), "bgpd.yaml", NODE).config, {}, ())

    def reload(self, **bgp: Any) -> None:
        self.file.publish(self._loaded(**bgp))

    def show(self, *, cluster: str = CLUSTER, peer: str | None = PLAIN, adverts: str = ADVERT) -> None:
        """The whole of all kinds, and the node."""
        self.nodes.publish({NODE: Node(NODE, (), (), RACK, ())})
        self.feeds.peer_configs.publish(read(PEER_CONFIG, peer) if peer else {})
        self.feeds.advertisements.publish(read(ADVERTISEMENT, adverts))
        self.feeds.overrides.publish({})
        self.feeds.cluster_configs.publish(read(CLUSTER_CONFIG, cluster))

    def password(self, text: str, name: str = "bgp-auth-secret") -> Path:
        file = self.secrets / name / "password"
        file.parent.mkdir(exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(text)
        return file

    @property
    def peers(self) -> list[str]:
        return [peer.name for peer in self.derived.effective.newest.value.config.bgp.peers]

    @property
    def synced(self) -> bool:
        return self.derived.effective.newest.synced

    @property
    def passwords(self) -> Mapping[str, Secret]:
        return self.derived.effective.newest.value.passwords

    @property
    def problems(self) -> str:
        return "\n".join(self.derived.problems())


def test_nothing_is_known_before_all_of_it_is(tmp_path: Path) -> None:
    """Kinds come one by one, and the node last: until then there is no peer, and nothing may be taken back."""
    rig = Rig(tmp_path)
    rig.password("hunter2")
    rig.feeds.cluster_configs.publish(read(CLUSTER_CONFIG, CLUSTER))
    rig.feeds.peer_configs.publish(read(PEER_CONFIG, PLAIN))
    rig.feeds.advertisements.publish({})
    rig.feeds.overrides.publish({})
    assert (rig.peers, rig.synced) == ([], False)
    rig.nodes.publish({NODE: Node(NODE, (), (), RACK, ())})
    assert (rig.peers, rig.synced) == ([FIRST, SECOND], True)


def test_reload_changes_what_is_the_file_s(tmp_path: Path) -> None:
    """The brake is of the file, and sessions stay."""
    rig = Rig(tmp_path)
    rig.password("hunter2")
    rig.show()
    rig.reload(export={"maxPrefixes": 7})
    bgp = rig.derived.effective.newest.value.config.bgp
    assert (bgp.export.max_prefixes, len(bgp.peers)) == (7, 2)


def test_broken_objects_count_as_they_last_were(tmp_path: Path) -> None:
    """One that never could be used leaves it open what is wanted; one that could stays, and neither goes unnamed."""
    rig = Rig(tmp_path)
    rig.password("hunter2")
    broken = edited(PLAIN, timers={"holdTimeSeconds": 1})
    rig.show(peer=broken)
    assert (rig.peers, rig.synced) == ([], False)
    rig.show()
    assert (rig.peers, rig.synced) == ([FIRST, SECOND], True)
    rig.show(peer=broken)
    assert (rig.peers, rig.synced) == ([FIRST, SECOND], True)


def test_peer_that_is_refused_stays_as_it_was(tmp_path: Path) -> None:
    """With its password and what is announced to it; from the start it is not there, and all the rest is in order."""
    rig = Rig(tmp_path)
    rig.password("hunter2")
    auto = with_peer(peerASN=0)
    rig.show(cluster=auto)
    assert (rig.peers, rig.synced) == ([SECOND], True)
    rig.show()
    before = rig.derived.effective.newest.value
    rig.show(cluster=auto)
    after = rig.derived.effective.newest.value
    assert set(after.config.bgp.peers) == set(before.config.bgp.peers)
    assert set(after.config.bgp.advertisements) == set(before.config.bgp.advertisements)
    assert after.passwords == before.passwords
    assert "peerASN 0, whatever the peer says, is not supported" in rig.problems


def test_peer_config_that_is_gone_lets_no_session_fall(tmp_path: Path) -> None:
    """It is named instead, also to a peer that takes another's address meanwhile."""
    rig = Rig(tmp_path)
    rig.password("hunter2")
    rig.show()
    rig.show(peer=None)
    assert sorted(rig.peers) == [FIRST, SECOND]
    assert "there is no CiliumBGPPeerConfig cilium-peer" in rig.problems


def test_peer_that_is_refused_renames_no_peer_of_another_instance(tmp_path: Path) -> None:
    """Two instances with one peer name: the second's session must not become the first's."""
    rig = Rig(tmp_path)
    rig.password("hunter2")
    value = yaml.safe_load(CLUSTER)
    (first,) = value["spec"]["bgpInstances"]
    second = {**first, "name": "other", "peers": [{**first["peers"][0], "peerAddress": "fd00:12::1"}]}
    value["spec"]["bgpInstances"] = [first, second]
    rig.show(cluster=yaml.safe_dump(value))
    before = rig.derived.effective.newest.value.config.bgp.peers
    assert [peer.name for peer in before] == [FIRST, SECOND, f"other-{FIRST}"]
    first["peers"][0]["peerASN"] = 0
    rig.show(cluster=yaml.safe_dump(value))
    assert set(rig.derived.effective.newest.value.config.bgp.peers) == set(before)


def test_secrets(tmp_path: Path) -> None:
    """Missing, nothing may be taken back; there, it counts; replaced, the new one does; gone, the last one does."""
    rig = Rig(tmp_path)
    rig.show()
    assert (rig.peers, rig.synced) == ([], False)
    assert f"{tmp_path}/bgp-auth-secret/password: the file does not exist" in rig.problems
    file = rig.password("hunter2")
    rig.derived.derive()
    assert {name: secret.reveal() for name, secret in rig.passwords.items()} == {FIRST: "hunter2", SECOND: "hunter2"}
    assert rig.synced
    rig.password("swordfish")
    rig.derived.derive()
    assert rig.passwords[FIRST].reveal() == "swordfish"
    file.unlink()
    rig.derived.derive()
    assert (rig.passwords[FIRST].reveal(), rig.peers) == ("swordfish", [FIRST, SECOND])
    assert "the file does not exist" in rig.problems


def test_secret_names_that_lead_elsewhere(tmp_path: Path) -> None:
    """An object may name a Secret, not a path on the node."""
    rig = Rig(tmp_path / "secrets")
    (tmp_path / "secrets").mkdir()
    rig.password("hunter2", name="../elsewhere")
    rig.show(peer=edited(PEER, authSecretRef="../elsewhere"))
    assert rig.peers == []
    assert "there is no usable CiliumBGPPeerConfig cilium-peer" in rig.problems


def test_status_says_what_is_refused_and_missing_until_it_is_written() -> None:
    """Of the object's generation; once it stands there as wanted, there is nothing to write."""
    rig = Feeds()
    text = edited(PEER, families=[{"afi": "l2vpn", "safi": "evpn"}, {"afi": "ipv4", "safi": "unicast"}])
    rig.cluster_configs.publish(read(CLUSTER_CONFIG, CLUSTER, with_peer().replace("cilium-bgp", "other")))
    rig.peer_configs.publish(read(PEER_CONFIG, text))
    found = unwritten(rig.newest)
    assert set(found) == {
        Target("CiliumBGPClusterConfig", "cilium-bgp"),
        Target("CiliumBGPClusterConfig", "other"),
        Target("CiliumBGPPeerConfig", "cilium-peer"),
    }
    ((accepted,), (fine, there)) = (
        found[Target("CiliumBGPPeerConfig", "cilium-peer")],
        found[Target("CiliumBGPClusterConfig", "other")],
    )
    assert (accepted.type, accepted.status, accepted.reason) == (ACCEPTED, False, "Refused")
    assert accepted.message == "spec.families[0]: l2vpn/evpn is not supported; ipv4/unicast and ipv6/unicast are"
    assert (fine.status, there.type, there.status) == (True, MISSING_PEER_CONFIGS, False)
    rig.peer_configs.publish(written(rig.peer_configs.newest.value, found))
    assert Target("CiliumBGPPeerConfig", "cilium-peer") not in unwritten(rig.newest)


def written(objects: Mapping[str, Custom[Any]], found: Mapping[Target, Any]) -> dict[str, Custom[Any]]:
    """With the conditions in their status, as the API server then has them."""
    told = {target.name: conditions for target, conditions in found.items() if target.kind == "CiliumBGPPeerConfig"}
    return {
        name: Custom(it.name, it.labels, it.created, it.generation, it.spec, it.faults, told[name])
        for name, it in objects.items()
    }
