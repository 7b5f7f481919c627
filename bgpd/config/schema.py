"""What a configuration holds, by section: each key with its meaning, unit and the reason for its default.

Whether a single value is acceptable is decided in `field`; whether the values fit together, in `check`. The
keys in the file are these names in camelCase, as Kubernetes and Cilium spell theirs. A section that is not
given has its defaults. Instances come from `parse` and `load` and do not change.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated

from pydantic import model_validator

from bgpd.config.bgp import Bgp
from bgpd.config.defaults import RUN_DIRECTORY
from bgpd.config.field import (
    BOOLEAN,
    CONFIG_MAP,
    DISTINCT,
    LISTEN,
    MAC_ADDRESS,
    NODE_NAME,
    PATH,
    PORT,
    PREFIX,
    SOCKET_DIRECTORY,
    Listen,
    one_of,
    whole,
)
from bgpd.config.masquerade import Masquerade
from bgpd.config.section import PRESENT, Section
from bgpd.config.services import Services
from bgpd.config.virtualservers import VirtualServers
from bgpd.model.attachment import ChainingMode
from bgpd.model.policy import Overflow, Tampering
from bgpd.model.prefix import Prefix


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

    run: Annotated[Path, SOCKET_DIRECTORY] = RUN_DIRECTORY
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


class Policy(Section):
    """NetworkPolicy of Kubernetes, enforced on the pods of this node."""

    enabled: Annotated[bool, BOOLEAN] = False

    on_overflow: Annotated[Overflow, one_of(Overflow)] = Overflow.KEEP
    """What becomes of pods whose rules do not fit into the kernel's maps: keep their last good rules, or close. keep,
    because an edit that went wrong then breaks nothing that worked. A pod that has no good rules yet is closed."""

    on_tampering: Annotated[Tampering, one_of(Tampering)] = Tampering.RESTORE
    """What becomes of a pod on an ipvlan that has removed the program it is policed by, which one with CAP_NET_ADMIN
    can where the kernel has no tcx: put it back, or put it back and let nothing through to or from the pod until it
    is started anew."""

    foreign_mac_addresses: Annotated[tuple[Annotated[str, MAC_ADDRESS], ...], DISTINCT] = ()
    """Of macvlans that are no pods', at parents that pods have macvlans of too: virtual machines', other container
    engines'. What they send passes, but from no pod's address. None by default: a pod can make macvlans too."""

    foreign_cidrs: Annotated[tuple[Annotated[Prefix, PREFIX], ...], DISTINCT] = ()
    """Addresses that the node sends from without having them, at parents of pods' ipvlans: those that MetalLB answers
    for in layer 2 mode, or a proxy of ARP. From Linux 6.15 on only what no process sends needs it: the kernel tells
    where the rest comes from. None by default: before that, a pod can send from them too."""

    tunnel_ports: Annotated[tuple[Annotated[int, PORT], ...], DISTINCT] = ()
    """UDP ports of tunnels, at parents of pods' macvlans and ipvlans, through which the node sends what pods on other
    interfaces have sent without its stack: of a bridge, OVS or Cilium with eBPF host routing. From Linux 6.15 on the
    kernel says of such a packet that the pod has sent it, with the node's address: so a forger would. None by
    default: a pod with CAP_NET_RAW can then send to these ports as the node."""


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

    port: Annotated[int, PORT] = 4789
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

    services: Services = Services()
    masquerade: Masquerade = Masquerade()
    policy: Policy = Policy()
    virtual_servers: VirtualServers = VirtualServers()

    cni: Cni = Cni()
    vxlan: Vxlan = Vxlan()
    metrics: Metrics = Metrics()
    log: Log = Log()
