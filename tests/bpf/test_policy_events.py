"""What the programs tell of packets that a set denies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from bgpd.datapath import layout
from bgpd.datapath.layout import EventFlag, Peer, PeerFlag, PolicyVerdict
from bgpd.datapath.loader import Installed
from bgpd.datapath.ringbuf import RingBuffer
from tests.bpf.packets import SOURCE_V4, SOURCE_V6, TCP
from tests.bpf.program import run
from tests.bpf.test_policy import CLIENT, SERVER, SET, V4, V6, ask, peers, rule, to

BURST = 64  # layout.h


@pytest.fixture
def events(policy: Installed) -> Iterator[RingBuffer]:
    with closing(RingBuffer(policy.maps["policy_events"])) as opened:
        yield opened


def taken(events: RingBuffer, most: int = 10_000) -> list[dict[str, Any]]:
    names = layout.STRUCTS["policy_event"]
    return [dict(zip(names, layout.EVENT.unpack(record), strict=True)) for record in events.take(most)]


@pytest.mark.parametrize(("client", "server"), [(SOURCE_V4, V4), (SOURCE_V6, V6)], ids=["v4", "v6"])
def test_a_drop_is_told_with_the_flow_as_its_client_began_it(
    policy: Installed, events: RingBuffer, client: Any, server: Any
) -> None:
    peers(policy, Peer(CLIENT, egress_set=SET), Peer(SERVER))
    ask(policy, to(server))
    (event,) = taken(events)
    assert event.pop("at_ns") > 0
    assert event == {
        "client": layout.policy_address(client),
        "server": layout.policy_address(server),
        "client_port": (40000).to_bytes(2, "big"),
        "server_port": (80).to_bytes(2, "big"),
        "protocol": TCP,
        "class": SERVER,
        "cookie": 0,
        "lost": 0,
        "verdict": PolicyVerdict.DENIED_EGRESS,
        "ingress": 0,
        "flags": 0,
        "pad": 0,
    }
    ask(policy, to(server), "policy_reply")
    assert taken(events) == [], "the server of that reply is the client above, who has no ingress set"


def test_a_reply_and_an_audited_packet_say_so(policy: Installed, events: RingBuffer) -> None:
    peers(policy, Peer(CLIENT, ingress_set=SET, flags=PeerFlag.AUDIT), Peer(SERVER))
    rule(policy, SET, SERVER, layout.Action.DENY, cookie=77)
    ask(policy, to(V4), "policy_reply")
    (event,) = taken(events)
    assert (event["ingress"], event["cookie"]) == (1, 77)
    assert event["flags"] == EventFlag.EVENT_REPLY | EventFlag.EVENT_AUDITED


def test_what_passes_is_not_told(policy: Installed, events: RingBuffer) -> None:
    peers(policy, Peer(CLIENT, egress_set=SET), Peer(SERVER))
    rule(policy, SET, SERVER)
    ask(policy, to(V4))
    assert taken(events) == []


def test_one_pod_is_heard_so_often_and_the_rest_is_counted(policy: Installed, events: RingBuffer) -> None:
    """Each packet is told or counted as lost; another pod is heard all the same."""
    peers(policy, Peer(CLIENT, egress_set=SET), Peer(SERVER, ingress_set=SET))
    run(policy.programs["policy"].pin, to(V4), repeat=10_000)
    told = taken(events)
    assert BURST <= len(told) < 5_000
    assert sum(event["lost"] for event in told) < 10_000 - len(told) + 1
    ask(policy, to(V6))
    assert len(taken(events)) == 1


def test_a_ring_is_read_over_its_end(policy: Installed, events: RingBuffer) -> None:
    """By far more than it has room for, in small portions."""
    peers(policy, Peer(CLIENT, egress_set=SET), Peer(SERVER))
    room = policy.maps["policy_events"].spec.max_entries
    count = read = 0
    while count * layout.EVENT.size < 3 * room:
        policy.maps["policy_paces"].delete(policy.maps["policy_paces"].entries())
        run(policy.programs["policy"].pin, to(V4), repeat=BURST)
        count += BURST
        portions = [len(taken(events, 50)), len(taken(events, 50))]
        read += sum(portions)
        assert portions[0] == 50
    assert read == count
