"""Writes ExaBGP's configuration: one helper process and a block per neighbor, no routes. Pure.

Routes are announced through the API only, because ExaBGP 5.0 does not withdraw a static route that a reload
took out of its file. A block carries its neighbor's name and a digest of its own text in `description`; the
digest comes back in `show neighbor configuration`, so what ExaBGP has loaded can be compared with what is
wanted. The file can be cut into its blocks again: while one session is being reset, the others keep theirs.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

from bgpd.model.bgp import LocalEnd, Neighbor
from bgpd.model.prefix import Address, parse_address

HELPER = "bgpd"  # one fixed name: a helper that a reload renames is killed and counted as dead
_MARK = re.compile(r"^# neighbor (\S+)$", re.MULTILINE)
_ADDRESS = re.compile(r"^neighbor (\S+) \{$", re.MULTILINE)
_LOADED = re.compile(r'^\s*description "(\S+) ([0-9a-f]{12})";$', re.MULTILINE)
_LOCAL_END = re.compile(
    r'^neighbor (\S+) \{\s+description "(\S+) [0-9a-f]{12}";\s+router-id (\S+);[^{}]*?\blocal-address (\S+);',
    re.MULTILINE,
)
GTSM_TTL = 255  # RFC 5082 section 3


def header(python: str, helper: str, socket: str, end_of_rib_after_s: int) -> str:
    """The part of the file before the first neighbor."""
    return (
        "# written by bgpd; changes are overwritten\n"
        f"process {HELPER} {{\n"
        f"  run {python} -I -S {helper} {socket} {end_of_rib_after_s};\n"
        "  encoder json;\n"
        "}\n"
    )


def block(neighbor: Neighbor) -> str:
    """One neighbor's section, ending in a newline."""
    body = "".join(f"  {line}\n" for line in _settings(neighbor))
    digest = hashlib.sha256(f"{neighbor.peer_address}\n{body}".encode()).hexdigest()[:12]
    return (
        f"neighbor {neighbor.peer_address} {{\n"
        f'  description "{neighbor.name} {digest}";\n'
        f"{body}"
        "}\n"
    )


def digest_of(text: str) -> str:
    """The digest a block carries; empty when it carries none."""
    found = _LOADED.search(text)
    return found.group(2) if found else ""


def document(head: str, blocks: Mapping[str, str]) -> str:
    """The whole file, neighbors in the order of their names."""
    return head + "".join(f"\n# neighbor {name}\n{blocks[name]}" for name in sorted(blocks))


def blocks_of(text: str) -> dict[str, str]:
    """The blocks of a file that `document` wrote, by neighbor name; of anything else, nothing."""
    parts = _MARK.split(text)
    return {name: body.strip("\n") + "\n" for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def addresses(text: str) -> set[Address]:
    """The peers' addresses in a file, ours or one that ExaBGP shows."""
    return {parse_address(found) for found in _ADDRESS.findall(text)}


def loaded(shown: str) -> dict[str, str]:
    """`show neighbor configuration` as neighbor name to digest."""
    return dict(_LOADED.findall(shown))


def local_ends(shown: str) -> dict[str, LocalEnd]:
    """`show neighbor configuration` as neighbor name to our end of its session."""
    return {
        name: LocalEnd(parse_address(address), parse_address(router_id), parse_address(peer))
        for peer, name, router_id, address in _LOCAL_END.findall(shown)
    }


def _settings(neighbor: Neighbor) -> list[str]:
    lines = [
        f"router-id {neighbor.router_id};",
        f"local-address {neighbor.local_address};",
        *([f"source-interface {neighbor.interface};"] if neighbor.interface else []),
        f"local-as {neighbor.local_asn};",
        f"peer-as {neighbor.peer_asn};",
        f"hold-time {neighbor.hold_time_s};",
        f"connect {neighbor.peer_port};",
        f"passive {_boolean(neighbor.passive)};",
        "manual-eor true;",
        "adj-rib-in false;",  # nothing a peer sends is kept
        "adj-rib-out true;",  # read back, and replayed by ExaBGP when the session returns
        "group-updates true;",
    ]
    if neighbor.listen_port is not None:
        lines.append(f"listen {neighbor.listen_port};")
    if neighbor.ttl_security:
        lines += [f"incoming-ttl {GTSM_TTL};", f"outgoing-ttl {GTSM_TTL};"]
    elif neighbor.multihop is not None or not neighbor.internal:
        lines.append(f"outgoing-ttl {neighbor.multihop or 1};")
    if neighbor.password is not None:
        # base64 spares the password from ExaBGP's quoting rules
        encoded = base64.b64encode(neighbor.password.reveal().encode()).decode()
        lines += [f'md5-password "{encoded}";', "md5-base64 true;"]
    return lines + _nested(neighbor)


def _nested(neighbor: Neighbor) -> list[str]:
    restart = "disable" if neighbor.restart_time_s is None else str(neighbor.restart_time_s)
    families = [f"    {family.value.replace('-', ' ')};" for family in neighbor.families]
    return [
        "capability {",
        "  asn4 enable;",
        "  route-refresh enable;",
        f"  graceful-restart {restart};",
        *(["  nexthop enable;"] if neighbor.extended_next_hop else []),
        "}",
        *(["nexthop {", "  ipv4 unicast ipv6;", "}"] if neighbor.extended_next_hop else []),
        "family {",
        *(line[2:] for line in families),
        "}",
        "api {",
        f"  processes [ {HELPER} ];",
        "  neighbor-changes;",
        "  negotiated;",
        "  send {",
        "    parsed;",
        "    notification;",  # why ExaBGP ends a session, in words
        "  }",
        "}",
    ]


def _boolean(value: bool) -> str:
    return "true" if value else "false"
