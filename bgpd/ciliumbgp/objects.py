"""Cilium's BGP objects as they are followed, and what of them was refused. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bgpd.config.ciliumbgp import AdvertisementSpec, ClusterConfigSpec, NodeConfigOverrideSpec, PeerConfigSpec
from bgpd.model.custom import Custom
from bgpd.model.fault import FieldPath, dotted

CLUSTER_CONFIG = "CiliumBGPClusterConfig"
PEER_CONFIG = "CiliumBGPPeerConfig"
ADVERTISEMENT = "CiliumBGPAdvertisement"


class Refused(NamedTuple):
    """One thing that was asked for and is not to be had: in which object, where in its spec, and why.

    `is_local`: another node may have it.
    """

    kind: str
    name: str
    path: FieldPath
    why: str
    is_local: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {dotted(('spec', *self.path))}: {self.why}"


@dataclass(frozen=True, slots=True)
class Objects:
    """What there is, each kind by name. An object without a spec is as if it were not there."""

    cluster_configs: Mapping[str, Custom[ClusterConfigSpec]] = field(default_factory=dict)
    peer_configs: Mapping[str, Custom[PeerConfigSpec]] = field(default_factory=dict)
    advertisements: Mapping[str, Custom[AdvertisementSpec]] = field(default_factory=dict)
    overrides: Mapping[str, Custom[NodeConfigOverrideSpec]] = field(default_factory=dict)
