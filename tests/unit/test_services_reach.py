"""Whether somebody answers behind an address here: traffic policies, conditions, families, whose address it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.config.bgp import Advertisement
from bgpd.model.service import EndpointSlice, Service, ServiceEndpoint
from bgpd.services.reach import Reach, Reaches, Rules, Standing

ALL = {"addresses": ["LoadBalancerIP", "ExternalIP", "ClusterIP"]}
HERE, THERE = "worker1", "worker2"
WEB = Service("shop", "web", load_balancer_ips=(ip_address("203.0.113.7"),))
LOCAL = replace(WEB, external_local=True)


def rules(service: Mapping[str, Any] = ALL, selector: Mapping[str, Any] | None = None, **more: Any) -> Rules:
    entry = {"advertisementType": "Service", "service": service, "selector": selector or {}}
    return Rules((Advertisement.model_validate(entry),), more.get("classes", ()))


def ready(node: str, address: str = "10.1.1.1") -> ServiceEndpoint:
    return ServiceEndpoint(ip_address(address), node)


def unready(node: str) -> ServiceEndpoint:
    return ServiceEndpoint(ip_address("10.1.1.2"), node, ready=False, serving=False)


def leaving(node: str) -> ServiceEndpoint:
    return ServiceEndpoint(ip_address("10.1.1.3"), node, ready=False, serving=True, terminating=True)


def slices(*endpoints: ServiceEndpoint, service: str = "shop/web", name: str = "a") -> dict[str, EndpointSlice]:
    return {f"shop/{name}": EndpointSlice("shop", name, service, endpoints)}


def look(service: Service, *endpoints: ServiceEndpoint, by: Rules | None = None) -> list[Reach]:
    return list(Reaches(HERE).advance(by or rules(), {service.key: service}, slices(*endpoints)))


def standing(service: Service, *endpoints: ServiceEndpoint) -> tuple[str, str]:
    (reach,) = look(service, *endpoints)
    assert (reach.offer == reach.withheld) is (reach.standing is Standing.FIT)
    return reach.standing.value, reach.withheld.withheld.removeprefix("Service shop/web has ")


IN_LOCAL = " on this node (externalTrafficPolicy: Local)"


@pytest.mark.parametrize(
    ("endpoints", "cluster", "local"),
    [
        ((), ("absent", "no endpoint"), ("absent", "no endpoint")),
        ((ready(HERE),), ("fit", ""), ("fit", "")),
        ((ready(THERE),), ("fit", ""), ("absent", "no endpoint")),
        ((ready(""),), ("fit", ""), ("absent", "no endpoint")),
        ((unready(HERE), ready(THERE)), ("fit", ""), ("absent", "no ready endpoint")),
        ((unready(HERE),), ("unready", "no ready endpoint"), ("unready", "no ready endpoint")),
        ((unready(THERE),), ("unready", "no ready endpoint"), ("absent", "no endpoint")),
        ((unready(HERE), unready(THERE)), ("unready", "no ready endpoint"), ("unready", "no ready endpoint")),
        ((ready(HERE), unready(HERE)), ("fit", ""), ("fit", "")),
        ((unready(HERE), ready(HERE)), ("fit", ""), ("fit", "")),
        ((leaving(HERE),), ("fit", ""), ("fit", "")),
        ((leaving(THERE),), ("fit", ""), ("absent", "no endpoint")),
        ((leaving(HERE), ready(THERE)), ("fit", ""), ("absent", "no ready endpoint")),
        ((leaving(HERE), unready(THERE)), ("fit", ""), ("fit", "")),
        ((leaving(THERE), unready(HERE)), ("fit", ""), ("absent", "no ready endpoint")),
    ],
)
def test_standing(endpoints: Sequence[ServiceEndpoint], cluster: tuple[str, str], local: tuple[str, str]) -> None:
    """Cluster: an endpoint anywhere. Local: here, and if it is on its way out, only while nobody else is ready."""
    assert standing(WEB, *endpoints) == cluster
    where = (local[0], local[1] + IN_LOCAL) if local[1] else local
    assert standing(LOCAL, *endpoints) == where


def test_cluster_ips_follow_the_internal_policy() -> None:
    """And all other addresses the external one."""
    both = replace(WEB, cluster_ips=(ip_address("10.96.0.7"),), external_ips=(ip_address("192.0.2.7"),))
    found = look(replace(both, external_local=True), ready(THERE))
    assert [reach.standing.value for reach in found] == ["absent", "absent", "fit"]
    assert [reach.offer.local for reach in found] == [True, True, False]
    found = look(replace(both, internal_local=True), ready(THERE))
    assert [reach.standing.value for reach in found] == ["fit", "fit", "absent"]
    assert "(internalTrafficPolicy: Local)" in found[2].withheld.withheld


def test_each_family_stands_for_itself() -> None:
    """An address without an endpoint of its family leads nowhere; a Service's slices count together."""
    dual = replace(WEB, load_balancer_ips=(ip_address("203.0.113.7"), ip_address("2001:db8::7")))
    parts = slices(unready(THERE)) | slices(ready(THERE), name="b")
    found = list(Reaches(HERE).advance(rules(), {dual.key: dual}, parts))
    assert [(reach.key.prefix, reach.standing.value) for reach in found] == [
        ("203.0.113.7/32", "fit"),
        ("2001:db8::7/128", "absent"),
    ]


@pytest.mark.parametrize(
    ("service", "classes", "reason"),
    [
        (replace(WEB, labels={"service.kubernetes.io/service-proxy-name": "x"}), (), "leaves it to x"),
        (replace(WEB, load_balancer_class="example.com/lb"), (), "loadBalancerClass example.com/lb is not among"),
        (replace(WEB, load_balancer_class="example.com/lb"), ("example.com/lb",), ""),
        (replace(WEB, load_balancer_ips=(), proxied=WEB.load_balancer_ips), (), "ipMode is Proxy"),
    ],
)
def test_addresses_that_are_not_ours(service: Service, classes: tuple[str, ...], reason: str) -> None:
    """Left to another proxy, another load balancer, or answered by no node, however many endpoints are ready."""
    (reach,) = look(service, ready(HERE), by=rules(classes=classes))
    assert (reach.standing is Standing.FOREIGN) is bool(reason)
    assert reason in reach.withheld.withheld


def test_a_class_is_about_load_balancer_addresses_only() -> None:
    """The others belong to the Service whoever balances."""
    service = replace(WEB, load_balancer_class="x", external_ips=(ip_address("192.0.2.7"),))
    assert [reach.standing.value for reach in look(service, ready(HERE))] == ["foreign", "fit"]


@pytest.mark.parametrize(
    ("selector", "meant"),
    [
        ({}, True),
        ({"matchLabels": {"tier": "front"}}, True),
        ({"matchLabels": {"tier": "back"}}, False),
        ({"matchLabels": {"io.kubernetes.service.namespace": "shop", "io.kubernetes.service.name": "web"}}, True),
        ({"matchLabels": {"io.kubernetes.service.namespace": "other"}}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, False),
    ],
)
def test_only_what_is_selected_is_looked_at(selector: dict[str, Any], meant: bool) -> None:
    """By labels, and by the two that every Service has."""
    service = replace(WEB, labels={"tier": "front"})
    assert bool(look(service, ready(HERE), by=rules(selector=selector))) is meant


def test_only_the_kinds_that_are_asked_for() -> None:
    service = replace(WEB, cluster_ips=(ip_address("10.96.0.7"),))
    found = look(service, ready(HERE), by=rules({"addresses": ["ClusterIP"]}))
    assert [reach.key.prefix for reach in found] == ["10.96.0.7/32"]


names = st.sampled_from(["a", "b", "c"])
endpoints = st.lists(st.sampled_from([ready(HERE), ready(THERE), unready(HERE), leaving(THERE)]), max_size=3)
worlds = st.tuples(
    st.dictionaries(names, st.booleans(), max_size=3),  # services: Local or not
    st.dictionaries(names, st.tuples(names, endpoints), max_size=3),  # slices: whose, and what is in them
)


@given(st.lists(worlds, min_size=1, max_size=6))
def test_what_changed_since_makes_no_difference(history: list[Any]) -> None:
    """Looking at what changed only gives what a first look at the same objects gives, whatever came before."""
    reaches = Reaches(HERE)
    kept: dict[tuple[str, Any], Any] = {}
    for services_of, slices_of in history:
        services = {
            f"shop/{name}": kept.setdefault((name, local), replace(WEB, name=name, external_local=local))
            for name, local in services_of.items()
        }
        parts = {
            f"shop/{name}": kept.setdefault(
                (name, (owner, *found)), EndpointSlice("shop", name, f"shop/{owner}", tuple(found))
            )
            for name, (owner, found) in slices_of.items()
        }
        assert list(reaches.advance(rules(), services, parts)) == list(
            Reaches(HERE).advance(rules(), services, parts)
        )


def test_other_rules_are_put_to_use() -> None:
    """A reload changes what is meant, though no object has changed."""
    reaches, services, parts = Reaches(HERE), {WEB.key: WEB}, slices(ready(HERE))
    assert len(list(reaches.advance(rules(), services, parts))) == 1
    assert list(reaches.advance(rules(selector={"matchLabels": {"no": "such"}}), services, parts)) == []
