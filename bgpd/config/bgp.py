"""The section `bgp`: sessions, what is announced on them, and the brakes. See `schema` for the rest.

Whether a single value is acceptable is decided in `field`; whether the values fit together, in `check`.
"""

from __future__ import annotations

import contextlib
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
    DISTINCT,
    DISTINCT_NAMES,
    ENDPOINT,
    HTTP_URL,
    INTERFACE,
    IPV4,
    IPV6,
    LARGE_COMMUNITY,
    NOT_EMPTY,
    PATH,
    PEER_NAME,
    PORT,
    PREFIX,
    TEXT,
    U32,
    Listen,
    one_of,
    whole,
)
from bgpd.config.section import PRESENT, Section
from bgpd.config.selector import LabelSelector
from bgpd.model.bfd import Timers as BfdTimers
from bgpd.model.bgp import ASN, AdvertisementType, Family
from bgpd.model.candidate import Candidate
from bgpd.model.prefix import Address, Prefix, PrefixError, parse_address
from bgpd.model.service import ServiceAddress


class SpeakerMode(StrEnum):
    """Who starts ExaBGP."""

    EXTERNAL = "external"
    MANAGED = "managed"


class PeersFrom(StrEnum):
    """Who says which sessions there are, and what is announced on them."""

    FILE = "file"
    CILIUM = "cilium"


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
    multihop where ebgpMultihop is given, and on iBGP with a peerAddress unless ttlSecurity is set."""

    @property
    def timers(self) -> BfdTimers:
        """As BFD itself names them."""
        interval_ms = self.transmit_interval_milliseconds, self.receive_interval_milliseconds
        return BfdTimers(*interval_ms, self.detect_multiplier)


class GatewayFamily(StrEnum):
    """The default routes of one family, by the family of their gateways."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @property
    def words(self) -> str:
        return "IPv4" if self is GatewayFamily.IPV4 else "IPv6"


class DiscoveryMode(StrEnum):
    """How peers are found that are not named."""

    DEFAULT_GATEWAY = "DefaultGateway"


class DefaultGateway(Section):
    """Which default routes count."""

    address_family: Annotated[GatewayFamily | None, one_of(GatewayFamily)] = None
    """None: both families."""


class AutoDiscovery(Section):
    """A peer for each gateway of a default route in the main table, multipath ones included. As Cilium has it, which
    takes one gateway only."""

    mode: Annotated[DiscoveryMode, one_of(DiscoveryMode)]
    default_gateway: DefaultGateway = DefaultGateway()


class Peer(Section):
    """One BGP neighbor, as a rule a ToR switch. It is at peerAddress, behind interface, or found by autoDiscovery."""

    name: Annotated[str, PEER_NAME]
    """Ours, for advertisements, commands and metrics. Of peers that are discovered, the beginning of their names."""

    peer_address: Annotated[Address | None, ADDRESS] = None

    interface: Annotated[str | None, INTERFACE] = None
    """Unnumbered: the one router on this link, at its link-local address, which its router advertisements tell."""

    auto_discovery: Annotated[AutoDiscovery | None, PRESENT] = None
    """A session with each router that this describes. What else is given here is meant for all of them."""

    peer_asn: Annotated[ASN, ASN_NUMBER]
    """The same as ours makes the session iBGP."""

    peer_port: Annotated[int, PORT] = 179
    """TCP port that we dial."""

    local_asn: Annotated[ASN | None, ASN_NUMBER] = None
    """None: bgp.localASN. Another one is for a rack whose switches expect the node in an AS of its own."""

    local_address: Annotated[Address | None, ADDRESS] = None
    """The source address of the session. None: the node's InternalIP of the peer's family."""

    families: Annotated[tuple[Annotated[Family, one_of(Family)], ...], NOT_EMPTY, DISTINCT] = ()
    """Default: the family of the peer's address, for which the session's own address is a next hop; with interface
    both. Empty here: the address is found later."""

    extended_next_hop: Annotated[bool, BOOLEAN] = False
    """RFC 8950: IPv4 prefixes are announced with the IPv6 next hop. Default: with interface, where nothing says that
    the link has IPv4 addresses; elsewhere no, because both sides must agree on it."""

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

    node_selector: Annotated[LabelSelector | None, PRESENT] = None
    """The nodes that keep this session, by the labels of their Node objects. None: every node."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Those that depend on where the peer is."""
        data = {} if data is None else data
        if not isinstance(data, dict):
            return data
        if "interface" in data:
            data = {"families": [family.value for family in Family]} | data
            families = data["families"]
            carries_ipv4 = isinstance(families, list) and Family.IPV4.value in families
            return {"extendedNextHop": carries_ipv4} | data
        with contextlib.suppress(PrefixError):  # the address has a fault of its own
            return {"families": [Family.of(parse_address(str(data.get("peerAddress")))).value]} | data
        return data

    @model_validator(mode="after")
    def _one_place(self) -> Peer:
        if sum(place is not None for place in (self.peer_address, self.interface, self.auto_discovery)) != 1:
            raise ValueError("give exactly one of 'peerAddress', 'interface' and 'autoDiscovery'")
        return self

    def bfd_is_multihop(self, local_asn: int) -> bool:
        """Which kind of BFD is meant for this peer; `local_asn` is bgp.localASN."""
        if self.bfd is not None and self.bfd.multihop is not None:
            return self.bfd.multihop
        if self.peer_address is None:
            return False  # a router on our link, or the gateway there
        internal = self.peer_asn == (self.local_asn or local_asn)
        return self.ebgp_multihop is not None or (internal and not self.ttl_security)


class Attributes(Section):
    """Path attributes of what is announced."""

    communities: tuple[Annotated[str, COMMUNITY], ...] = ()
    """RFC 1997, as '64512:100' or by a well-known name."""

    large_communities: tuple[Annotated[str, LARGE_COMMUNITY], ...] = ()
    """RFC 8092, as '64512:1:2'."""

    local_preference: Annotated[int | None, U32] = None
    """Higher wins; iBGP only. None: ExaBGP's default, which is 100."""

    med: Annotated[int | None, U32] = None
    """Lower wins. None: not sent."""

    as_path_prepend: Annotated[int, whole(0, 16)] = 0
    """How many times our ASN is put in front once more, to make the path less attractive."""


class ServiceAddresses(Section):
    """Which addresses of the selected Services are announced."""

    addresses: Annotated[tuple[Annotated[ServiceAddress, one_of(ServiceAddress)], ...], NOT_EMPTY, DISTINCT]

    aggregate: Annotated[tuple[Annotated[Prefix, PREFIX], ...], DISTINCT] = ()
    """Prefixes that are announced in place of the addresses in them, while one of these would be. Addresses that only
    some nodes draw traffic for (a traffic policy Local) are announced one by one all the same."""


class Advertisement(Section):
    """Something that is announced, to whom, and how."""

    advertisement_type: Annotated[
        AdvertisementType, one_of(AdvertisementType, later=("EgressIP",))
    ]

    peers: Annotated[tuple[Annotated[str, PEER_NAME], ...] | None, NOT_EMPTY, DISTINCT] = None
    """Names of peers. None: all of them."""

    families: Annotated[tuple[Annotated[Family, one_of(Family)], ...] | None, NOT_EMPTY, DISTINCT] = None
    """None: every family of the peer."""

    service: Annotated[ServiceAddresses | None, PRESENT] = None
    """Of type Service only, and required there."""

    selector: Annotated[LabelSelector | None, PRESENT] = None
    """Of type Service only, and required there: the Services that are meant, by their labels and the two that Cilium
    adds, io.kubernetes.service.namespace and io.kubernetes.service.name. {} is all of them."""

    attributes: Attributes = Attributes()

    @model_validator(mode="after")
    def _service_has_its_keys(self) -> Advertisement:
        if self.advertisement_type is AdvertisementType.SERVICE:
            if self.service is None:
                raise ValueError("type Service needs 'service'; give {addresses: [LoadBalancerIP]}, say")
            if self.selector is None:
                raise ValueError("type Service needs 'selector'; {} selects every Service")
        elif self.service is not None or self.selector is not None:
            raise ValueError("'service' and 'selector' are for type Service; remove them")
        return self

    def selects(self, offer: Candidate) -> bool:
        """Whether this entry means it."""
        if self.advertisement_type is not offer.type:
            return False
        if self.families is not None and Family.of(offer.prefix) not in self.families:
            return False
        if self.service is None or self.selector is None:
            return True
        return offer.kind in self.service.addresses and self.selector.matches(offer.labels)


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


AUTO = "auto"


def spelled_out(bgp: dict[str, Any]) -> dict[str, Any]:
    """The section as it is in the file, `peers: auto` written out: iBGP with the gateways of all default routes."""
    if bgp.get("peers") != AUTO:
        return bgp
    discovery = {"mode": DiscoveryMode.DEFAULT_GATEWAY.value}
    return bgp | {"peers": [{"name": AUTO, "peerASN": bgp.get("localASN"), "autoDiscovery": discovery}]}


class Bgp(Section):
    """Sessions and what is announced on them."""

    peers_from: Annotated[PeersFrom, one_of(PeersFrom)] = PeersFrom.FILE
    """file: the five keys below. cilium: the CiliumBGP objects of the cluster, and none of the five here. The rest of
    this section, the brake first of all, counts either way."""

    local_asn: Annotated[ASN, ASN_NUMBER] = ASN(0)
    """Must be given, but with peersFrom: cilium."""

    router_id: Annotated[IPv4Address | None, IPV4] = None
    """None: the node's IPv4 InternalIP, which is unique in the fabric already."""

    listen_port: Annotated[int, whole(0, 65535)] = 179
    """TCP port on which peers may dial us; 0: never listen. On by default, because ExaBGP retries only once
    a minute in the end, while a switch that came back dials at once."""

    peers: Annotated[tuple[Peer, ...], NOT_EMPTY] = ()
    """Must be given, but with peersFrom: cilium. `auto` is short for one entry with autoDiscovery, see `AUTO`."""

    advertisements: tuple[Advertisement, ...] = ()
    """Nothing is announced by default: a session alone shall not draw traffic."""

    auth_secrets: Annotated[Path | None, PATH] = None
    """With peersFrom: cilium, the directory with the Secrets that authSecretRef names: NAME/password, as a mounted
    Secret has it. None: there are none, and a peer with an authSecretRef is refused."""

    speaker: Annotated[SpeakerMode, one_of(SpeakerMode)] = SpeakerMode.EXTERNAL
    """external: the systemd unit, which outlives the daemon. managed: a child of the daemon, for a lab."""

    export: Export = Export()

    end_of_rib_timeout_seconds: Annotated[int, whole(1, 3600)] = 30
    """End-of-RIB is held back until everything is announced, at most this long. 30 is well below the restart
    time, after which the peer drops stale routes in any case."""

    drain: Drain = Drain()

    health: Annotated[tuple[HealthCheck, ...], DISTINCT_NAMES] = ()
    """While one of these fails, everything is withdrawn. None by default: what must work differs by CNI."""

    def announces(self, kind: AdvertisementType) -> bool:
        """To anybody. Cilium's objects may ask for Services at any time, which takes a part that is there by then."""
        if self.peers_from is PeersFrom.CILIUM and kind is AdvertisementType.SERVICE:
            return True
        return any(entry.advertisement_type is kind for entry in self.advertisements)
