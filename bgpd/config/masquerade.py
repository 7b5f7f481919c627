"""The section `masquerade`: the document, how it is read, and whose datapath obeys it. See `schema` for the rest.

Whether a single value is acceptable is decided in `field`; whether the values fit together, in `check`.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any

from pydantic import model_validator

from bgpd.config.field import (
    BOOLEAN,
    CONFIG_MAP,
    DISTINCT,
    PATH,
    PREFIX,
    SNAT_IPV4,
    SNAT_IPV6,
    SnatSource,
    one_of,
)
from bgpd.config.section import Section
from bgpd.model.masq import Compat
from bgpd.model.prefix import Prefix


class MapOwner(StrEnum):
    """Whose maps hold the list, and whose datapath asks them."""

    OWN = "own"
    CILIUM = "cilium"


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
