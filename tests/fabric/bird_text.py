"""BIRD's words turned into the lab's words: `show route all` and `show protocols all` of BIRD 2.0.

Pure: text in, values out. It decides what each line means; it does not ask BIRD (`bird`), nor frame its
answers (`bird_control`). Dates are in the form of `timeformat ... iso long us`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from tests.fabric.peer import IPV4, IPV6, Capabilities, PeerSession, ReceivedRoute

_STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+"
_PATH = re.compile(
    rf"^(?P<prefix>\S+)?\s+(?P<kind>\w+) \[(?P<protocol>\S+) (?P<since>{_STAMP})(?: from \S+)?\]"
    r" (?P<best>\*)?\s*\((?P<preference>\d+)(?P<flags>[-s]*)[^)]*\)"
)
_PROTOCOL = re.compile(rf"^(?P<name>\S+)\s+BGP\s+\S+\s+\S+\s+(?P<since>{_STAMP})")
_FAMILY = {"ipv4": IPV4, "ipv6": IPV6}
_ORIGIN = {"IGP": "igp", "EGP": "egp", "Incomplete": "incomplete"}

# The words of BIRD's table of errors (proto/bgp/bgp.c), back to the numbers of RFC 4271 section 4.5 and RFC
# 4486.
NOTIFICATIONS = {
    "Connection not synchronized": (1, 1),
    "Bad peer AS": (2, 2),
    "Bad BGP identifier": (2, 3),
    "Unacceptable hold time": (2, 6),
    "Required capability missing": (2, 7),
    "Hold timer expired": (4, 0),
    "Unexpected message in OpenSent state": (5, 1),
    "Unexpected message in OpenConfirm state": (5, 2),
    "Unexpected message in Established state": (5, 3),
    "Maximum number of prefixes reached": (6, 1),
    "Administrative shutdown": (6, 2),
    "Peer de-configured": (6, 3),
    "Administrative reset": (6, 4),
    "Connection rejected": (6, 5),
    "Other configuration change": (6, 6),
    "Connection collision resolution": (6, 7),
    "Out of Resources": (6, 8),
    "Cease": (6, 0),
}


@dataclass(slots=True)
class Path:
    """One path of `show route all`; the peer and staleness are its protocol's to say."""

    prefix: str
    protocol: str
    since: datetime
    best: bool
    usable: bool
    long_lived_stale: bool
    attributes: dict[str, str] = field(default_factory=dict)

    def received(self, peer: str, *, stale: bool) -> ReceivedRoute:
        """The same path in the lab's words."""
        said = self.attributes
        return ReceivedRoute(
            prefix=self.prefix,
            peer=peer,
            next_hops=tuple(said.get("next_hop", "").split()),
            # A set {1 2} or a confederation (1 2) is flattened: the lab never makes one.
            as_path=tuple(int(number) for number in re.findall(r"\d+", said.get("as_path", ""))),
            origin=_ORIGIN.get(said.get("origin", ""), "incomplete"),
            local_pref=_number(said.get("local_pref")),
            med=_number(said.get("med")),
            communities=_groups(said.get("community", "")),
            large_communities=_groups(said.get("large_community", "")),
            best=self.best,
            usable=self.usable,
            stale=stale or self.long_lived_stale,
        )


@dataclass(frozen=True, slots=True)
class Protocol:
    """What `show protocols all` says of one BGP protocol.

    `restarting` are the families whose routes are kept through a graceful restart; `imported` counts all
    families.
    """

    name: str
    since: datetime
    session: PeerSession
    restarting: frozenset[str]
    imported: int


def paths(lines: Iterable[str]) -> Iterator[Path]:
    """The paths in the answer to `show route ... all`, BGP's and others, in BIRD's order."""
    prefix = ""
    path: Path | None = None
    for line in lines:
        start = _PATH.match(line)
        if start is not None:
            if path is not None:
                yield path
            prefix = start["prefix"] or prefix
            path = Path(
                prefix,
                start["protocol"],
                datetime.fromisoformat(start["since"]),
                best=start["best"] is not None,
                usable=start["kind"] == "unicast",
                long_lived_stale="s" in start["flags"],
            )
        elif path is not None and line.startswith("\tBGP."):
            name, _, value = line[5:].partition(":")
            path.attributes[name] = value.strip()
    if path is not None:
        yield path


def protocols(lines: Iterable[str], now: datetime) -> Iterator[Protocol]:
    """The BGP protocols in the answer to `show protocols all`; `now` by the clock BIRD's dates are in."""
    head: re.Match[str] | None = None
    body: list[str] = []
    for line in [*lines, "end"]:
        if line and not line[0].isspace():
            if head is not None:
                yield _protocol(head, body, now)
            head, body = _PROTOCOL.match(line), []
        else:
            body.append(line)


def _protocol(head: re.Match[str], body: list[str], now: datetime) -> Protocol:
    at = next((index for index, line in enumerate(body) if line.startswith("  Channel ")), len(body))
    said = dict(_pairs(body[:at]))
    since = datetime.fromisoformat(head["since"])
    state = said.get("BGP state", "Idle").lower()
    error = said.get("Last error", "")
    session = PeerSession(
        address=said.get("Neighbor address", "").partition("%")[0],
        state=state,
        uptime_s=(now - since).total_seconds() if state == "established" else None,
        hold_time_s=_timer(said.get("Hold timer")),
        keepalive_s=_timer(said.get("Keepalive timer")),
        remote_id=said.get("Neighbor ID"),
        capabilities=_capabilities(body[:at]),
        last_error=error,
        notification=next((code for words, code in NOTIFICATIONS.items() if words in error), None),
    )
    restarting: set[str] = set()
    imported = 0
    family = ""
    for line in body[at:]:
        name, _, value = line.strip().partition(":")
        if line.startswith("  Channel "):
            family = _FAMILY.get(line.split()[1], line.split()[1])
        elif name == "Neighbor GR":
            restarting.add(family)
        elif name == "Routes":
            imported += int(value.split()[0])
    return Protocol(head["name"], since, session, frozenset(restarting), imported)


def _capabilities(body: list[str]) -> Capabilities:
    """The block under "Neighbor capabilities": names indented by two more than it, details by four."""
    top = 0
    inside = False
    offered: set[str] = set()
    details: dict[tuple[str, str], str] = {}
    for line in body:
        indent = len(line) - len(line.lstrip())
        text = line.strip()
        if inside and indent <= top:
            break
        if text == "Neighbor capabilities":
            inside, top = True, indent
        elif inside and indent == top + 2:
            offered.add(text)
            current = text
        elif inside:
            name, _, value = text.partition(":")
            details[current, name] = value.strip()
    restart = "Graceful restart"
    restart_time = details.get((restart, "Restart time"))
    return Capabilities(
        families=_families(details.get(("Multiprotocol", "AF announced"), "")),
        four_octet_asn="4-octet AS numbers" in offered,
        route_refresh="Route refresh" in offered,
        enhanced_refresh="Enhanced refresh" in offered,
        extended_message="Extended message" in offered,
        extended_next_hop="Extended next hop" in offered,
        add_path="ADD-PATH" in offered,
        graceful_restart=restart in offered,
        restart_time_s=_number(restart_time),
        restart_families=_families(details.get((restart, "AF supported"), "")),
        long_lived="Long-lived graceful restart" in offered,
    )


def _pairs(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, colon, value = line.strip().partition(":")
        if colon:
            yield name, value.strip()


def _families(text: str) -> frozenset[str]:
    return frozenset(_FAMILY.get(word, word) for word in text.split())


def _groups(text: str) -> tuple[str, ...]:
    """`(64512,100) (64512, 1, 2)` as `64512:100`, `64512:1:2`."""
    return tuple(":".join(group.replace(" ", "").split(",")) for group in re.findall(r"\(([^)]*)\)", text))


def _number(text: str | None) -> int | None:
    return int(text) if text else None


def _timer(text: str | None) -> float | None:
    """`7.155/9`: what is left and the whole; the whole is wanted."""
    return float(text.rpartition("/")[2]) if text else None
