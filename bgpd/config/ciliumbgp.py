"""What the specs of Cilium's BGP objects may hold: each key that means something here, and no other. Pure.

Sources: pkg/k8s/apis/cilium.io/v2/bgp_*_types.go of Cilium 1.18. A key that is not here is refused by name. So is a
value of the wrong kind; whether a value suits our own `bgp` section, that section decides once the objects are
translated to it (`ciliumbgp.translate`). Defaults are those of Cilium's CRDs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from bgpd.config.field import (
    BOOLEAN,
    DISTINCT,
    DISTINCT_NAMES,
    NOT_EMPTY,
    PORT,
    SECRET_NAME,
    TEXT,
    U32,
    one_of,
    whole,
)
from bgpd.config.section import PRESENT, Section
from bgpd.config.selector import LabelSelector

_NAME = Annotated[str, TEXT]


class DiscoveryMode(StrEnum):
    """How a peer's address is found that is not given."""

    DEFAULT_GATEWAY = "DefaultGateway"
    UNNUMBERED = "Unnumbered"


class DefaultGateway(Section):
    """One peer: the gateway of the best default route."""

    address_family: _NAME


class Unnumbered(Section):
    """One peer: whoever is at the other end of the interface."""

    interface: _NAME


class AutoDiscovery(Section):
    mode: Annotated[DiscoveryMode, one_of(DiscoveryMode)]
    default_gateway: Annotated[DefaultGateway | None, PRESENT] = None
    unnumbered: Annotated[Unnumbered | None, PRESENT] = None


class PeerConfigRef(Section):
    name: _NAME


class ClusterPeer(Section):
    name: _NAME

    peer_address: Annotated[str | None, TEXT] = None

    peer_asn: Annotated[int, U32] = Field(default=0, alias="peerASN")
    """0: whatever the peer says."""

    auto_discovery: Annotated[AutoDiscovery | None, PRESENT] = None

    peer_config_ref: Annotated[PeerConfigRef | None, PRESENT] = None
    """None: all defaults, and nothing is announced."""


class Instance(Section):
    """A router with an ASN and peers of its own."""

    name: _NAME
    local_asn: Annotated[int | None, whole(1, 2**32 - 1)] = None

    local_port: Annotated[int | None, PORT] = None
    """None: it does not listen."""

    peers: Annotated[tuple[ClusterPeer, ...], DISTINCT_NAMES] = ()


class ClusterConfigSpec(Section):
    """CiliumBGPClusterConfig: the sessions of the nodes that it selects."""

    node_selector: Annotated[LabelSelector | None, PRESENT] = None
    """None: every node."""

    bgp_instances: Annotated[tuple[Instance, ...], NOT_EMPTY, DISTINCT_NAMES]


class Transport(Section):
    peer_port: Annotated[int, PORT] = 179


class Timers(Section):
    connect_retry_time_seconds: Annotated[int, whole(1, 2**31 - 1)] = 120
    hold_time_seconds: Annotated[int, whole(3, 65535)] = 90
    keep_alive_time_seconds: Annotated[int, whole(1, 65535)] = 30


class GracefulRestart(Section):
    enabled: Annotated[bool, BOOLEAN]
    restart_time_seconds: Annotated[int, whole(1, 4095)] = 120


class FamilyWithAdvertisements(Section):
    afi: _NAME
    safi: _NAME

    advertisements: Annotated[LabelSelector | None, PRESENT] = None
    """Of CiliumBGPAdvertisement objects. None: nothing is announced in this family."""


_BOTH_FAMILIES = tuple(FamilyWithAdvertisements(afi=afi, safi="unicast") for afi in ("ipv4", "ipv6"))


def _or_both(families: tuple[FamilyWithAdvertisements, ...]) -> tuple[FamilyWithAdvertisements, ...]:
    return families or _BOTH_FAMILIES


class PeerConfigSpec(Section):
    """CiliumBGPPeerConfig: how sessions are kept, for any number of peers."""

    transport: Transport = Transport()
    timers: Timers = Timers()
    auth_secret_ref: Annotated[str | None, SECRET_NAME] = None
    graceful_restart: GracefulRestart = GracefulRestart(enabled=False)

    ebgp_multihop: Annotated[int, whole(1, 255)] = 1
    """The TTL to send with; it does not count between routers of one AS."""

    families: Annotated[tuple[FamilyWithAdvertisements, ...], AfterValidator(_or_both)] = _BOTH_FAMILIES


class Communities(Section):
    standard: tuple[_NAME, ...] = ()
    well_known: tuple[_NAME, ...] = ()
    large: tuple[_NAME, ...] = ()


class AdvertisedAttributes(Section):
    communities: Communities = Communities()
    local_preference: Annotated[int | None, U32] = None


class ServiceOptions(Section):
    addresses: Annotated[tuple[_NAME, ...], NOT_EMPTY, DISTINCT]
    aggregation_length_ipv4: Annotated[int | None, whole(0, 31)] = Field(None, alias="aggregationLengthIPv4")
    aggregation_length_ipv6: Annotated[int | None, whole(0, 127)] = Field(None, alias="aggregationLengthIPv6")


class InterfaceOptions(Section):
    name: _NAME


class AdvertisedThing(Section):
    advertisement_type: _NAME
    service: Annotated[ServiceOptions | None, PRESENT] = None
    interface: Annotated[InterfaceOptions | None, PRESENT] = None

    selector: Annotated[LabelSelector | None, PRESENT] = None
    """Of the objects of that type; pod CIDRs are the node's, and there is nothing to select. None: no object."""

    attributes: AdvertisedAttributes = AdvertisedAttributes()


class AdvertisementSpec(Section):
    """CiliumBGPAdvertisement: what is announced."""

    advertisements: tuple[AdvertisedThing, ...]


class PeerOverride(Section):
    name: _NAME
    local_address: Annotated[str | None, TEXT] = None

    local_port: Annotated[int | None, PORT] = None
    """Without effect in Cilium too, and deprecated."""


class InstanceOverride(Section):
    name: _NAME
    router_id: Annotated[str | None, TEXT] = None
    local_port: Annotated[int | None, PORT] = None
    local_asn: Annotated[int | None, whole(1, 2**32 - 1)] = None
    peers: Annotated[tuple[PeerOverride, ...], DISTINCT_NAMES] = ()


class NodeConfigOverrideSpec(Section):
    """CiliumBGPNodeConfigOverride: what differs on the node of its name."""

    bgp_instances: Annotated[tuple[InstanceOverride, ...], NOT_EMPTY, DISTINCT_NAMES]
