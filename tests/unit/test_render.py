"""ExaBGP's configuration file: what a neighbor becomes, and reading our own file back."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from bgpd.bgp import render
from bgpd.model.bgp import ASN, Family, LocalEnd, Neighbor, Secret

TOR_A = Neighbor(
    name="tor-a",
    peer_address=ip_address("11.11.255.1"),
    peer_asn=ASN(64512),
    local_asn=ASN(64512),
    local_address=ip_address("11.8.37.63"),
    router_id=ip_address("11.8.37.63"),
    peer_port=179,
    listen_port=179,
    passive=False,
    families=(Family.IPV4,),
    hold_time_s=9,
    restart_time_s=120,
    ttl_security=False,
    multihop=None,
    password=None,
)
HEAD = render.header("/opt/bgpd/bin/python", "/opt/bgpd/guardian.py", "/run/bgpd/speaker/bridge.sock", 30)


def test_a_neighbor_is_written_in_full() -> None:
    """The block of an iBGP session with graceful restart, but for its digest."""
    assert render.block(TOR_A).replace(render.digest_of(render.block(TOR_A)), "DIGEST") == (
        "neighbor 11.11.255.1 {\n"
        '  description "tor-a DIGEST";\n'
        "  router-id 11.8.37.63;\n"
        "  local-address 11.8.37.63;\n"
        "  local-as 64512;\n"
        "  peer-as 64512;\n"
        "  hold-time 9;\n"
        "  connect 179;\n"
        "  passive false;\n"
        "  manual-eor true;\n"
        "  adj-rib-in false;\n"
        "  adj-rib-out true;\n"
        "  group-updates true;\n"
        "  listen 179;\n"
        "  capability {\n"
        "    asn4 enable;\n"
        "    route-refresh enable;\n"
        "    graceful-restart 120;\n"
        "  }\n"
        "  family {\n"
        "    ipv4 unicast;\n"
        "  }\n"
        "  api {\n"
        "    processes [ bgpd ];\n"
        "    neighbor-changes;\n"
        "    negotiated;\n"
        "    send {\n"
        "      parsed;\n"
        "      notification;\n"
        "    }\n"
        "  }\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"password": Secret('a"b;{}')}, 'md5-password "YSJiO3t9";'),
        ({"ttl_security": True}, "incoming-ttl 255;"),
        ({"multihop": 4}, "outgoing-ttl 4;"),
        ({"passive": True}, "passive true;"),
        ({"restart_time_s": None}, "graceful-restart disable;"),
        ({"families": (Family.IPV4, Family.IPV6)}, "ipv6 unicast;"),
        ({"peer_port": 1790}, "connect 1790;"),
    ],
)
def test_each_option_has_its_line_and_changes_the_digest(change: dict[str, object], line: str) -> None:
    """What ExaBGP must see is in the file, and a change of it is a change of the digest."""
    changed = render.block(replace(TOR_A, **change))  # type: ignore[arg-type]
    assert line in changed
    assert render.digest_of(changed) != render.digest_of(render.block(TOR_A))


def test_a_neighbor_that_does_not_listen_has_no_listen_line() -> None:
    """listenPort 0 means that ExaBGP opens no socket."""
    assert "listen" not in render.block(replace(TOR_A, listen_port=None))


def test_a_file_is_cut_into_the_blocks_it_was_made_of() -> None:
    """Reading our own file back loses nothing."""
    blocks = {"tor-a": render.block(TOR_A), "tor-b": render.block(replace(TOR_A, name="tor-b"))}
    assert render.blocks_of(render.document(HEAD, blocks)) == blocks


@pytest.mark.parametrize("text", ["", "neighbor 1.2.3.4 { }", HEAD])
def test_a_foreign_file_has_no_blocks(text: str) -> None:
    """Whatever else lies there is replaced, not interpreted."""
    assert render.blocks_of(text) == {}


def test_what_exabgp_has_loaded_is_known_by_digest() -> None:
    """`show neighbor configuration` prints the description back."""
    block = render.block(TOR_A)
    assert render.loaded(block) == {"tor-a": render.digest_of(block)}


def test_our_end_of_what_exabgp_has_loaded_is_read_back() -> None:
    """Each neighbor's own, also behind the lines that ExaBGP puts in; a block that is not ours is passed over."""
    v6 = replace(TOR_A, name="tor-6", local_address=ip_address("fd00::63"), router_id=ip_address("10.0.0.1"))
    shown = (render.block(TOR_A) + render.block(v6)).replace("  local-address", "  host-name None;\n  local-address")
    foreign = "neighbor 192.0.2.1 {\n  router-id 192.0.2.9;\n  local-address 192.0.2.2;\n}\n"
    assert render.local_ends(foreign + shown + foreign) == {
        "tor-a": LocalEnd(TOR_A.local_address, TOR_A.router_id, TOR_A.peer_address),
        "tor-6": LocalEnd(v6.local_address, v6.router_id, v6.peer_address),
    }


def test_a_password_never_shows() -> None:
    """Not in repr, str or a format string."""
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {[secret]} {replace(TOR_A, password=secret)}"
    assert secret.reveal() == "hunter2"
