"""What an operator reads when the configuration is wrong; and that nothing but faults ever comes of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpd.config.parse import parse
from bgpd.model.fault import FaultsError
from tests.unit.config_values import EXAMPLE, PEER, SMALLEST, changed, dump


def refused(data: str | bytes) -> list[str]:
    with pytest.raises(FaultsError) as caught:
        parse(data if isinstance(data, bytes) else data.encode(), "bgpd.yaml")
    return [str(fault) for fault in caught.value.faults]


def without_place(fault: str) -> str:
    return fault.split(": ", 1)[1]


ADVERTISEMENT = {"advertisementType": "PodCIDR"}
U32 = "give a whole number from 0 to 4294967295"


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("node", "name"), "Worker_1", "node.name: found 'Worker_1'; give a node's name: "
         "lower-case letters, digits, inner dashes and dots"),
        (("paths", "run"), "run", "paths.run: found 'run'; give an absolute path"),
        (("paths", "run"), "/" + 80 * "x", "paths.run: it is too long for sockets; "
         "give a path of at most 80 bytes"),
        (("paths", "state"), "/a\0b", "paths.state: found '/a\\x00b'; give an absolute path"),
        (("paths", "cni"), "/x", "paths.cni: unknown key 'cni'; "
         "known here are run, state, bpf, cniConf, cniBin, cniCache, flannel"),
        (("policy", "foreignMACAddresses"), ["02-00-00-00-00-0a"],
         "policy.foreignMACAddresses[0]: found '02-00-00-00-00-0a'; "
         "give the MAC address of one interface, like '02:00:00:00:00:0a'"),
        (("policy", "foreignMACAddresses"), ["ff:ff:ff:ff:ff:ff"],
         "policy.foreignMACAddresses[0]: found ff:ff:ff:ff:ff:ff, which no interface has; "
         "give the MAC address of one interface, like '02:00:00:00:00:0a'"),
        (("policy", "foreignMACAddresses"), ["02:00:00:00:00:0a", "02:00:00:00:00:0A"],
         "policy.foreignMACAddresses: '02:00:00:00:00:0a' is listed twice"),
        (("policy", "foreignCIDRs"), ["203.0.113.1/28"],
         "policy.foreignCIDRs[0]: '203.0.113.1/28' has host bits set; did you mean 203.0.113.0/28?"),
        (("cni", "chainingMode"), "veth",
         "cni.chainingMode: found 'veth'; give auto, generic-veth, macvlan, ipvlan, cbr0, portmap, terway-chainer or "
         "spidernet-chainer"),
        (("cni", "deadlineSeconds"), 0, "cni.deadlineSeconds: found 0; give a whole number from 1 to 600"),
        (("cni", "configMap"), "cni-configuration", "cni.configMap: found 'cni-configuration'; "
         "give a namespace and a name, like 'kube-system/ip-masq-agent'"),
        (("source", "kubernetes"), {}, "source: give exactly one of 'kubernetes' and 'manifests'"),
        (("source", "manifests"), None, "source.manifests: found nothing; give an absolute path"),
        (("source",), [], "source: found a list; give a mapping"),
        (("bgp", "localASN"), 0, "bgp.localASN: found 0; "
         "give an ASN from 1 to 4294967295, or in asdot like '64512.1'"),
        (("bgp", "localASN"), 64512.1, "bgp.localASN: found the number 64512.1; "
         "put an ASN in asdot notation in quotes"),
        (("bgp", "localASN"), "65536.0", "bgp.localASN: found '65536.0'; "
         "give an ASN from 1 to 4294967295, or in asdot like '64512.1'"),
        (("bgp", "routerID"), "fd00::1", "bgp.routerID: found fd00::1; give an IPv4 address"),
        (("bgp", "listenPort"), "179", "bgp.listenPort: found '179'; give a whole number from 0 to 65535"),
        (("bgp", "listenPort"), True, "bgp.listenPort: found true; give a whole number from 0 to 65535"),
        (("bgp", "speaker"), "extern", "bgp.speaker: found 'extern'; give external or managed; "
         "did you mean 'external'?"),
        (("bgp", "peers"), [], "bgp.peers: the list is empty; name at least one"),
        (("bgp", "peers"), {}, "bgp.peers: found a mapping; give a list"),
        (("bgp", "endOfRIBTimeoutSeconds"), 0, "bgp.endOfRIBTimeoutSeconds: found 0; "
         "give a whole number from 1 to 3600"),
        (("bgp", "drain", "waitSeconds"), 1.5, "bgp.drain.waitSeconds: found 1.5; "
         "give a whole number from 0 to 600"),
        (("bgp", "peer"), [], "bgp.peer: unknown key 'peer'; did you mean 'peers'?"),
        (("coordinator",), {}, "coordinator: unknown key 'coordinator'; "
         "known here are node, paths, source, bgp, nodeRoutes, services, masquerade, policy, virtualServers, "
         "cni, vxlan, metrics, log"),
        ((*PEER, "peerAdress"), "1", "bgp.peers[0].peerAdress: unknown key 'peerAdress'; "
         "did you mean 'peerAddress'?"),
        ((*PEER, "peer_port"), 1, "bgp.peers[0].peer_port: unknown key 'peer_port'; "
         "did you mean 'peerPort'?"),
        ((*PEER, "name"), "ToR A", "bgp.peers[0].name: found 'ToR A'; "
         "give up to 63 lower-case letters, digits and inner dashes"),
        ((*PEER, "peerAddress"), "11.11.255.1/24", "bgp.peers[0].peerAddress: "
         "'11.11.255.1/24' is not an IP address; leave the length off"),
        ((*PEER, "peerAddress"), "224.0.0.5", "bgp.peers[0].peerAddress: found 224.0.0.5; "
         "give the address of one machine"),
        ((*PEER, "peerAddress"), "fe80::1", "bgp.peers[0].peerAddress: found fe80::1, which is link-local; "
         "give a global or unique local address, or the peer's interface instead"),
        ((*PEER, "peerPort"), 0, "bgp.peers[0].peerPort: found 0; give a whole number from 1 to 65535"),
        ((*PEER, "interface"), "eth1", "bgp.peers[0]: give exactly one of 'peerAddress', 'interface' and "
         "'autoDiscovery'"),
        (("bgp", "peers", -1), {"name": "a", "interface": "eth 1", "peerASN": 1},
         "bgp.peers[1].interface: found 'eth 1'; give an interface's name as in `ip link`, up to 15 characters"),
        (("bgp", "peers", -1), {"name": "a", "interface": "eth1", "peerASN": 1, "localAddress": "fd00::1"},
         "bgp.peers[1].localAddress: a peer that is found has a link with addresses of its own; remove it"),
        (("bgp", "peers", -1), {"name": "a", "interface": "eth1", "peerASN": 1, "ebgpMultihop": 2},
         "bgp.peers[1].ebgpMultihop: a peer that is found is on our own link; remove it"),
        (("bgp", "peers", -1), {"name": "a", "interface": "eth1", "peerASN": 1, "bfd": {"multihop": True}},
         "bgp.peers[1].bfd.multihop: a peer that is found is on our own link; remove it"),
        (("bgp", "peers", -1), {"name": "a", "interface": "eth1", "peerASN": 1, "families": ["ipv4-unicast"]},
         "bgp.peers[1].extendedNextHop: ExaBGP offers it where both families are on the session: give "
         "families: [ipv4-unicast, ipv6-unicast]"),
        (("bgp", "peers", -1), {"name": "a", "autoDiscovery": {"mode": "Default"}, "peerASN": 1},
         "bgp.peers[1].autoDiscovery.mode: found 'Default'; give DefaultGateway"),
        (("bgp", "peers"), [{"name": n, "interface": "eth1", "peerASN": 1} for n in "ab"],
         "bgp.peers[1].interface: bgp.peers[0] is at eth1 already"),
        (("bgp", "peers"), [{"name": n, "autoDiscovery": {"mode": "DefaultGateway", "defaultGateway": family},
                             "peerASN": 1} for n, family in (("a", {}), ("b", {"addressFamily": "ipv6"}))],
         "bgp.peers[1].autoDiscovery: bgp.peers[0] finds those gateways already"),
        ((*PEER, "localAddress"), "fd00::1", "bgp.peers[0].localAddress: "
         "it is ipv6 and peerAddress is ipv4; one session needs both of one family"),
        ((*PEER, "localAddress"), None, "bgp.peers[0].localAddress: found nothing; give an IP address"),
        ((*PEER, "families"), [], "bgp.peers[0].families: the list is empty; name at least one"),
        ((*PEER, "families"), ["ipv6"], "bgp.peers[0].families[0]: found 'ipv6'; "
         "give ipv4-unicast or ipv6-unicast"),
        ((*PEER, "families"), 2 * ["ipv4-unicast"], "bgp.peers[0].families: 'ipv4-unicast' is listed twice"),
        ((*PEER, "nextHop"), {"ipv6": "11.8.37.63"}, "bgp.peers[0].nextHop.ipv6: found 11.8.37.63; "
         "give an IPv6 address"),
        ((*PEER, "authPasswordFile"), None, "bgp.peers[0].authPasswordFile: found nothing; "
         "give an absolute path"),
        ((*PEER, "ttlSecurity"), 1, "bgp.peers[0].ttlSecurity: found 1; give true or false"),
        ((*PEER, "bfd"), {"transmitInterval": 50}, "bgp.peers[0].bfd.transmitInterval: unknown key "
         "'transmitInterval'; did you mean 'transmitIntervalMilliseconds'?"),
        ((*PEER, "bfd"), {"receiveIntervalMilliseconds": 5}, "bgp.peers[0].bfd.receiveIntervalMilliseconds: found 5; "
         "give a whole number from 10 to 60000"),
        ((*PEER, "bfd"), {"detectMultiplier": 0}, "bgp.peers[0].bfd.detectMultiplier: found 0; "
         "give a whole number from 1 to 255"),
        ((*PEER, "ebgpMultihop"), 256, "bgp.peers[0].ebgpMultihop: found 256; "
         "give a whole number from 1 to 255"),
        ((*PEER, "timers"), {"holdTimeSeconds": 2}, "bgp.peers[0].timers.holdTimeSeconds: found 2; "
         "give 0 or a whole number from 3 to 65535"),
        ((*PEER, "timers"), {"keepAliveTimeSeconds": 10}, "bgp.peers[0].timers.keepAliveTimeSeconds: "
         "found 10; ExaBGP always sends keepalives at a third of the hold time: "
         "give 30 to go with holdTimeSeconds 90, or leave the key out"),
        ((*PEER, "timers"), {"connectRetryTimeSeconds": 5}, "bgp.peers[0].timers.connectRetryTimeSeconds: "
         "unknown key 'connectRetryTimeSeconds'; known here are holdTimeSeconds, keepAliveTimeSeconds"),
        ((*PEER, "gracefulRestart"), {"restartTimeSeconds": 4096},
         "bgp.peers[0].gracefulRestart.restartTimeSeconds: found 4096; give a whole number from 1 to 4095"),
        ((*PEER, "nodeSelector"), {"matchLabels": {"rack": 7}}, "bgp.peers[0].nodeSelector.matchLabels.rack: "
         "found 7; give text, in quotes if it looks like something else"),
        ((*PEER, "nodeSelector"), {"matchLabels": []}, "bgp.peers[0].nodeSelector.matchLabels: "
         "found a list; give a mapping"),
        ((*PEER, "nodeSelector"), {"matchExpressions": [{"key": "a", "operator": "In"}]},
         "bgp.peers[0].nodeSelector.matchExpressions[0]: In needs 'values'; name at least one"),
        ((*PEER, "nodeSelector"), {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]},
         "bgp.peers[0].nodeSelector.matchExpressions[0]: Exists takes no 'values'; remove them"),
        (("bgp", "peers", -1), "tor-b", "bgp.peers[1]: found 'tor-b'; give a mapping"),
        (("bgp", "peers", -1), {"name": "tor-a", "peerAddress": "11.11.255.2", "peerASN": 1},
         "bgp.peers[1].name: bgp.peers[0] has the name 'tor-a' already"),
        (("bgp", "peers", -1), {"name": "tor-b", "peerAddress": "11.11.255.1", "peerASN": 1},
         "bgp.peers[1].peerAddress: bgp.peers[0] is at 11.11.255.1 already"),
        (("bgp", "advertisements"), [{"advertisementType": "EgressIP"}],
         "bgp.advertisements[0].advertisementType: EgressIP is not available in this version; "
         "give PodCIDR, PodIP, Service or VirtualServer"),
        (("bgp", "advertisements"), [{"advertisementType": "PodCidr"}],
         "bgp.advertisements[0].advertisementType: found 'PodCidr'; give PodCIDR, PodIP, Service or VirtualServer; "
         "did you mean 'PodCIDR'?"),
        (("bgp", "advertisements"), [{"advertisementType": "Service", "selector": {}}],
         "bgp.advertisements[0]: type Service needs 'service'; give {addresses: [LoadBalancerIP]}, say"),
        (("bgp", "advertisements"), [{"advertisementType": "Service", "service": {"addresses": ["ClusterIP"]}}],
         "bgp.advertisements[0]: type Service needs 'selector'; {} selects every Service"),
        (("bgp", "advertisements"), [ADVERTISEMENT | {"selector": {}}],
         "bgp.advertisements[0]: 'service' and 'selector' are for type Service; remove them"),
        (("bgp", "advertisements"), [{"advertisementType": "Service", "service": {}, "selector": {}}],
         "bgp.advertisements[0].service.addresses: it is missing and has no default"),
        (("services", "maxWithdrawnPercent"), 101,
         "services.maxWithdrawnPercent: found 101; give a whole number from 0 to 100"),
        (("bgp", "advertisements"), [{}],
         "bgp.advertisements[0].advertisementType: it is missing and has no default"),
        (("bgp", "advertisements"), [ADVERTISEMENT | {"peers": ["tor-b"]}],
         "bgp.advertisements[0].peers[0]: no peer has the name 'tor-b'; did you mean 'tor-a'?"),
        (("bgp", "advertisements"), [ADVERTISEMENT | {"peers": []}],
         "bgp.advertisements[0].peers: the list is empty; name at least one"),
        (("bgp", "advertisements"), [ADVERTISEMENT, ADVERTISEMENT | {"peers": ["tor-a"]}],
         "bgp.advertisements[1]: bgp.advertisements[0] announces PodCIDR to 'tor-a' already; "
         "one set of attributes must do"),
        (("bgp", "advertisements"), [ADVERTISEMENT | {"attributes": {"communities": ["64512:65536"]}}],
         "bgp.advertisements[0].attributes.communities[0]: found '64512:65536'; "
         "give one like '64512:100' (both up to 65535) or a well-known name"),
        (("bgp", "advertisements"), [ADVERTISEMENT | {"attributes": {"communities": ["no_export"]}}],
         "bgp.advertisements[0].attributes.communities[0]: found 'no_export'; give one like '64512:100' "
         "(both up to 65535) or a well-known name; did you mean 'no-export'?"),
        (("bgp", "advertisements"), [ADVERTISEMENT | {"attributes": {"largeCommunities": ["1:02:3"]}}],
         "bgp.advertisements[0].attributes.largeCommunities[0]: found '1:02:3'; "
         "give one like '64512:1:2' (each up to 4294967295)"),
        (("bgp", "advertisements"), [ADVERTISEMENT | {"attributes": {"med": -1}}],
         f"bgp.advertisements[0].attributes.med: found -1; {U32}"),
        (("bgp", "advertisements"), [ADVERTISEMENT | {"attributes": {"asPathPrepend": 17}}],
         "bgp.advertisements[0].attributes.asPathPrepend: found 17; give a whole number from 0 to 16"),
        (("bgp", "export", "allow"), ["10.0.0.1/8"], "bgp.export.allow[0]: '10.0.0.1/8' has host bits set; "
         "did you mean 10.0.0.0/8?"),
        (("bgp", "export", "allow"), [], "bgp.export.allow: the list is empty; name at least one"),
        (("bgp", "export", "allow"), None, "bgp.export.allow: the list is empty; name at least one"),
        (("masquerade", "config"), {"path": "/x", "configMap": "a/b"}, "masquerade.config: "
         "give only one of 'path' and 'configMap'"),
        (("masquerade", "config"), {"configMap": "ip-masq-agent"}, "masquerade.config.configMap: "
         "found 'ip-masq-agent'; give a namespace and a name, like 'kube-system/ip-masq-agent'"),
        (("masquerade", "compat"), "calico", "masquerade.compat: found 'calico'; give agent or cilium"),
        (("masquerade", "map"), "agent", "masquerade.map: found 'agent'; give own or cilium"),
        (("masquerade", "ipv6"), "yes", "masquerade.ipv6: found 'yes'; give true or false"),
        (("masquerade", "clusterCIDRs"), ["188.188.1.0/16"], "masquerade.clusterCIDRs[0]: "
         "'188.188.1.0/16' has host bits set; did you mean 188.188.0.0/16?"),
        (("masquerade", "clusterCidrs"), [], "masquerade.clusterCidrs: unknown key 'clusterCidrs'; "
         "did you mean 'clusterCIDRs'?"),
        (("masquerade", "f5SnatPools"), 2 * ["11.8.37.4/30"], "masquerade.f5SnatPools: "
         "'11.8.37.4/30' is listed twice"),
        (("masquerade", "snatAddress"), {"ipv4": "internalip"}, "masquerade.snatAddress.ipv4: "
         "found 'internalip'; give uplink, InternalIP or an IPv4 address; did you mean 'InternalIP'?"),
        (("masquerade", "snatAddress"), {"ipv6": "11.8.37.63"}, "masquerade.snatAddress.ipv6: found 11.8.37.63; "
         "give an IPv6 address"),
        (("metrics", "listen"), 9179, "metrics.listen: found 9179; "
         "give '0.0.0.0:9179' or '[::]:9179', or off for none"),
        (("metrics", "listen"), ":::9179", "metrics.listen: found ':::9179'; "
         "give '0.0.0.0:9179' or '[::]:9179', or off for none"),
        (("metrics", "listen"), "host:80", "metrics.listen: 'host' is not an IP address; "
         "write it like 192.0.2.1 or 2001:db8::1"),
        (("log", "level"), "warn", "log.level: found 'warn'; give debug, info, warning or error; "
         "did you mean 'warning'?"),
        (("log", "format"), ["json"], "log.format: found a list; give auto, pretty or json"),
    ],
)  # fmt: skip
def test_one_fault(path: tuple[str | int, ...], value: object, fault: str) -> None:
    """One bad value gives one fault: the key, what was found, what would be right."""
    assert [without_place(line) for line in refused(dump(changed(path, value)))] == [fault]


def test_ttl_security_excludes_multihop() -> None:
    """One wants no router in between, the other allows some."""
    peer = SMALLEST["bgp"]["peers"][0] | {"ttlSecurity": True, "ebgpMultihop": 2}
    assert [without_place(line) for line in refused(dump(changed(("bgp", "peers"), [peer])))] == [
        "bgp.peers[0].ttlSecurity: it wants a peer without routers in between, ebgpMultihop the opposite; remove one"
    ]


def test_passive_needs_a_port_to_be_dialled_at() -> None:
    """A peer that neither dials nor listens would never come up."""
    config = changed((*PEER, "passive"), True)
    config["bgp"]["listenPort"] = 0
    assert [without_place(line) for line in refused(dump(config))] == [
        "bgp.peers[0].passive: it waits for the peer to dial, but bgp.listenPort is 0; give a port or dial"
    ]


SEVERAL = """\
source: {manifests: /etc/bgpd/manifests}
log: {level: loud}
bgp:
  peers:
    - name: tor-a
      peerAddress: 11.11.255.1
      peerASN: 0
    - name: tor-b
      peerAddress: 11.11.255.2
      peerASN: 64512
      timers: {holdTimeSeconds: 9, keepAliveTimeSeconds: 4}
    - name: tor-b
      peerAddress: 11.11.255.3
      peerASN: 64512
      passive: false
      passive: true
  advertisements:
    - {advertisementType: PodCIDR, peers: [tor-a, tor-c]}
"""


def test_faults_of_every_kind_come_at_once_in_order() -> None:
    """YAML, schema, values and contradictions of one file, sorted by line; a faulty peer is still a name."""
    assert refused(SEVERAL) == [
        "bgpd.yaml:2:7: log.level: found 'loud'; give debug, info, warning or error",
        "bgpd.yaml:3:1: bgp.localASN: it is missing and has no default",
        "bgpd.yaml:7:7: bgp.peers[0].peerASN: found 0; give an ASN from 1 to 4294967295, or in asdot like '64512.1'",
        "bgpd.yaml:11:36: bgp.peers[1].timers.keepAliveTimeSeconds: found 4; ExaBGP always sends keepalives "
        "at a third of the hold time: give 3 to go with holdTimeSeconds 9, or leave the key out",
        "bgpd.yaml:12:7: bgp.peers[2].name: bgp.peers[1] has the name 'tor-b' already",
        "bgpd.yaml:16:7: bgp.peers[2].passive: the key is given twice; it is already on line 15, column 7",
        "bgpd.yaml:18:51: bgp.advertisements[0].peers[1]: no peer has the name 'tor-c'; did you mean 'tor-b'?",
    ]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("", "bgpd.yaml: the file is empty; give a mapping with at least 'source' and 'bgp'"),
        ("# nothing\n---\n", "bgpd.yaml: the file is empty; give a mapping with at least 'source' and 'bgp'"),
        ("\n- a\n", "bgpd.yaml:2:1: found a list; give a mapping with at least 'source' and 'bgp'"),
        ("a: 1\n---\nb: 2\n", "bgpd.yaml:3:1: a second document; one file holds one configuration"),
        (b"\x89PNG\r\n", "bgpd.yaml:1:1: the byte 0x89 is not UTF-8 text"),
        ("bgp: [", "bgpd.yaml:2:1: not YAML: did not find expected node content (while parsing a flow node)"),
        ("[" * 1_000_000, "bgpd.yaml:1:65: it nests deeper than 64 levels"),
        (b" " * 50_000_000, "bgpd.yaml: it has 50000000 bytes; at most 1048576 are read"),
    ],
    ids=["empty", "comment", "list", "two documents", "binary", "syntax", "deep", "big"],
)
def test_files_that_are_no_configuration(data: str | bytes, fault: str) -> None:
    """What is wrong as a whole is said once."""
    assert refused(data) == [fault]


def test_a_file_of_nothing_but_faults_is_answered_briefly() -> None:
    """Ten thousand bad peers cost neither minutes nor ten thousand lines."""
    assert len(refused("bgp: {localASN: 1, peers: [" + "x," * 10_000 + "]}")) <= 200


# --- anything ---------------------------------------------------------------------------------------------

ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
ANY_PATH = st.sampled_from(
    [
        ("source",),
        ("source", "kubernetes"),
        ("bgp",),
        ("bgp", "peers"),
        ("bgp", "peers", -1),
        *((*PEER, key) for key in ("name", "peerAddress", "families", "timers", "nextHop", "nodeSelector")),
        ("bgp", "advertisements"),
        ("bgp", "export", "allow"),
        ("metrics", "listen"),
    ]
)


def take(data: bytes) -> None:
    try:
        parse(data, "bgpd.yaml")
    except FaultsError as error:
        assert error.faults
        assert list(error.faults) == sorted(error.faults)
        assert all(str(fault).isprintable() for fault in error.faults)


@settings(deadline=None)
@given(st.binary(max_size=100) | st.text("bgp: {}[]-&*\n'\"", max_size=60).map(str.encode))
def test_no_bytes_raise_anything_but_faults(data: bytes) -> None:
    """Whatever is in the file, the answer is a configuration or a list of faults."""
    take(data)


@settings(deadline=None)
@given(ANY_PATH, ANY_VALUE)
def test_no_value_raises_anything_but_faults(path: tuple[str | int, ...], value: object) -> None:
    """Nor does a value of any type in any place."""
    take(dump(changed(path, value)).encode())


@settings(deadline=None)
@given(st.data())
def test_a_damaged_example_raises_nothing_but_faults(data: st.DataObject) -> None:
    """A file that was cut and stitched."""
    text = EXAMPLE.read_bytes()
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 200))
    take(text[:start] + data.draw(st.binary(max_size=5)) + text[start + length :])


def test_bfd_has_one_multiplier_for_each_kind() -> None:
    """BIRD's limit: two multihop peers must agree, a single-hop one beside them may differ."""
    first = SMALLEST["bgp"]["peers"][0] | {"bfd": {"multihop": True}}
    slow = {"bfd": {"multihop": True, "detectMultiplier": 5}}
    other = first | {"name": "tor-b", "peerAddress": "11.11.255.2"}
    near = {"bfd": {"multihop": False, "detectMultiplier": 5}}
    for peers, faults in (([first, other], 0), ([first, other | near], 0), ([first, other | slow], 1)):
        document = dump(SMALLEST | {"bgp": SMALLEST["bgp"] | {"peers": peers}})
        if not faults:
            parse(document.encode(), "bgpd.yaml")
            continue
        assert [without_place(fault) for fault in refused(document)] == [
            "bgp.peers[1].bfd.detectMultiplier: bgp.peers[0] has 3; BIRD has one for all multihop sessions: "
            "give both the same"
        ]


def test_bfd_intervals_that_a_peer_has_to_have_too() -> None:
    """All sessions of a kind offer the shortest; whoever is to have longer ones is named."""
    first = SMALLEST["bgp"]["peers"][0] | {"bfd": {"multihop": True, "transmitIntervalMilliseconds": 100}}
    other = first | {"name": "tor-b", "peerAddress": "11.11.255.2", "bfd": {"multihop": True}}
    near = first | {"name": "tor-c", "peerAddress": "11.11.255.3", "bfd": {"multihop": False}}
    document = dump(SMALLEST | {"bgp": SMALLEST["bgp"] | {"peers": [first, other, near]}})
    said = [without_place(str(it)) for it in parse(document.encode(), "bgpd.yaml").warnings]
    assert [it for it in said if ".bfd" in it] == [
        "bgp.peers[1].bfd: 300 and 300 ms hold if 'tor-b' has them too: for all multihop sessions BIRD has the "
        "shortest intervals of any, 100 and 300 ms, and the slower of both ends counts"
    ]


def test_multihop_bfd_and_ttl_security_exclude_each_other() -> None:
    """As multihop BGP and TTL security do."""
    peer = SMALLEST["bgp"]["peers"][0] | {"ttlSecurity": True, "bfd": {"multihop": True}}
    document = dump(SMALLEST | {"bgp": SMALLEST["bgp"] | {"peers": [peer]}})
    assert [without_place(fault) for fault in refused(document)] == [
        "bgp.peers[0].bfd.multihop: ttlSecurity wants a peer without routers in between; remove one"
    ]
