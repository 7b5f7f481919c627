"""A configuration's bytes to values: what is read, and what the defaults are."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from bgpd.bgp import codec
from bgpd.config import field
from bgpd.config.bgp import SpeakerMode
from bgpd.config.field import Listen, SnatSource
from bgpd.config.masquerade import MapOwner
from bgpd.config.parse import parse
from bgpd.config.schema import Config, LogFormat, LogLevel
from bgpd.config.section import Section
from bgpd.model.attachment import ChainingMode
from bgpd.model.bgp import Family
from bgpd.model.masq import Compat
from tests.unit.config_values import EXAMPLE, SMALLEST, changed, dump

FULL_PEER = """
name: tor-b
peerAddress: fd00::1
peerASN: "64512.1"
peerPort: 1179
localASN: 64513
localAddress: fd00::63
families: [ipv6-unicast, ipv4-unicast]
nextHop: {ipv4: 11.8.37.63, ipv6: fd00::64}
authPasswordFile: /etc/bgpd/tor-b.md5
ebgpMultihop: 4
passive: true
timers: {holdTimeSeconds: 9, keepAliveTimeSeconds: 3}
gracefulRestart: {enabled: false, restartTimeSeconds: 60}
nodeSelector:
  matchLabels: {rack: "7"}
  matchExpressions:
    - {key: role, operator: NotIn, values: [storage]}
    - {key: spine, operator: DoesNotExist}
    - {key: zone, operator: In, values: [a, b]}
    - {key: ready, operator: Exists}
"""


def read(value: object) -> Config:
    return parse(dump(value).encode(), "bgpd.yaml", "worker1").config


def test_the_smallest_configuration_has_the_documented_defaults() -> None:
    """What is left out has its default."""
    config = read(SMALLEST)
    assert config.node.name == "worker1"
    assert (config.paths.run, config.paths.state) == (Path("/run/bgpd"), Path("/var/lib/bgpd"))
    assert config.source.kubernetes is None
    bgp = config.bgp
    assert (bgp.local_asn, bgp.router_id, bgp.listen_port) == (64512, None, 179)
    assert (bgp.speaker, bgp.advertisements) == (SpeakerMode.EXTERNAL, ())
    assert (bgp.export.allow, bgp.export.max_prefixes) == (None, 1024)
    assert (bgp.end_of_rib_timeout_seconds, bgp.drain.wait_seconds) == (30, 10)
    (peer,) = bgp.peers
    assert (peer.peer_port, peer.local_asn, peer.local_address) == (179, None, None)
    assert (peer.next_hop.ipv4, peer.next_hop.ipv6, peer.auth_password_file) == (None, None, None)
    assert (peer.ttl_security, peer.ebgp_multihop, peer.passive) == (False, None, False)
    assert (peer.timers.hold_time_seconds, peer.timers.keep_alive_time_seconds) == (90, None)
    assert (peer.graceful_restart.enabled, peer.graceful_restart.restart_time_seconds) == (True, 120)
    assert peer.node_selector is None
    assert config.metrics.listen == Listen(ip_address(0), 9179)
    assert (config.log.level, config.log.format) == (LogLevel.INFO, LogFormat.AUTO)


def test_every_key_of_a_peer_is_read() -> None:
    """A peer with nothing left out."""
    peer = read(changed(("bgp", "peers", -1), yaml.safe_load(FULL_PEER))).bgp.peers[1]
    assert (peer.peer_asn, peer.local_asn, peer.peer_port) == (64512 * 65536 + 1, 64513, 1179)
    assert (peer.local_address, peer.next_hop.ipv4) == (ip_address("fd00::63"), ip_address("11.8.37.63"))
    assert peer.families == (Family.IPV6, Family.IPV4)
    assert (peer.auth_password_file, peer.ebgp_multihop) == (Path("/etc/bgpd/tor-b.md5"), 4)
    assert peer.passive
    assert (peer.timers.keep_alive_time_seconds, peer.graceful_restart.enabled) == (3, False)


def test_the_example_is_valid_and_warns_of_nothing() -> None:
    """config/bgpd.yaml is what an operator starts from."""
    parsed = parse(EXAMPLE.read_bytes(), "config/bgpd.yaml")
    assert parsed.warnings == ()
    assert [peer.name for peer in parsed.config.bgp.peers] == ["tor-a", "tor-b"]


def test_the_example_names_every_key() -> None:
    """Each key of the schema stands in the example, in use or commented out."""

    def keys(annotation: Any) -> Iterator[str]:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            for entry in annotation.model_fields.values():
                yield str(entry.alias)
                yield from keys(entry.annotation)
        for part in get_args(annotation):
            yield from keys(part)

    text = EXAMPLE.read_text()
    assert {key for key in keys(Config) if f"{key}:" not in text} == set()


@pytest.mark.parametrize(
    ("address", "family"), [("11.11.255.9", Family.IPV4), ("fd00::1", Family.IPV6)], ids=["v4", "v6"]
)
def test_families_follow_the_address(address: str, family: Family) -> None:
    """A peer that names no families has that of its address."""
    peer = {"name": "tor-b", "peerAddress": address, "peerASN": 1, "peerPort": 1}
    assert read(changed(("bgp", "peers", -1), peer)).bgp.peers[1].families == (family,)


@pytest.mark.parametrize(
    ("labels", "selected"),
    [
        ({"rack": "7", "zone": "a", "ready": ""}, True),
        ({"rack": "7", "zone": "a", "ready": "", "role": "compute"}, True),
        ({"rack": "7", "zone": "a", "ready": "", "role": "storage"}, False),
        ({"rack": "8", "zone": "a", "ready": ""}, False),
        ({"rack": "7", "zone": "c", "ready": ""}, False),
        ({"rack": "7", "ready": ""}, False),
        ({"rack": "7", "zone": "b"}, False),
        ({"rack": "7", "zone": "b", "ready": "", "spine": ""}, False),
        ({}, False),
    ],
)
def test_node_selector(labels: dict[str, str], selected: bool) -> None:
    """All requirements must hold; NotIn holds for a label that is not there."""
    selector = read(changed(("bgp", "peers", -1), yaml.safe_load(FULL_PEER))).bgp.peers[1].node_selector
    assert selector is not None
    assert selector.matches(labels) is selected


def test_an_empty_selector_selects_every_node() -> None:
    """As everywhere in Kubernetes."""
    selector = read(changed(("bgp", "peers", 0, "nodeSelector"), None)).bgp.peers[0].node_selector
    assert selector is not None
    assert selector.matches({})


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("off", None),
        ('"off"', None),
        ('""', None),
        ("127.0.0.1:80", Listen(ip_address("127.0.0.1"), 80)),
        ('"[::]:9179"', Listen(ip_address("::"), 9179)),
    ],
)
def test_metrics_listen(text: str, listen: Listen | None) -> None:
    """Off in any spelling, or an address with a port."""
    data = dump(SMALLEST) + f"metrics: {{listen: {text}}}\n"
    parsed = parse(data.encode(), "bgpd.yaml")
    assert parsed.config.metrics.listen == listen
    assert str(listen) in (text, text.strip('"'), "None")


def test_sections_without_lines_have_their_defaults() -> None:
    """`metrics:` above nothing but comments is no fault, and `kubernetes:` alone is a choice."""
    data = "source: {kubernetes: }\nnode:\nmetrics:\nlog:\n" + dump({"bgp": SMALLEST["bgp"]})
    config = parse(data.encode(), "bgpd.yaml").config
    assert config.source.kubernetes is not None
    assert config.source.kubernetes.kubeconfig is None
    assert config.log.level is LogLevel.INFO


def test_unquoted_communities_are_read_as_they_look() -> None:
    """YAML 1.1 would take 64512:10 for a number to the base of 60."""
    data = (
        dump(SMALLEST)
        + "  advertisements:\n  - advertisementType: PodCIDR\n"
        + "    attributes: {communities: [64512:10, no-export], largeCommunities: [64512:1:2], asPathPrepend: 2}\n"
    )
    (advertisement,) = parse(data.encode(), "bgpd.yaml").config.bgp.advertisements
    assert advertisement.attributes.communities == ("64512:10", "no-export")
    assert advertisement.attributes.large_communities == ("64512:1:2",)
    assert advertisement.attributes.as_path_prepend == 2
    assert advertisement.peers is None


def test_export_allow_takes_both_families() -> None:
    """Prefixes come out as networks."""
    config = read(changed(("bgp", "export", "allow"), ["188.188.0.0/16", "fd00::/8"]))
    assert config.bgp.export.allow == (ip_network("188.188.0.0/16"), ip_network("fd00::/8"))


def test_masquerade_is_off_and_has_the_references_defaults() -> None:
    """Without the section, and with one whose lines are commented out; the agent's reading and file."""
    for value in (SMALLEST, changed(("masquerade",), None), changed(("masquerade", "config"), None)):
        masquerade = read(value).masquerade
        assert not masquerade.enabled
        assert (masquerade.compat, masquerade.map) == (Compat.AGENT, MapOwner.OWN)
        assert masquerade.config.path == Path("/etc/config/ip-masq-agent")
        assert (masquerade.config.config_map, masquerade.cluster_cidrs, masquerade.f5_snat_pools) == (None, (), ())
        assert masquerade.snat_address.ipv4 is SnatSource.UPLINK
        assert not masquerade.nomasq_all_reserved_ranges


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ({}, False),
        ({"compat": "cilium"}, True),
        ({"ipv6": True}, True),
        ({"compat": "cilium", "ipv6": False}, False),
    ],
)
def test_ipv6_follows_the_reference_unless_told(section: dict[str, Any], wanted: bool) -> None:
    """ip-masq-agent needs --enable-ipv6, Cilium masquerades IPv6 unless told otherwise."""
    assert read(changed(("masquerade",), section)).masquerade.ipv6_wanted is wanted


def test_every_key_of_masquerade_is_read() -> None:
    """Nothing left out."""
    masquerade = read(
        changed(
            ("masquerade",),
            {
                "enabled": True,
                "config": {"configMap": "kube-system/ip-masq-agent"},
                "compat": "cilium",
                "map": "cilium",
                "clusterCIDRs": ["188.188.0.0/16", "fd00:188::/32"],
                "snatAddress": {"ipv4": "InternalIP", "ipv6": "fd00::63"},
                "f5SnatPools": ["11.8.37.4/30"],
            },
        )
    ).masquerade
    assert (masquerade.config.path, masquerade.config.config_map) == (None, "kube-system/ip-masq-agent")
    assert (masquerade.compat, masquerade.map) == (Compat.CILIUM, MapOwner.CILIUM)
    assert masquerade.cluster_cidrs == (ip_network("188.188.0.0/16"), ip_network("fd00:188::/32"))
    assert (masquerade.snat_address.ipv4, masquerade.snat_address.ipv6) == (
        SnatSource.INTERNAL_IP,
        ip_address("fd00::63"),
    )
    assert masquerade.f5_snat_pools == (ip_network("11.8.37.4/30"),)


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ({"enabled": False, "map": "cilium", "clusterCIDRs": ["10.0.0.0/8"]}, []),
        ({"clusterCIDRs": ["10.0.0.0/8"]}, []),
        ({}, ["clusterCIDRs"]),
        ({"map": "cilium"}, []),
        ({"map": "cilium", "clusterCIDRs": ["10.0.0.0/8"], "snatAddress": {"ipv4": "InternalIP"}},
         ["clusterCIDRs", "snatAddress"]),
        ({"map": "cilium", "compat": "cilium", "nomasqAllReservedRanges": True}, ["nomasqAllReservedRanges"]),
    ],
)  # fmt: skip
def test_masquerade_warns_of_what_is_missing_or_has_no_effect(section: dict[str, Any], keys: list[str]) -> None:
    """Only where it is on."""
    data = dump(changed(("masquerade",), {"enabled": True} | section)).encode()
    warned = [warning.key for warning in parse(data, "bgpd.yaml").warnings]
    assert [key.removeprefix("masquerade.") for key in warned if key.startswith("masquerade")] == keys


def test_community_names_are_those_the_codec_knows() -> None:
    """A name that is accepted here can be announced there."""
    assert set(codec.WELL_KNOWN_COMMUNITIES) == field.WELL_KNOWN_COMMUNITIES


def test_warnings() -> None:
    """What may be meant is said, with its place, and not refused."""
    parsed = parse(dump(SMALLEST).encode(), "bgpd.yaml")
    assert [str(warning) for warning in parsed.warnings] == [
        "bgpd.yaml:3:1: bgp.advertisements: not given: sessions are kept, and nothing is announced on them",
        "bgpd.yaml:3:1: bgp.export.allow: not given: whatever the cluster says is a podCIDR is announced, "
        "but for a default route; list the prefixes that pod addresses come from",
    ]


@pytest.mark.parametrize("section", [None, {}])
def test_without_a_chaining_mode_cni_is_left_alone(section: object) -> None:
    """Nobody's conflist is replaced unasked."""
    config = read(changed(("cni",), section))
    assert (config.cni.chaining_mode, config.cni.config_map, config.cni.deadline_seconds) == (None, None, 5)
    assert (config.paths.cni_conf, config.paths.cni_bin) == (Path("/etc/cni/net.d"), Path("/opt/cni/bin"))


def test_every_key_of_cni_is_read() -> None:
    """Nothing left out."""
    section = {"chainingMode": "generic-veth", "configMap": "kube-system/cni-configuration", "deadlineSeconds": 30}
    cni = read(changed(("cni",), section)).cni
    assert (cni.chaining_mode, cni.config_map) == (ChainingMode.GENERIC_VETH, "kube-system/cni-configuration")
    assert cni.deadline_seconds == 30
