"""What a CiliumBGPPeerConfig has announced to one of its peers, as entries of `bgp.advertisements`. Pure.

By family: each family of a PeerConfig selects CiliumBGPAdvertisement objects by their labels. Pod CIDRs are all of
the node's, so that several entries for them are one, with the communities of all and the highest local preference
(policies.go of Cilium, MergeRoutePolicies). Of other types each entry stays one: what it selects may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import ValidationError

from bgpd.ciliumbgp.objects import ADVERTISEMENT, PEER_CONFIG, Refused
from bgpd.config.bgp import Advertisement
from bgpd.config.ciliumbgp import (
    AdvertisedThing,
    AdvertisementSpec,
    FamilyWithAdvertisements,
    PeerConfigSpec,
    ServiceOptions,
)
from bgpd.config.parse import problems_of
from bgpd.config.selector import LabelSelector
from bgpd.model.bgp import AdvertisementType, Family
from bgpd.model.custom import Custom
from bgpd.model.fault import FieldPath

Raw: TypeAlias = dict[str, Any]

_FAMILIES = {("ipv4", "unicast"): Family.IPV4, ("ipv6", "unicast"): Family.IPV6}
# Cilium's names (those of GoBGP) for IANA's "BGP Well-known Communities"; 65535:N but for the first
_WELL_KNOWN = {
    "internet": "0:0",
    "planned-shut": "65535:0",
    "accept-own": "65535:1",
    "route-filter-translated-v4": "65535:2",
    "route-filter-v4": "65535:3",
    "route-filter-translated-v6": "65535:4",
    "route-filter-v6": "65535:5",
    "llgr-stale": "65535:6",
    "no-llgr": "65535:7",
    "blackhole": "65535:666",
    "no-export": "65535:65281",
    "no-advertise": "65535:65282",
    "no-export-subconfed": "65535:65283",
    "no-peer": "65535:65284",
}
_SUPPORTED = (AdvertisementType.POD_CIDR.value, AdvertisementType.SERVICE.value)  # of those that Cilium has


def supported(family: FamilyWithAdvertisements) -> Family | None:
    """The family as we call it; None: we do not speak it."""
    return _FAMILIES.get((family.afi, family.safi))


def advertised(
    peer: str, config: Custom[PeerConfigSpec], advertisements: Mapping[str, Custom[AdvertisementSpec]]
) -> tuple[list[Advertisement], list[Refused]]:
    """The entries for the peer of this name, and what of those that are selected is not to be had."""
    entries: list[Advertisement] = []
    refused: list[Refused] = []
    assert config.spec is not None
    for index, each in enumerate(config.spec.families):
        family = supported(each)
        if family is None:
            why = f"{each.afi}/{each.safi} is not supported; ipv4/unicast and ipv6/unicast are"
            refused.append(Refused(PEER_CONFIG, config.name, ("families", index), why))
        elif each.advertisements is not None:
            selected = [
                advertisement
                for _, advertisement in sorted(advertisements.items())
                if each.advertisements.matches(advertisement.labels)
            ]
            _add(peer, family, selected, entries, refused)
    return entries, refused


def _add(
    peer: str,
    family: Family,
    selected: Iterable[Custom[AdvertisementSpec]],
    entries: list[Advertisement],
    refused: list[Refused],
) -> None:
    pod_cidrs: Raw | None = None
    for advertisement in selected:
        for index, thing in enumerate(advertisement.spec.advertisements if advertisement.spec else ()):
            place: FieldPath = ("advertisements", index)
            if thing.advertisement_type == AdvertisementType.SERVICE and thing.selector is None:
                continue  # it selects no object
            if why := _unsupported(thing):
                refused.append(Refused(ADVERTISEMENT, advertisement.name, place, why))
                continue
            raw = _raw_entry(peer, family, thing)
            try:
                entry = Advertisement.model_validate(raw)
            except ValidationError as error:
                told = problems_of(error, Advertisement)
                refused += [Refused(ADVERTISEMENT, advertisement.name, (*place, *path), why) for path, why in told]
                continue
            if entry.advertisement_type is AdvertisementType.POD_CIDR:
                pod_cidrs = raw if pod_cidrs is None else _merged(pod_cidrs, raw)
            else:
                entries.append(entry)
    if pod_cidrs is not None:
        entries.append(Advertisement.model_validate(pod_cidrs))


def _unsupported(thing: AdvertisedThing) -> str:
    if thing.advertisement_type not in _SUPPORTED:
        return f"{thing.advertisement_type} is not supported; {' and '.join(_SUPPORTED)} can be announced"
    service = thing.service or ServiceOptions(addresses=("ClusterIP",))
    if (service.aggregation_length_ipv4, service.aggregation_length_ipv6) != (None, None):
        return "service.aggregationLength is not supported: it may announce what is nobody's; remove it"
    return ""


def _raw_entry(peer: str, family: Family, thing: AdvertisedThing) -> Raw:
    """An entry of `bgp.advertisements`."""
    about = {"advertisementType": thing.advertisement_type, "peers": [peer], "families": [family.value]}
    return {**about, "attributes": _attributes(thing), **_of_services(thing)}


def _of_services(thing: AdvertisedThing) -> Raw:
    if thing.advertisement_type == AdvertisementType.POD_CIDR or thing.service is None:
        return {}
    raw: Raw = {"service": {"addresses": list(thing.service.addresses)}}
    return raw if thing.selector is None else {**raw, "selector": _raw_selector(thing.selector)}


def _raw_selector(selector: LabelSelector) -> Raw:
    expressions = [
        {"key": each.key, "operator": each.operator.value, "values": list(each.values)}
        for each in selector.match_expressions
    ]
    return {"matchLabels": selector.match_labels, "matchExpressions": expressions}


def _attributes(thing: AdvertisedThing) -> Raw:
    attributes = thing.attributes
    given = attributes.communities
    raw: Raw = {
        "communities": [*map(_standard, given.standard), *(_WELL_KNOWN.get(name, name) for name in given.well_known)],
        "largeCommunities": list(given.large),
    }
    if attributes.local_preference is not None:
        raw["localPreference"] = attributes.local_preference
    return raw


def _standard(text: str) -> str:
    """RFC 1997 as a pair of numbers, where Cilium takes a single one too."""
    if not text.isdecimal() or int(text) >= 2**32:
        return text
    return f"{int(text) >> 16}:{int(text) & 0xFFFF}"


def _merged(one: Raw, other: Raw) -> Raw:
    ours, theirs = one["attributes"], other["attributes"]
    lists = {key: [*ours[key], *theirs[key]] for key in ("communities", "largeCommunities")}
    preferences = [it["localPreference"] for it in (ours, theirs) if "localPreference" in it]
    highest = {"localPreference": max(preferences)} if preferences else {}
    return one | {"attributes": lists | highest}
