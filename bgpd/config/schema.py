"""What a configuration holds, by section: each key with its meaning, unit and the reason for its default.

Whether a single value is acceptable is decided in `field`; whether the values fit together, in `check`. The
keys in the file are these names in camelCase, as Kubernetes and Cilium spell theirs. A section that is not
given has its defaults. Instances come from `parse` and `load` and do not change.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any

from pydantic import model_validator

from bgpd.config.field import (
    ADDRESS,
    ASN_NUMBER,
    BOOLEAN,
    COMMUNITY,
    CONFIG_MAP,
    DISTINCT,
    DISTINCT_NAMES,
    ENDPOINT,
    HTTP_URL,
    IPV4,
    IPV6,
    LARGE_COMMUNITY,
    LISTEN,
    MAC_ADDRESS,
    NODE_NAME,
    NOT_EMPTY,
    PATH,
    PEER_NAME,
    PREFIX,
    SNAT_IPV4,
    SNAT_IPV6,
    SOCKET_DIRECTORY,
    TEXT,
    Listen,
    SnatSource,
    one_of,
    whole,
)
from bgpd.config.section import PRESENT, Section
from bgpd.config.selector import NodeSelector
from bgpd.model.attachment import ChainingMode
from bgpd.model.bgp import ASN, Family
from bgpd.model.masq import Compat
from bgpd.model.policy import Overflow
from bgpd.model.prefix import Address, Prefix, PrefixError, parse_address

_PORT = whole(1, 65535)
_U32 = whole(0, 2**32 - 1)


class SpeakerMode(StrEnum):
    """Who starts ExaBGP."""

    EXTERNAL = "external"
    MANAGED = "managed"


class AdvertisementType(StrEnum):
    """What is announced."""

    POD_CIDR = "PodCIDR"


class MapOwner(StrEnum):
    """Whose maps hold the list, and whose datapath asks them."""

    OWN = "own"
    CILIUM = "cilium"


class NodeRoutes(StrEnum):
    """How pods of other nodes are reached."""

    NONE = "none"
    HOST_GW = "host-gw"
    VXLAN = "vxlan"
    AUTO = "auto"


class LogLevel(StrEnum):
    """The least severe lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line is written."""

    AUTO = "auto"
    PRETTY = "pretty"
    JSON = "json"


class Node(Section):
    """Which node this is."""

    name: Annotated[str, NODE_NAME] = ""
    """The name of its Node object. Default: the host name in lower case, which is what kubelet registers."""


class Paths(Section):
    """Where files are kept. Change them to run several nodes on one machine."""

    run: Annotated[Path, SOCKET_DIRECTORY] = Path("/run/bgpd")
    """Sockets and the rendered speaker configuration; may be empty after a reboot."""

    state: Annotated[Path, PATH] = Path("/var/lib/bgpd")
    """What must survive a reboot: whether the node is drained, the last good masquerade document."""

    bpf: Annotated[Path, PATH] = Path("/sys/fs/bpf/bgpd")
    """Pinned BPF maps and programs; a directory of a BPF file system."""

    cni_conf: Annotated[Path, PATH] = Path("/etc/cni/net.d")
    """Where the container runtime looks for its network configuration."""

    cni_bin: Annotated[Path, PATH] = Path("/opt/cni/bin")
    """Where the container runtime looks for CNI plugins."""

    cni_cache: Annotated[Path, PATH] = Path("/var/lib/cni")
    """Where the container runtime keeps results of plugins, which tell of pods that ran before ours was chained."""

    flannel: Annotated[Path, PATH] = Path("/run/flannel")
    """Where flanneld, if there is one, keeps subnet.env: node routes are left to it then."""


class Kubernetes(Section):
    """The API server as the source."""

    kubeconfig: Annotated[Path | None, PATH] = None
    """None: the service account of the pod that the daemon runs in."""


class Source(Section):
    """Where Kubernetes objects come from: exactly one of the two."""

    kubernetes: Annotated[Kubernetes | None, PRESENT] = None

    manifests: Annotated[Path | None, PATH] = None
    """A directory of YAML files with Kubernetes objects, read again whenever one of them changes."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        if (self.kubernetes is None) == (self.manifests is None):
            raise ValueError("give exactly one of 'kubernetes' and 'manifests'")
        return self


class NextHop(Section):
    """The next hop to announce, per family. None: the session's own address, or the node's InternalIP."""

    ipv4: Annotated[IPv4Address | None, IPV4] = None
    ipv6: Annotated[IPv6Address | None, IPV6] = None


class Timers(Section):
    """RFC 4271 section 4.2. How often a connection is retried is up to ExaBGP and cannot be set."""

    hold_time_seconds: Annotated[int, whole(3, 65535, or_zero=True)] = 90
    """A peer that is silent for this long is lost; 0: never. The lower of the two sides' values is used.
    90 is RFC 4271's suggestion; below 9 a busy node may be taken for a dead one."""

    keep_alive_time_seconds: Annotated[int | None, whole(0, 21845)] = None
    """Only for symmetry with Cilium: ExaBGP sends keepalives at a third of the hold time, so this must be
    holdTimeSeconds // 3 or left out."""


class GracefulRestart(Section):
    """RFC 4724: the peer keeps our routes while the speaker is restarted."""

    enabled: Annotated[bool, BOOLEAN] = True

    restart_time_seconds: Annotated[int, whole(1, 4095)] = 120
    """How long the peer keeps them. 120 is Cilium's and BIRD's default: longer than any restart, shorter than
    anyone wants traffic to run into a node that is gone. The field in the message has 12 bits."""


class Bfd(Section):
    """RFC 5880: a path that carries nothing is noticed in milliseconds. The slower of both ends counts."""

    transmit_interval_milliseconds: Annotated[int, whole(10, 60_000)] = 300
    """How often we send. 300, as FRR and most switches have it: one node's packets cost next to nothing, and a
    node that is busy for a moment does not lose its routes."""

    receive_interval_milliseconds: Annotated[int, whole(10, 60_000)] = 300
    """How often the peer may send."""

    detect_multiplier: Annotated[int, whole(1, 255)] = 3
    """How many packets in a row the peer misses before it takes the path for dead. RFC 5880 has no default; 3 is
    everybody's: one lost packet is no outage."""

    multihop: Annotated[bool | None, BOOLEAN] = None
    """RFC 5883 (UDP port 4784) instead of RFC 5881 (3784); both ends must agree. None: as for BGP itself, so
    multihop where ebgpMultihop is given, and on iBGP unless ttlSecurity is set."""


class Peer(Section):
    """One BGP neighbor, as a rule a ToR switch."""

    name: Annotated[str, PEER_NAME]
    """Ours, for advertisements, commands and metrics."""

    peer_address: Annotated[Address, ADDRESS]

    peer_asn: Annotated[ASN, ASN_NUMBER]
    """The same as ours makes the session iBGP."""

    peer_port: Annotated[int, _PORT] = 179
    """TCP port that we dial."""

    local_asn: Annotated[ASN | None, ASN_NUMBER] = None
    """None: bgp.localASN. Another one is for a rack whose switches expect the node in an AS of its own."""

    local_address: Annotated[Address | None, ADDRESS] = None
    """The source address of the session. None: the node's InternalIP of the peer's family."""

    families: Annotated[tuple[Annotated[Family, one_of(Family)], ...], NOT_EMPTY, DISTINCT]
    """Default: the family of peerAddress, for which the session's own address is a next hop."""

    next_hop: NextHop = NextHop()

    auth_password_file: Annotated[Path | None, PATH] = None
    """One line with the TCP MD5 password (RFC 2385). None: no authentication."""

    ttl_security: Annotated[bool, BOOLEAN] = False
    """RFC 5082: only packets that crossed no router count. False, because both sides must agree on it."""

    ebgp_multihop: Annotated[int | None, whole(1, 255)] = None
    """The TTL to send with when routers lie between. None: 1 for eBGP, the system's default for iBGP."""

    passive: Annotated[bool, BOOLEAN] = False
    """True: wait for the peer to dial. False, because a session comes up sooner when both try."""

    timers: Timers = Timers()
    graceful_restart: GracefulRestart = GracefulRestart()

    bfd: Annotated[Bfd | None, PRESENT] = None
    """None: no BFD; it takes a daemon of its own, and the peer must be told too."""

    node_selector: Annotated[NodeSelector | None, PRESENT] = None
    """The nodes that keep this session, by the labels of their Node objects. None: every node."""

    @model_validator(mode="before")
    @classmethod
    def _default_families(cls, data: Any) -> Any:
        data = {} if data is None else data
        if not isinstance(data, dict) or "families" in data:
            return data
        try:
            family = Family.of(parse_address(str(data.get("peerAddress"))))
        except PrefixError:
            family = Family.IPV4  # the address has a fault of its own
        return data | {"families": [family.value]}

    def bfd_is_multihop(self, local_asn: int) -> bool:
        """Which kind of BFD is meant for this peer; `local_asn` is bgp.localASN."""
        if self.bfd is not None and self.bfd.multihop is not None:
            return self.bfd.multihop
        internal = self.peer_asn == (self.local_asn or local_asn)
        return self.ebgp_multihop is not None or (internal and not self.ttl_security)


class Attributes(Section):
    """Path attributes of what is announced."""

    communities: tuple[Annotated[str, COMMUNITY], ...] = ()
    """RFC 1997, as '64512:100' or by a well-known name."""

    large_communities: tuple[Annotated[str, LARGE_COMMUNITY], ...] = ()
    """RFC 8092, as '64512:1:2'."""

    local_preference: Annotated[int | None, _U32] = None
    """Higher wins; iBGP only. None: ExaBGP's default, which is 100."""

    med: Annotated[int | None, _U32] = None
    """Lower wins. None: not sent."""

    as_path_prepend: Annotated[int, whole(0, 16)] = 0
    """How many times our ASN is put in front once more, to make the path less attractive."""


class Advertisement(Section):
    """Something that is announced, to whom, and how."""

    advertisement_type: Annotated[
        AdvertisementType, one_of(AdvertisementType, later=("Service", "PodIP", "EgressIP"))
    ]

    peers: Annotated[tuple[Annotated[str, PEER_NAME], ...] | None, NOT_EMPTY, DISTINCT] = None
    """Names of peers. None: all of them."""

    attributes: Attributes = Attributes()


class Export(Section):
    """The brake: whatever the rest of the configuration and the cluster say, nothing else is announced."""

    allow: Annotated[tuple[Annotated[Prefix, PREFIX], ...] | None, NOT_EMPTY] = None
    """Only prefixes within one of these. None: everything but a default route, with a warning, because then a
    wrong podCIDR in the cluster is announced."""

    max_prefixes: Annotated[int, whole(1, 1_000_000)] = 1024
    """No more prefixes than this. A node has a handful of them; 1024 leaves room for addresses announced one
    by one and is far below what a ToR's table takes from a rack."""


class Drain(Section):
    """What `bgpd drain` does before the routes are withdrawn."""

    wait_seconds: Annotated[int, whole(0, 600)] = 10
    """How long routes stay announced with GRACEFUL_SHUTDOWN (RFC 8326), so that traffic has moved before they
    go. 10 is ample for the convergence of one fabric."""


class HealthCheck(Section):
    """One thing that must work on this node for its routes to be worth announcing. Exactly one probe."""

    name: Annotated[str, PEER_NAME]
    """Ours, for the reason in `bgpd routes`."""

    http_get: Annotated[str | None, HTTP_URL] = None
    """A URL that must answer 200 to 399, as a kubelet probe understands it."""

    tcp_socket: Annotated[Listen | None, ENDPOINT] = None
    """An address and port that must accept a connection."""

    exec: Annotated[tuple[Annotated[str, TEXT], ...] | None, NOT_EMPTY] = None
    """A program, by its absolute path, and its arguments; it must end with 0."""

    period_seconds: Annotated[int, whole(1, 3600)] = 5
    timeout_seconds: Annotated[int, whole(1, 600)] = 2

    failure_threshold: Annotated[int, whole(1, 100)] = 3
    """How many failures in a row make the node unhealthy. 3, as for a kubelet probe: one is no trend."""

    success_threshold: Annotated[int, whole(1, 100)] = 2
    """How many successes in a row make it healthy again. 2, so that something that flaps stays withdrawn."""

    @model_validator(mode="after")
    def _one_probe(self) -> HealthCheck:
        if sum(probe is not None for probe in (self.http_get, self.tcp_socket, self.exec)) != 1:
            raise ValueError("give exactly one of 'httpGet', 'tcpSocket' and 'exec'")
        return self


class Bgp(Section):
    """Sessions and what is announced on them."""

    local_asn: Annotated[ASN, ASN_NUMBER]

    router_id: Annotated[IPv4Address | None, IPV4] = None
    """None: the node's IPv4 InternalIP, which is unique in the fabric already."""

    listen_port: Annotated[int, whole(0, 65535)] = 179
    """TCP port on which peers may dial us; 0: never listen. On by default, because ExaBGP retries only once
    a minute in the end, while a switch that came back dials at once."""

    speaker: Annotated[SpeakerMode, one_of(SpeakerMode)] = SpeakerMode.EXTERNAL
    """external: the systemd unit, which outlives the daemon. managed: a child of the daemon, for a lab."""

    peers: Annotated[tuple[Peer, ...], NOT_EMPTY]

    advertisements: tuple[Advertisement, ...] = ()
    """Nothing is announced by default: a session alone shall not draw traffic."""

    export: Export = Export()

    end_of_rib_timeout_seconds: Annotated[int, whole(1, 3600)] = 30
    """End-of-RIB is held back until everything is announced, at most this long. 30 is well below the restart
    time, after which the peer drops stale routes in any case."""

    drain: Drain = Drain()

    health: Annotated[tuple[HealthCheck, ...], DISTINCT_NAMES] = ()
    """While one of these fails, everything is withdrawn. None by default: what must work differs by CNI."""


class DocumentSource(Section):
    """Where the ip-masq-agent document is: one of the two."""

    path: Annotated[Path | None, PATH] = None
    """The file, or the directory that the ConfigMap is mounted at. When configMap is not given either, the file
    is where the manifests of ip-masq-agent and Cilium mount it."""

    config_map: Annotated[str | None, CONFIG_MAP] = None
    """Namespace and name of the ConfigMap, which is watched at the source of all other objects."""

    @model_validator(mode="before")
    @classmethod
    def _default_path(cls, data: Any) -> Any:
        data = {} if data is None else data
        if not isinstance(data, dict) or data.keys() & {"path", "configMap"}:
            return data
        return data | {"path": "/etc/config/ip-masq-agent"}

    @model_validator(mode="after")
    def _not_both(self) -> DocumentSource:
        if self.path is not None and self.config_map is not None:
            raise ValueError("give only one of 'path' and 'configMap'")
        return self


class SnatAddress(Section):
    """The address that masqueraded traffic leaves with, per family: one of this node's.

    uplink: that of the interface it leaves by, which the next hop is sure to know. InternalIP: the Node's, for
    fabrics that route it and filter on it. Or an address itself.
    """

    ipv4: Annotated[IPv4Address | SnatSource, SNAT_IPV4] = SnatSource.UPLINK
    ipv6: Annotated[IPv6Address | SnatSource, SNAT_IPV6] = SnatSource.UPLINK


class Masquerade(Section):
    """Which pod traffic keeps the pod's address when it leaves the node; the rest gets the node's."""

    enabled: Annotated[bool, BOOLEAN] = False
    """False: what there is of it on the node (the CNI's own, ip-masq-agent) is left alone."""

    config: DocumentSource = DocumentSource()

    compat: Annotated[Compat, one_of(Compat)] = Compat.AGENT
    """How to read the document where the two disagree; the agent's is the stricter one."""

    nomasq_all_reserved_ranges: Annotated[bool, BOOLEAN] = False
    """The agent's flag of that name: without a list, all ranges reserved by RFCs are kept, not only RFC 1918's.
    Cilium always does so."""

    ipv6: Annotated[bool | None, BOOLEAN] = None
    """Whether IPv6 is masqueraded, and entries of it are taken. None: as the reference does when it is not told,
    that is no for agent (`--enable-ipv6`), yes for cilium (`--enable-ipv6-masquerade`)."""

    map: Annotated[MapOwner, one_of(MapOwner)] = MapOwner.OWN
    """own: bgpd's maps and datapath. cilium: only the list is kept, in Cilium's pinned maps."""

    cluster_cidrs: Annotated[tuple[Annotated[Prefix, PREFIX], ...], DISTINCT] = ()
    """Where the cluster's pods live, as kube-controller-manager has it in `--cluster-cidr`: pods talk to each other
    with their own addresses. The node's own pod CIDRs always count."""

    snat_address: SnatAddress = SnatAddress()

    f5_snat_pools: Annotated[tuple[Annotated[Prefix, PREFIX], ...], DISTINCT] = ()
    """Addresses that load balancers come from. Only for `bgpd check` and `bgpd doctor`, which say when the document
    covers nothing of one."""

    @property
    def translates(self) -> bool:
        """Whether the rule in nf_tables is ours; else masquerade is off, or Cilium's datapath does it."""
        return self.enabled and self.map is MapOwner.OWN

    @property
    def ipv6_wanted(self) -> bool:
        return self.compat is Compat.CILIUM if self.ipv6 is None else self.ipv6


class Policy(Section):
    """NetworkPolicy of Kubernetes, enforced on the pods of this node."""

    enabled: Annotated[bool, BOOLEAN] = False

    on_overflow: Annotated[Overflow, one_of(Overflow)] = Overflow.KEEP
    """What becomes of pods whose rules do not fit into the kernel's maps: keep their last good rules, or close. keep,
    because an edit that went wrong then breaks nothing that worked. A pod that has no good rules yet is closed."""

    foreign_mac_addresses: Annotated[tuple[Annotated[str, MAC_ADDRESS], ...], DISTINCT] = ()
    """Of macvlans that are no pods', at parents that pods have macvlans of too: virtual machines', other container
    engines'. What they send passes, but from no pod's address. None by default: a pod can make macvlans too."""


class Cni(Section):
    """The plugin that is chained behind the node's CNI, so that NetworkPolicy reaches its pods."""

    chaining_mode: Annotated[ChainingMode | None, one_of(ChainingMode)] = None
    """None: no plugin, and the node's CNI is left alone. auto: whatever kind of interface the chain makes; the others
    say which one it must be."""

    config_map: Annotated[str | None, CONFIG_MAP] = None
    """Namespace and name of a ConfigMap whose key cni-config is the whole conflist. None: the node's first conflist,
    with the plugin behind it."""

    deadline_seconds: Annotated[int, whole(1, 600)] = 5
    """How long a pod's start waits for its policy before it fails, and kubelet tries again. 5 is far above the
    milliseconds that it takes, and far below the minutes that kubelet waits itself."""


class Vxlan(Section):
    """The VXLAN device of `nodeRoutes: vxlan` and `auto`. The same on all nodes, or they do not hear each other."""

    vni: Annotated[int, whole(1, 2**24 - 1)] = 179
    """The network's number. Not 1, which is flannel's, nor 4096, which is Calico's."""

    port: Annotated[int, _PORT] = 4789
    """UDP; IANA's for VXLAN. Firewalls between nodes must let it through."""

    mtu: Annotated[int | None, whole(1280, 65535)] = None
    """None: that of the interface with the node's address, less what VXLAN adds (50 bytes over IPv4, 70 over IPv6).
    For a path between nodes that takes less than their interfaces do. IPv6 works from 1280 on."""


class Metrics(Section):
    """The HTTP server for /metrics, /livez and /readyz."""

    listen: Annotated[Listen | None, LISTEN] = Listen(IPv4Address(0), 9179)
    """None (in the file: off): no HTTP server. On every address by default, for Prometheus is elsewhere."""


class Log(Section):
    """Log lines go to standard error."""

    level: Annotated[LogLevel, one_of(LogLevel)] = LogLevel.INFO

    format: Annotated[LogFormat, one_of(LogFormat)] = LogFormat.AUTO
    """auto: pretty on a terminal, JSON otherwise."""


class Config(Section):
    """A whole configuration file."""

    node: Node = Node()
    paths: Paths = Paths()
    source: Source
    bgp: Bgp

    node_routes: Annotated[NodeRoutes, one_of(NodeRoutes)] = NodeRoutes.NONE
    """Routes to the pod CIDRs of other nodes. none: whoever sees to them (the CNI, the fabric) goes on. host-gw: by
    the address of each node, in a subnet that both are in. vxlan: all in VXLAN. auto: host-gw, and VXLAN for nodes
    that are in no subnet with this one."""

    masquerade: Masquerade = Masquerade()
    policy: Policy = Policy()

    cni: Cni = Cni()
    vxlan: Vxlan = Vxlan()
    metrics: Metrics = Metrics()
    log: Log = Log()
