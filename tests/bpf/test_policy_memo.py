"""What the programs remember (bpf/include/bgpd/memo.h): when it counts, and for which packets."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest

from bgpd.datapath import layout
from bgpd.datapath.layout import Action, Peer, Port, Rule, RuleFlag, policy_address
from bgpd.datapath.loader import Installed
from bgpd.model.prefix import Address
from bgpd.policy.entries import Contents, PortKey, RuleKey
from bgpd.policy.map import KEY, PolicyMaps, Stages
from bgpd.runtime.diff import Change
from tests.bpf import memo
from tests.bpf.conftest import emptied
from tests.bpf.fill import clear, overwrite
from tests.bpf.packets import SOURCE_V4, SOURCE_V6, TCP, UDP
from tests.bpf.test_policy import CLIENT, DROP, PASS, SET, SOURCES, V4, V6, ask, to

PORTS = 31
FIRST, MANY = ip_address("fd00:7::"), 100_000
HTTP, OTHER = 80, 81
RULE = RuleKey(SET, CLIENT)
NEIGHBOR = {V4: ip_address("10.244.9.9"), V6: ip_address("fd00:9::9")}
OPEN = Contents(
    peers={policy_address(each): Peer(5, 0, SET) for each in (V4, V6, *NEIGHBOR.values())}
    | {policy_address(each): Peer(CLIENT) for each in (SOURCE_V4, SOURCE_V6)},
    rules={RULE: Rule(PORTS, Action.DENY, RuleFlag.HAS_PORTS, 0, 1)},
    ports={PortKey(PORTS, protocol, HTTP): Port(Action.ALLOW, 0, 0, 2) for protocol in (TCP, UDP)},
)
CLOSED = replace(
    OPEN, peers={key: each._replace(ingress_set=each.ingress_set and SET + 1) for key, each in OPEN.peers.items()}
)
families = pytest.mark.parametrize("address", [V4, V6], ids=["IPv4", "IPv6"])
programs = pytest.mark.parametrize("program", ["policy", "policy_bridge"])


@pytest.fixture
def policy(shared_policy: Installed) -> Iterator[Installed]:
    """Whoever comes after has no revision, and so nothing that is remembered."""
    yield emptied(shared_policy)
    shared_policy.maps["policy_revision"].update({bytes(4): bytes(8)})


def frame(address: Address, port: int = HTTP, protocol: int = TCP, client_port: int = 40_000) -> bytes:
    return to(address, struct.pack("!HH", client_port, port) + bytes(9) + b"\x10" + bytes(6), protocol)


Then: TypeAlias = Callable[[PolicyMaps], Awaitable[None]]


def settled(policy: Installed, directory: Path, contents: Contents, then: Then) -> None:
    """With these in the maps, and a revision."""

    async def whole() -> None:
        maps = PolicyMaps(policy, directory)
        await write(maps, contents)
        await maps.settled()
        await then(maps)

    asyncio.run(whole())


async def write(maps: PolicyMaps, contents: Contents) -> None:
    await maps.apply([Change(KEY, Stages((contents,)), (await maps.observe()).get(KEY))])


def behind_its_back(policy: Installed, contents: Contents) -> None:
    """As nobody does: what the maps say changes, and their revision does not."""
    policy.maps["policy_peers"].update({bytes(key): layout.PEER.pack(*peer) for key, peer in contents.peers.items()})


@programs
@families
def test_what_passes_is_remembered_until_the_maps_are_looked_at_again(
    policy: Installed, shared: Path, program: str, address: Address
) -> None:
    async def then(maps: PolicyMaps) -> None:
        assert ask(policy, frame(address), program) == PASS
        behind_its_back(policy, CLOSED)
        assert ask(policy, frame(address), program) == PASS
        assert ask(policy, frame(address, client_port=40_001), program) == PASS, "nothing is kept of flows"
        assert ask(policy, frame(NEIGHBOR[address]), program) == DROP, "nobody has seen this one"
        await maps.observe()
        assert ask(policy, frame(address), program) == DROP
        await maps.settled()
        assert ask(policy, frame(address), program) == DROP

    settled(policy, shared, OPEN, then)


@programs
@families
def test_nothing_remembered_counts_once_other_rules_are_written(
    policy: Installed, shared: Path, program: str, address: Address
) -> None:
    async def then(maps: PolicyMaps) -> None:
        have = (await maps.observe())[KEY]
        await maps.settled()
        assert ask(policy, frame(address), program) == PASS
        await maps.apply([Change(KEY, Stages((CLOSED,)), have)])
        assert ask(policy, frame(address), program) == DROP, "at once: nobody waits for programs to end"
        await maps.settled()
        assert ask(policy, frame(address), program) == DROP
        await write(maps, OPEN)
        assert ask(policy, frame(address), program) == PASS

    settled(policy, shared, OPEN, then)


def test_without_a_revision_nothing_is_remembered(policy: Installed, shared: Path) -> None:
    """As a daemon leaves it that is killed while it writes."""

    async def then(maps: PolicyMaps) -> None:
        policy.maps["policy_revision"].update({bytes(4): bytes(8)})
        assert ask(policy, frame(V4)) == PASS
        behind_its_back(policy, CLOSED)
        assert ask(policy, frame(V4)) == DROP

    settled(policy, shared, OPEN, then)


def test_a_write_goes_on_without_a_revision_when_the_daemon_is_told_to_end(policy: Installed, shared: Path) -> None:
    """Nobody waits for the thread that writes then, and what settles the maps may be at work."""
    many = {policy_address(FIRST + number): Peer(7) for number in range(MANY)}
    revision, peers = policy.maps["policy_revision"], policy.maps["policy_peers"]

    async def then(maps: PolicyMaps) -> None:
        have = (await maps.observe())[KEY]
        last = policy_address(FIRST + (MANY - 1))
        writing = asyncio.create_task(maps.apply([Change(KEY, Stages((replace(OPEN, peers=many),)), have)]))
        while peers.lookup(policy_address(FIRST)) is None:  # noqa: ASYNC110 - a map has no event
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        without = 0
        while peers.lookup(last) is None:
            found = revision.lookup(bytes(4))
            assert found == bytes(8) or peers.lookup(last) is not None, "some of it is written under this number"
            without += 1
            await asyncio.sleep(0.001)
        assert without, "it had been written before anybody looked"
        await maps.settled()
        assert revision.lookup(bytes(4)) != bytes(8)

    settled(policy, shared, OPEN, then)


def test_what_is_dropped_is_judged_each_time(policy: Installed, shared: Path) -> None:
    async def then(maps: PolicyMaps) -> None:
        assert ask(policy, frame(V4)) == DROP
        policy.maps["policy_rules"].update({layout.rule_key(SET + 1, CLIENT): layout.RULE.pack(*OPEN.rules[RULE])})
        assert ask(policy, frame(V4)) == PASS

    settled(policy, shared, CLOSED, then)


@families
def test_all_that_rules_tell_apart_is_told_apart(policy: Installed, shared: Path, address: Address) -> None:
    """When rules name no port any more only the packet passes that has passed; before and after, any."""
    usual = SOURCES[address.version]
    sent = frame(address)
    others = {
        "port": frame(address, OTHER),
        "protocol": frame(address, protocol=UDP),
        "server": frame(NEIGHBOR[address]),
        "client": sent.replace(usual.packed, (usual + 100).packed, 1),
    }
    contents = replace(
        OPEN,
        peers={
            **OPEN.peers,
            policy_address(usual + 100): Peer(CLIENT + 1),
            policy_address(NEIGHBOR[address]): Peer(5, 0, SET + 1),
        },
        rules={RuleKey(set_, class_): OPEN.rules[RULE] for set_ in (SET, SET + 1) for class_ in (CLIENT, CLIENT + 1)},
        ports={**OPEN.ports, PortKey(PORTS, TCP, OTHER): Port(Action.ALLOW, 0, 0, 2)},
    )

    async def then(maps: PolicyMaps) -> None:
        assert ask(policy, sent) == PASS
        clear(policy.maps["policy_ports"])
        assert ask(policy, sent) == PASS
        assert {name: ask(policy, other) for name, other in others.items()} == dict.fromkeys(others, DROP)
        await write(maps, contents)
        assert {name: ask(policy, other) for name, other in others.items()} == dict.fromkeys(others, PASS)

    settled(policy, shared, contents, then)


@families
@pytest.mark.parametrize("egress", [False, True], ids=["ingress", "egress"])
def test_the_class_of_an_address_block_counts_for_whom_rules_have_blocks(
    policy: Installed, shared: Path, address: Address, egress: bool
) -> None:
    """The same address is in that class to one pod, and the rest of the world to the next."""
    usual = SOURCES[address.version]
    block, rest = 9, 0
    allow = Rule(0, Action.ALLOW, 0, 0, 1)
    if egress:
        pods, other = (usual, usual + 100), address
        told = Peer(5, SET, 0, layout.PeerFlag.EGRESS_CIDRS), Peer(5, SET + 1)
        sent = [frame(address).replace(usual.packed, each.packed, 1) for each in pods]
    else:
        pods, other = (address, NEIGHBOR[address]), usual
        told = Peer(5, 0, SET, layout.PeerFlag.INGRESS_CIDRS), Peer(5, 0, SET + 1)
        sent = [frame(each) for each in pods]
    contents = Contents(
        peers=dict(zip(map(policy_address, pods), told, strict=True)),
        cidrs={ip_network(other): block},
        rules={RuleKey(SET, block): allow, RuleKey(SET + 1, rest): allow},
    )
    swapped = replace(contents, rules={RuleKey(SET, rest): allow, RuleKey(SET + 1, block): allow})

    async def then(maps: PolicyMaps) -> None:
        for _ in range(2):
            assert [ask(policy, each) for each in sent] == [PASS, PASS]
        await write(maps, swapped)
        await maps.settled()
        for _ in range(2):
            assert [ask(policy, each) for each in sent] == [DROP, DROP]

    settled(policy, shared, contents, then)


@families
def test_what_egress_rules_tell_apart_is_told_apart(policy: Installed, shared: Path, address: Address) -> None:
    """As above, of the client's set: which it is, and what class the server is in there."""
    usual = SOURCES[address.version]
    sent = frame(address)
    others = {
        "server": frame(NEIGHBOR[address]),
        "client": sent.replace(usual.packed, (usual + 100).packed, 1),
    }
    allow = Rule(0, Action.ALLOW, 0, 0, 1)
    contents = Contents(
        peers={
            policy_address(usual): Peer(CLIENT, SET),
            policy_address(usual + 100): Peer(CLIENT, SET + 1),
            policy_address(address): Peer(5),
            policy_address(NEIGHBOR[address]): Peer(6),
        },
        rules={RuleKey(SET, 5): allow},
    )

    async def then(maps: PolicyMaps) -> None:
        assert ask(policy, sent) == PASS
        assert {name: ask(policy, other) for name, other in others.items()} == dict.fromkeys(others, DROP)

    settled(policy, shared, contents, then)


def test_a_pod_reaches_itself_whatever_its_rules(policy: Installed, shared: Path) -> None:
    """Under a revision too."""
    contents = Contents(peers={policy_address(SOURCE_V4): Peer(CLIENT, SET, SET)})

    async def then(maps: PolicyMaps) -> None:
        assert ask(policy, frame(SOURCE_V4)) == PASS

    settled(policy, shared, contents, then)


@families
@pytest.mark.parametrize(("contents", "verdict"), [(OPEN, PASS), (CLOSED, DROP)], ids=["open", "closed"])
def test_two_ends_that_share_a_slot_are_two(
    policy: Installed, shared: Path, address: Address, contents: Contents, verdict: int
) -> None:
    """Each takes it from the other, with every packet."""
    client = SOURCES[address.version]
    revision = memo.sharing(client, address, Random(1))

    async def then(maps: PolicyMaps) -> None:
        policy.maps["policy_revision"].update({bytes(4): layout.REVISION.pack(revision)})
        for _ in range(3):
            assert ask(policy, frame(address)) == verdict
            assert memo.holds(policy, address, revision)
            assert not memo.holds(policy, client, revision)

    settled(policy, shared, contents, then)


def test_a_reply_finds_what_was_said_of_its_flow(policy: Installed, shared: Path) -> None:
    """It is turned round, and then the same."""
    sent = frame(V4)
    reply = sent[:26] + sent[30:34] + sent[26:30] + sent[36:38] + sent[34:36] + sent[38:]

    async def then(maps: PolicyMaps) -> None:
        assert ask(policy, sent) == PASS
        behind_its_back(policy, CLOSED)
        assert ask(policy, reply, "policy_reply") == PASS
        assert ask(policy, reply) == PASS, "of one who is not isolated, as a client"

    settled(policy, shared, OPEN, then)


def test_audited_packets_are_counted_one_by_one(policy: Installed, shared: Path) -> None:
    audited = {key: peer._replace(flags=layout.PeerFlag.AUDIT) for key, peer in CLOSED.peers.items()}

    async def then(maps: PolicyMaps) -> None:
        counters = policy.maps["policy_verdicts"]
        before = counted(counters.lookup_each_cpu)
        for _ in range(3):
            assert ask(policy, frame(V4)) == PASS
        assert counted(counters.lookup_each_cpu) - before == 3

    settled(policy, shared, replace(CLOSED, peers=audited), then)


def counted(each_cpu: Callable[[bytes], list[bytes]]) -> int:
    index = layout.PolicyVerdict.AUDITED.to_bytes(4, "little")
    return sum(layout.COUNTER.unpack(value)[0] for value in each_cpu(index))


ANOTHER = {
    "its address": (policy_address(V4), policy_address(NEIGHBOR[V4])),
    "its set": (layout.PEER.pack(5, 0, SET, 0), layout.PEER.pack(5, 0, 0, 0)),
    "its class": (layout.PEER.pack(5, 0, SET, 0), layout.PEER.pack(6, 0, SET, 0)),
}


@pytest.mark.parametrize(("own", "others"), ANOTHER.values(), ids=ANOTHER.keys())
def test_what_two_have_written_of_addresses_counts_for_neither(
    policy: Installed, shared: Path, own: bytes, others: bytes
) -> None:
    """Every slot has what one that passed has left, but for a part that is another's."""

    async def then(maps: PolicyMaps) -> None:
        assert ask(policy, frame(V4)) == PASS
        behind_its_back(policy, CLOSED)
        (written,) = {each for each in slots(policy, "policy_seen") if policy_address(V4) in each}
        fill(policy, "policy_seen", written)
        assert ask(policy, frame(V4)) == PASS, "this is what the program looks at"
        fill(policy, "policy_seen", written.replace(own, others))
        assert [ask(policy, frame(each)) for each in (V4, NEIGHBOR[V4])] == [DROP, DROP]

    settled(policy, shared, OPEN, then)


def test_what_two_have_written_of_packets_counts_for_neither(policy: Installed, shared: Path) -> None:
    async def then(maps: PolicyMaps) -> None:
        assert ask(policy, frame(V4)) == PASS
        clear(policy.maps["policy_ports"])
        (written,) = {each for each in slots(policy, "policy_passed") if any(each)}
        fill(policy, "policy_passed", written)
        assert ask(policy, frame(V4)) == PASS, "this is what the program looks at"
        mixed = written.replace(HTTP.to_bytes(2, "big"), OTHER.to_bytes(2, "big"))
        assert mixed != written
        fill(policy, "policy_passed", mixed)
        assert ask(policy, frame(V4, OTHER)) == DROP

    settled(policy, shared, OPEN, then)


def slots(policy: Installed, name: str) -> set[bytes]:
    """What is in there, of all CPUs."""
    place = policy.maps[name]
    numbers = range(place.spec.max_entries)
    return {each for number in numbers for each in place.lookup_each_cpu(number.to_bytes(4, "little"))}


def fill(policy: Installed, name: str, slot: bytes) -> None:
    """All of it."""
    overwrite(policy.maps[name], range(policy.maps[name].spec.max_entries), slot)
