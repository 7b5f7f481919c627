"""The Kubernetes Node as far as routes are concerned (core/v1 NodeSpec.podCIDRs, NodeStatus.addresses)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bgpd.model.prefix import Address, Prefix


@dataclass(frozen=True, slots=True)
class Node:
    """`pod_cidrs` keeps the order of the API object and holds valid prefixes only.

    `problems` names, for the operator, whatever in the object could not be used; the rest of it still counts.
    """

    name: str
    pod_cidrs: tuple[Prefix, ...] = ()
    internal_ips: tuple[Address, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    external_ips: tuple[Address, ...] = ()
