"""ExaBGP's API, both ways."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from bgpd.bgp import codec
from bgpd.model.bgp import ASN, EndOfRibKey, Family, Path, RouteKey

PEERS = {"tor-a": ip_address("11.11.255.1"), "tor-b": ip_address("11.11.255.2")}
HOP = ip_address("11.8.37.63")
FULL = Path(HOP, (ASN(64512), ASN(64512)), 50, 10, ("64512:100", "65535:0"), ("64512:1:2",))

SHOWN = (
    '{"peer": {"address": "11.11.255.1"}, "route": {"nlri": {"prefix": "10.1.0.0/24", "nexthop": "11.8.37.63",'
    ' "family": {"afi": "ipv4", "safi": "unicast"}}, "attributes": {"as-path": {"0": {"element": "as-sequence",'
    ' "value": [64512, 64512]}}, "med": 10, "local-preference": 50, "community": ["graceful-shutdown",'
    ' "64512:100"], "large-community": ["64512:1:2"]}}}'
)


def test_routes_with_one_path_share_a_command() -> None:
    """One command per family and path."""
    paths = {RouteKey("tor-a", ip_network(prefix)): Path(HOP) for prefix in ("10.1.0.0/24", "10.2.0.0/24")}
    commands = list(codec.announce(paths, PEERS))
    assert [command.text for command in commands] == [
        "neighbor 11.11.255.1 announce attributes next-hop 11.8.37.63 nlri 10.1.0.0/24 10.2.0.0/24"
    ]
    assert commands[0].keys == tuple(paths)


def test_peers_with_one_path_share_a_command() -> None:
    """Both learn of it together; a peer with another path, or with fewer prefixes, gets a command of its own."""
    first, second = ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")
    paths = {RouteKey(peer, first): Path(HOP) for peer in ("tor-a", "tor-b")} | {RouteKey("tor-b", second): Path(HOP)}
    commands = list(codec.announce(paths, PEERS))
    assert [command.text for command in commands] == [
        "neighbor 11.11.255.1 , neighbor 11.11.255.2 announce attributes next-hop 11.8.37.63 nlri 10.1.0.0/24",
        "neighbor 11.11.255.2 announce attributes next-hop 11.8.37.63 nlri 10.2.0.0/24",
    ]
    assert [key for command in commands for key in command.keys] == list(paths)
    assert [command.text for command in codec.withdraw(paths, PEERS)] == [
        "neighbor 11.11.255.1 , neighbor 11.11.255.2 withdraw attributes next-hop 0.0.0.0 nlri 10.1.0.0/24",
        "neighbor 11.11.255.2 withdraw attributes next-hop 0.0.0.0 nlri 10.2.0.0/24",
    ]


def test_peers_with_other_paths_get_their_own() -> None:
    """The same prefix with another next hop is another command."""
    prefix = ip_network("10.1.0.0/24")
    paths = {RouteKey("tor-a", prefix): Path(HOP), RouteKey("tor-b", prefix): FULL}
    assert [command.keys for command in codec.announce(paths, PEERS)] == [(key,) for key in paths]


def test_every_attribute_is_written() -> None:
    """The full path in ExaBGP's words."""
    (command,) = codec.announce({RouteKey("tor-b", ip_network("10.1.0.0/24")): FULL}, PEERS)
    assert command.text == (
        "neighbor 11.11.255.2 announce attributes next-hop 11.8.37.63 as-path [ 64512 64512 ] local-preference 50"
        " med 10 community [ 64512:100 65535:0 ] large-community [ 64512:1:2 ] nlri 10.1.0.0/24"
    )


def test_what_exabgp_shows_compares_equal_to_what_was_announced() -> None:
    """Names of well-known communities and their order do not make a difference."""
    assert list(codec.adj_rib_out([SHOWN])) == [(PEERS["tor-a"], ip_network("10.1.0.0/24"), FULL)]


def test_withdrawals_name_a_next_hop_of_their_family() -> None:
    """ExaBGP's parser wants one; families never mix in a command."""
    keys = [RouteKey("tor-a", ip_network("10.1.0.0/24")), RouteKey("tor-a", ip_network("fd00:1::/64"))]
    assert [command.text for command in codec.withdraw(keys, PEERS)] == [
        "neighbor 11.11.255.1 withdraw attributes next-hop 0.0.0.0 nlri 10.1.0.0/24",
        "neighbor 11.11.255.1 withdraw attributes next-hop :: nlri fd00:1::/64",
    ]


@given(st.integers(1, 450))
def test_a_command_carries_at_most_a_batch(count: int) -> None:
    """However many routes, each is in exactly one command, in order, and no command is longer than a batch."""
    keys = [RouteKey("tor-a", ip_network((0x0A000000 + index * 256, 24))) for index in range(count)]
    commands = list(codec.announce(dict.fromkeys(keys, Path(HOP)), PEERS))
    assert [key for command in commands for key in command.keys] == keys
    assert max(len(command.keys) for command in commands) <= codec.BATCH


def test_end_of_rib_names_the_family() -> None:
    """ExaBGP writes families with a space."""
    command = codec.end_of_rib(EndOfRibKey("tor-a", Family.IPV6), PEERS["tor-a"])
    assert command.text == "neighbor 11.11.255.1 announce eor ipv6 unicast"


def test_a_session_is_read_from_the_bridges_memory() -> None:
    """Ages become times of our own clock; unknown families are left out."""
    memory = json.loads(
        '{"peer": "11.11.255.1", "state": "up", "reason": "", "ups": 2, "eor": ["ipv4 unicast"], "age_s": 4.0,'
        ' "negotiated": {"hold_time": 9, "families": ["ipv4 unicast", "ipv6 unicast", "l2vpn vpls"]}}'
    )
    address, session = codec.session(memory, now=100.0)
    assert address == PEERS["tor-a"]
    assert (session.up, session.since, session.ups, session.hold_time_s) == (True, 96.0, 2, 9)
    assert session.end_of_rib == {Family.IPV4}
    assert session.families == (Family.IPV4, Family.IPV6)
