"""Random small clusters with policies, and every flow that could tell two readings of them apart.

Small on purpose: two values of a label, three namespaces and nested prefixes meet in every way within a few dozen
examples, and clusters that differ in one thing are what changes of a real one are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from bgpd.model.labels import Operator, Requirement, Selector
from bgpd.model.pod import ContainerPort, Namespace, Pod
from bgpd.model.policy import (
    Direction,
    IpBlock,
    NamedPort,
    NetworkPolicy,
    Peer,
    PodPeer,
    PolicyPort,
    PolicyRule,
    PortRange,
    Protocol,
    Snapshot,
)
from bgpd.model.prefix import Address, Prefix
from bgpd.policy.evaluate import Flow

NAMESPACES = ("x", "y", "z")
NODE = ip_address("10.0.0.1")
POD_ADDRESSES: tuple[Address, ...] = tuple(ip_address(f"10.0.0.{host}") for host in range(2, 9))
OUTSIDE: tuple[Address, ...] = tuple(map(ip_address, ("10.0.1.9", "192.0.2.7", "2001:db8::7", "fd00::9")))
ADDRESSES = (*POD_ADDRESSES, *OUTSIDE, ip_address("fd00::2"), ip_address("fd00::3"), NODE)
PREFIXES: tuple[Prefix, ...] = tuple(
    map(ip_network, ("0.0.0.0/0", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.4/30", "10.0.0.4/32", "192.0.2.0/24"))
) + tuple(map(ip_network, ("::/0", "fd00::/16", "fd00::2/127")))
NUMBERS = (80, 81, 8080)
NAMES = ("http", "dns")
ICMP, GRE = 1, 47

labels = st.dictionaries(st.sampled_from(("a", "b")), st.sampled_from(("1", "2")))
requirements = st.one_of(
    st.builds(
        Requirement,
        st.sampled_from(("a", "b")),
        st.sampled_from((Operator.IN, Operator.NOT_IN)),
        st.lists(st.sampled_from(("1", "2", "3")), min_size=1, max_size=2, unique=True).map(tuple),
    ),
    st.builds(Requirement, st.sampled_from(("a", "b")), st.sampled_from((Operator.EXISTS, Operator.DOES_NOT_EXIST))),
)
selectors = st.lists(requirements, max_size=2).map(lambda found: Selector(tuple(found))) | st.just(Selector())
protocols = st.sampled_from(Protocol)


def _block(cidr: Prefix, others: list[Prefix]) -> IpBlock:
    inside = (each for each in others if each.version == cidr.version and each.prefixlen > cidr.prefixlen)
    return IpBlock(cidr, tuple(each for each in inside if each.network_address in cidr))


def _range(protocol: Protocol, first: int, length: int) -> PortRange:
    return PortRange(protocol, first, min(65535, first + length))


peers: st.SearchStrategy[Peer] = st.one_of(
    st.builds(PodPeer, selectors, st.none() | selectors),
    st.builds(_block, st.sampled_from(PREFIXES), st.lists(st.sampled_from(PREFIXES), max_size=2, unique=True)),
)
ports: st.SearchStrategy[PolicyPort] = st.one_of(
    st.builds(_range, protocols, st.sampled_from(NUMBERS), st.sampled_from((0, 0, 1, 7999))),
    st.builds(lambda protocol: PortRange(protocol, 0, 65535), protocols),
    st.builds(NamedPort, protocols, st.sampled_from(NAMES)),
)
rules = st.builds(
    PolicyRule,
    st.none() | st.lists(peers, max_size=2).map(tuple),
    st.none() | st.lists(ports, max_size=2).map(tuple),
)
directions = st.none() | st.lists(rules, max_size=2).map(tuple)


@st.composite
def policies(draw: st.DrawFn) -> NetworkPolicy:
    namespace, name = draw(st.sampled_from(NAMESPACES)), draw(st.sampled_from(("p", "q", "r")))
    return NetworkPolicy(namespace, name, "", draw(selectors), draw(directions), draw(directions))


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    """Addresses may be another pod's too: that is what reuse looks like."""
    addresses = draw(st.lists(st.sampled_from(POD_ADDRESSES), max_size=1))
    addresses += draw(st.lists(st.sampled_from((ip_address("fd00::2"), ip_address("fd00::3"))), max_size=1))
    named = st.builds(ContainerPort, st.sampled_from(NAMES), protocols, st.sampled_from(NUMBERS))
    return Pod(
        namespace=draw(st.sampled_from(NAMESPACES)),
        name=draw(st.sampled_from(("k", "l", "m", "n"))),
        labels=draw(labels),
        ips=tuple(addresses),
        host_network=draw(st.sampled_from((False,) * 9 + (True,))),
        ports=tuple(draw(st.lists(named, max_size=2))),
        created=draw(st.sampled_from(("", "2026-01-01T00:00:00Z"))),
        terminating=draw(st.sampled_from((False, False, True))),
        finished=draw(st.sampled_from((False,) * 9 + (True,))),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    found = {pod.key: pod for pod in draw(st.lists(pods(), min_size=2, max_size=7))}
    local = draw(st.sets(st.sampled_from(sorted(found)), min_size=1))
    unknown: dict[str, tuple[Address, ...]] = draw(
        st.sampled_from(({}, {}, {"x/new": (POD_ADDRESSES[0],)}))  # its interface is here, its object not yet
    )
    return Snapshot(
        pods=found,
        namespaces={name: Namespace(name, draw(labels)) for name in draw(st.sets(st.sampled_from(NAMESPACES)))},
        policies={policy.key: policy for policy in draw(st.lists(policies(), max_size=4))},
        local=dict.fromkeys(local, ()) | unknown,
        node_addresses=frozenset({NODE}),
    )


@st.composite
def edited(draw: st.DrawFn, policy: NetworkPolicy) -> NetworkPolicy:
    """A rule more or less, in one direction: most of what passed still does."""
    direction = draw(st.sampled_from(Direction))
    before = policy.rules(direction) or ()
    after = (*before, draw(rules)) if draw(st.booleans()) else before[1:]
    if direction is Direction.INGRESS:
        return replace(policy, ingress=after)
    return replace(policy, egress=after)


@st.composite
def changed(draw: st.DrawFn, before: Snapshot) -> Snapshot:
    """The same cluster after one event; seldom after several at once."""
    after = before
    for _ in range(draw(st.sampled_from((1, 1, 1, 3)))):
        match draw(st.integers(0, 6)):
            case 0:
                policy = draw(policies())
                after = replace(after, policies={**after.policies, policy.key: policy})
            case 1 | 6 if after.policies:
                policy = draw(edited(after.policies[draw(st.sampled_from(sorted(after.policies)))]))
                after = replace(after, policies={**after.policies, policy.key: policy})
            case 2 if after.policies:
                gone = draw(st.sampled_from(sorted(after.policies)))
                after = replace(after, policies={k: v for k, v in after.policies.items() if k != gone})
            case 3:
                namespace = Namespace(draw(st.sampled_from(NAMESPACES)), draw(labels))
                after = replace(after, namespaces={**after.namespaces, namespace.name: namespace})
            case 4:
                key = draw(st.sampled_from(sorted(after.pods)))
                pod = replace(after.pods[key], labels=draw(labels), terminating=draw(st.booleans()))
                after = replace(after, pods={**after.pods, key: pod})
            case _:
                pod = draw(pods())
                local = {key: value for key, value in after.local.items() if key != pod.key}
                if draw(st.booleans()):
                    local[pod.key] = ()
                after = replace(after, pods={**after.pods, pod.key: pod}, local=local)
    return after


def flows() -> Iterator[Flow]:
    """From every address to every other, of every kind that a rule can tell apart."""
    kinds = [(protocol, port) for protocol in Protocol for port in (*NUMBERS, 443)]
    for client in ADDRESSES:
        for server in ADDRESSES:
            if client.version == server.version:
                for protocol, port in (*kinds[:8], kinds[9]):
                    yield Flow(client, server, protocol, port)
                yield Flow(client, server, ICMP)


FLOWS = tuple(flows())
