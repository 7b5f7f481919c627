"""Decides for each address of a Service that is to be announced whether somebody answers behind it here. Pure.

Cluster traffic policy: an endpoint anywhere will do, for every node leads there. Local: only one on this node, for
what comes in here goes nowhere else (externalTrafficPolicy for load balancer and external IPs, internalTrafficPolicy
for cluster IPs). An endpoint counts while it is ready. While none in the whole cluster is, those count that still
answer on their way out, for kube-proxy uses these then (KEP-1669).

What it does not know is time: whether an address goes or comes at once is up to `plan`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from typing import NamedTuple

from bgpd.config.bgp import Advertisement
from bgpd.config.schema import Config
from bgpd.model.bgp import AdvertisementType
from bgpd.model.candidate import Candidate
from bgpd.model.prefix import Address, host_prefix
from bgpd.model.service import EndpointSlice, Service, ServiceAddress
from bgpd.runtime.diff import gone, written

NAMESPACE, NAME = "io.kubernetes.service.namespace", "io.kubernetes.service.name"  # labels that Cilium adds
PROXY_NAME = "service.kubernetes.io/service-proxy-name"  # kube-proxy leaves such a Service to whom it names


class Standing(StrEnum):
    """UNREADY: there are endpoints where they count, and none in the cluster is ready. ABSENT: there is none here."""

    FIT = "fit"
    UNREADY = "unready"
    ABSENT = "absent"
    FOREIGN = "foreign"  # others answer, or announce, this address


class AddressKey(NamedTuple):
    """`service` is namespace/name. The prefix is text, for that is hashed fast, and every plan looks up every key."""

    service: str
    kind: ServiceAddress
    prefix: str


@dataclass(frozen=True, slots=True)
class Reach:
    """How one address stands: as it would be announced, and as it is withheld (the same where it is fit)."""

    key: AddressKey
    standing: Standing
    offer: Candidate
    withheld: Candidate


@dataclass(frozen=True, slots=True)
class Rules:
    """What of the configuration decides here."""

    advertisements: tuple[Advertisement, ...]
    load_balancer_classes: Collection[str]

    @classmethod
    def of(cls, config: Config) -> Rules:
        return cls(config.bgp.advertisements, config.services.load_balancer_classes)

    def mean(self, offer: Candidate) -> bool:
        return any(entry.selects(offer) for entry in self.advertisements)


@dataclass(slots=True)
class _Tally:
    """A Service's endpoints of one family, here and anywhere."""

    here: bool = False
    anywhere: bool = False
    ready_here: bool = False
    ready: bool = False
    serving_here: bool = False
    serving: bool = False

    def fit(self, local: bool) -> bool:
        return self.ready_here or (not self.ready and self.serving_here) if local else self.ready or self.serving


class Reaches:
    """How all addresses stand on one node. Only Services that changed are looked at again."""

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._rules: Rules | None = None
        self._services: Mapping[str, Service] = {}
        self._slices: Mapping[str, EndpointSlice] = {}
        self._slices_of: dict[str, dict[str, EndpointSlice]] = defaultdict(dict)
        self._reaches: dict[str, Sequence[Reach]] = {}

    def advance(
        self, rules: Rules, services: Mapping[str, Service], slices: Mapping[str, EndpointSlice]
    ) -> list[Reach]:
        """Of the addresses that `rules` mean, in the order of `services`. What has not changed is the same object."""
        changed = self._take_slices(slices)
        if rules != self._rules:
            changed |= services.keys()
        changed.update(written(services, self._services))
        for key in self._services.keys() - services.keys():
            self._reaches.pop(key, None)
        self._rules, self._services = rules, services
        for key in changed & services.keys():
            self._reaches[key] = tuple(_reaches(services[key], self._tallies(key), rules))
        return list(chain.from_iterable(map(self._reaches.__getitem__, services)))

    def _take_slices(self, slices: Mapping[str, EndpointSlice]) -> set[str]:
        """The Services whose slices are not those of before."""
        before, changed = self._slices, set()
        for key in written(slices, before):
            each, was = slices[key], before.get(key)
            if was is not None and was.service != each.service:
                changed.add(self._forget(key, was))
            self._slices_of[each.service][key] = each
            changed.add(each.service)
        for key in gone(slices, before):
            changed.add(self._forget(key, before[key]))
        self._slices = slices
        return changed

    def _forget(self, key: str, was: EndpointSlice) -> str:
        del self._slices_of[was.service][key]
        if not self._slices_of[was.service]:
            del self._slices_of[was.service]
        return was.service

    def _tallies(self, service: str) -> Mapping[int, _Tally]:
        """By IP version."""
        found: dict[int, _Tally] = defaultdict(_Tally)
        for each in self._slices_of.get(service, {}).values():
            for endpoint in each.endpoints:
                tally, here = found[endpoint.address.version], endpoint.node == self._node_name
                tally.anywhere = True
                tally.here |= here
                tally.ready |= endpoint.ready
                tally.ready_here |= endpoint.ready and here
                tally.serving |= endpoint.serving
                tally.serving_here |= endpoint.serving and here
        return found


def _reaches(service: Service, tallies: Mapping[int, _Tally], rules: Rules) -> Iterator[Reach]:
    owner = f"Service {service.key}"
    labels = {**service.labels, NAMESPACE: service.namespace, NAME: service.name}
    for kind, address, local in _addresses(service):
        prefix = host_prefix(address)
        offer = Candidate(AdvertisementType.SERVICE, prefix, owner, labels, kind, local=local)
        if not rules.mean(offer):
            continue
        key = AddressKey(service.key, kind, str(prefix))
        foreign = _foreign(service, kind, address, rules)
        if foreign:
            yield Reach(key, Standing.FOREIGN, offer, replace(offer, withheld=f"{owner}: {foreign}"))
            continue
        standing, why = _standing(tallies.get(address.version, _Tally()), local)
        if why and local:
            field = "internalTrafficPolicy" if kind is ServiceAddress.CLUSTER_IP else "externalTrafficPolicy"
            why = f"{why} on this node ({field}: Local)"
        yield Reach(key, standing, offer, replace(offer, withheld=f"{owner} has {why}") if why else offer)


def _addresses(service: Service) -> Iterator[tuple[ServiceAddress, Address, bool]]:
    """Each address, and whether it leads to endpoints of this node only."""
    balanced: Iterable[Address] = (*service.load_balancer_ips, *service.proxied)
    yield from ((ServiceAddress.LOAD_BALANCER_IP, address, service.external_local) for address in balanced)
    yield from ((ServiceAddress.EXTERNAL_IP, address, service.external_local) for address in service.external_ips)
    yield from ((ServiceAddress.CLUSTER_IP, address, service.internal_local) for address in service.cluster_ips)


def _foreign(service: Service, kind: ServiceAddress, address: Address, rules: Rules) -> str:
    """Why this node does not answer this address, or is not to announce it, whatever its endpoints; empty: it is."""
    proxy = service.labels.get(PROXY_NAME)
    if proxy is not None:
        return f"the label {PROXY_NAME} leaves it to {proxy or 'another proxy'}"
    if kind is not ServiceAddress.LOAD_BALANCER_IP:
        return ""
    if address in service.proxied:
        return "ipMode is Proxy: the load balancer answers this address, no node does"
    name = service.load_balancer_class
    if name and name not in rules.load_balancer_classes:
        return f"loadBalancerClass {name} is not among services.loadBalancerClasses"
    return ""


def _standing(tally: _Tally, local: bool) -> tuple[Standing, str]:
    """And, unless it is fit, what the Service has."""
    if tally.fit(local):
        return Standing.FIT, ""
    if not (tally.here if local else tally.anywhere):
        return Standing.ABSENT, "no endpoint"
    # a Local address with endpoints elsewhere loses nothing here: other nodes announce it
    return Standing.ABSENT if tally.ready or tally.serving else Standing.UNREADY, "no ready endpoint"
