"""Reads Cilium's BGP objects (cilium.io/v2). Every fault of an object is found at once, each with its place.

An object with a fault in it has no `spec`, and what was last good of it counts: half of a session is another session.
What a spec may hold is said in `config.ciliumbgp`; what it comes to on a node is `ciliumbgp.translate`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError

from bgpd.config.ciliumbgp import AdvertisementSpec, ClusterConfigSpec, NodeConfigOverrideSpec, PeerConfigSpec
from bgpd.config.parse import problems_of
from bgpd.config.section import Section
from bgpd.kube.parse import Kind, RawDatedMeta, RawObject
from bgpd.model.custom import Condition, Custom
from bgpd.model.fault import FieldFault

S = TypeVar("S", bound=Section)

_UNSERVED = (
    "the API server has no such resource, so nothing of it is followed: kubectl apply -f config/crds; Cilium has it "
    "in this version from 1.18 on"
)


class RawCondition(msgspec.Struct, frozen=True, rename="camel"):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    observed_generation: int = 0
    last_transition_time: str = ""


class RawStatus(msgspec.Struct, frozen=True):
    conditions: list[RawCondition] | None = None


class RawCustomMeta(RawDatedMeta, frozen=True, gc=False, rename="camel"):
    generation: int | None = None


class RawCustom(RawObject, frozen=True, gc=False):
    """The spec is read by hand: a decoder would stop at the first fault."""

    metadata: RawCustomMeta
    spec: Any = None
    status: RawStatus | None = None


def _reader(section: type[S]) -> Callable[[RawCustom], Custom[S]]:
    def read(raw: RawCustom) -> Custom[S]:
        meta = raw.metadata
        spec, faults = _spec(section, raw.spec)
        return Custom(
            name=meta.name,
            labels=meta.labels or {},
            created=meta.creation_timestamp or "",
            generation=meta.generation or 0,
            spec=spec,
            faults=faults,
            conditions=tuple(map(_condition, (raw.status and raw.status.conditions) or ())),
        )

    return read


def _spec(section: type[S], value: object) -> tuple[S | None, tuple[FieldFault, ...]]:
    try:
        return section.model_validate(value), ()
    except ValidationError as error:
        return None, tuple(FieldFault(("spec", *path), text) for path, text in problems_of(error, section))


def _condition(raw: RawCondition) -> Condition:
    status, since = raw.status == "True", raw.last_transition_time
    return Condition(raw.type, status, raw.reason, raw.message, raw.observed_generation, since)


def _faults(value: Custom[Any]) -> Iterable[FieldFault]:
    return value.faults


def _kind(name: str, resource: str, section: type[S]) -> Kind[Custom[S]]:
    return Kind(
        name, "cilium.io/v2", resource, namespaced=False, raw=RawCustom, to_model=_reader(section), faults=_faults,
        if_unserved=_UNSERVED,
    )  # fmt: skip


CLUSTER_CONFIG = _kind("CiliumBGPClusterConfig", "ciliumbgpclusterconfigs", ClusterConfigSpec)
PEER_CONFIG = _kind("CiliumBGPPeerConfig", "ciliumbgppeerconfigs", PeerConfigSpec)
ADVERTISEMENT = _kind("CiliumBGPAdvertisement", "ciliumbgpadvertisements", AdvertisementSpec)
NODE_CONFIG_OVERRIDE = _kind("CiliumBGPNodeConfigOverride", "ciliumbgpnodeconfigoverrides", NodeConfigOverrideSpec)
