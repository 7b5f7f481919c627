"""What is to stand in the status of Cilium's BGP objects, and of which object it does not stand there yet. Pure.

Only what every node finds alike, for all of them write it: what follows from the objects alone. Two conditions:
`cilium.io/MissingPeerConfigs`, as Cilium's operator words it, and `bgpd.io/Accepted`, False while an object holds
something that is refused, which the message names. What is so on one node and not on another (a conflict of
selectors, a Secret that is not there) is in that node's `bgpd status`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bgpd.ciliumbgp.objects import CLUSTER_CONFIG, PEER_CONFIG, Objects, Refused
from bgpd.ciliumbgp.translate import refusals
from bgpd.config.ciliumbgp import ClusterConfigSpec
from bgpd.model.custom import Condition, Custom, Target
from bgpd.model.fault import dotted

MISSING_PEER_CONFIGS = "cilium.io/MissingPeerConfigs"
ACCEPTED = "bgpd.io/Accepted"
_LONGEST = 32768  # meta/v1 Condition


def unwritten(newest: Objects) -> dict[Target, tuple[Condition, ...]]:
    """The conditions of each object whose status has others."""
    refused: dict[Target, list[Refused]] = {}
    for each in refusals(newest):
        refused.setdefault(Target(each.kind, each.name), []).append(each)
    wanted: dict[Target, tuple[Condition, ...]] = {}
    kinds: tuple[tuple[str, Mapping[str, Custom[Any]]], ...] = (
        (CLUSTER_CONFIG, newest.cluster_configs),
        (PEER_CONFIG, newest.peer_configs),
    )
    for kind, objects in kinds:
        for name, config in objects.items():
            target = Target(kind, name)
            conditions = [_accepted(config, refused.get(target, []))]
            if kind == CLUSTER_CONFIG:
                conditions.append(_missing(config, newest))
            if not set(conditions) <= set(config.conditions):
                wanted[target] = tuple(_since(config, condition) for condition in conditions)
    return wanted


def _accepted(config: Custom[Any], refused: list[Refused]) -> Condition:
    told = [f"{dotted(fault.path)}: {fault.problem}" for fault in config.faults]
    told += [f"{dotted(('spec', *each.path))}: {each.why}" for each in refused]
    reason, message = ("Refused", "; ".join(told)) if told else ("Accepted", "")
    return Condition(ACCEPTED, not told, reason, message[:_LONGEST], config.generation)


def _missing(config: Custom[ClusterConfigSpec], newest: Objects) -> Condition:
    names = sorted({name for name in _referenced(config) if name not in newest.peer_configs})
    message = f"Referenced CiliumBGPPeerConfig(s) are missing: [{' '.join(names)}]" if names else ""
    return Condition(MISSING_PEER_CONFIGS, bool(names), "MissingPeerConfigs", message, config.generation)


def _referenced(config: Custom[ClusterConfigSpec]) -> Iterator[str]:
    for instance in config.spec.bgp_instances if config.spec else ():
        yield from (peer.peer_config_ref.name for peer in instance.peers if peer.peer_config_ref)


def _since(config: Custom[Any], condition: Condition) -> Condition:
    """With the time that it has been so from, where it stands there already."""
    for there in config.conditions:
        if (there.type, there.status) == (condition.type, condition.status):
            return condition.from_time(there.since)
    return condition
